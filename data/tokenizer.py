"""One `Tokenizer`, two back ends: SentencePiece models, and the `tokenizer.json` of Hugging Face.

Every back end says which bytes a token stands for, so that whole texts and streams are decoded by the same rule,
token by token: bytes of tokens end to end, UTF-8, U+FFFD for what is not.
"""

import abc
import codecs
import functools
import re
from collections.abc import Iterable
from pathlib import Path

from core.errors import UserError, suggest

MODEL, JSON = "tokenizer.model", "tokenizer.json"
# What travels with a tokenizer into a workdir and out with an export.
FILES = (JSON, MODEL, "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
CONTEXT = ("generation_config.json", "config.json")  # may say which ids begin and end; exports write their own
MAX_BYTES = 64_000_000  # of one file; Gemma 3's tokenizer.json, 262,144 tokens, has 33 MB
MAX_VOCABULARY = 1 << 20

Span = tuple[int, int]


class Tokenizer(abc.ABC):
    """Text to ids and back.

    Special tokens are control tokens: `encode` reads their names in a text as the ordinary text that they are, unless
    it is told `special=True`, and `decode` leaves them out unless told so.
    """

    path: Path
    kind: str  # "bpe" or "unigram"
    vocab_size: int
    special_tokens: dict[str, int]
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    stop_ids: tuple[int, ...] = ()  # all that end a generated text: `eos`, and the end of a turn where chats have one
    begin: tuple[int, ...] = ()  # what a document begins with: `bos`, or nothing in the families that put none
    files: dict[str, Path]  # what an export copies, under these names
    leading_spaces = 0  # that decoding takes off the beginning, because encoding puts them there

    def __reduce__(self):
        """Pickled as its path: a worker opens it again."""
        return open_tokenizer_file, (self.path,)

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Hash of all that decides the ids, which token shards record."""

    @abc.abstractmethod
    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text; with `special` the names of special tokens in it become these tokens."""

    @abc.abstractmethod
    def encode_with_offsets(self, text: str, special: bool = False) -> tuple[list[int], list[Span]]:
        """Ids, and for each the characters [begin, end) of the text that it stands for.

        Bytes of one character all have its span. A space that is put before the text has an empty one.
        """

    @property
    @abc.abstractmethod
    def token_bytes(self) -> list[bytes]:
        """The bytes of each id; those of a special token are its name."""

    def document(self, text: str) -> list[int]:
        """Ids of a whole document, with the tokens that its family puts at its beginning and end.

        Without one for the beginning it begins with the end of another document, as in a stream of them: so its first
        token is predicted too, and bits per byte count every byte.
        """
        begin, end = self.around
        return [*begin, *self.encode(text), *end]

    @property
    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What a document begins and ends with beside its text."""
        end = () if self.eos is None else (self.eos,)
        return self.begin or end, end

    def prompt(self, text: str) -> list[int]:
        """Ids of a document's beginning, to be continued: at least one, the end of another document if need be."""
        ids = [*self.begin, *self.encode(text)]
        return ids or [self.eos if self.eos is not None else 0]

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Text of ids; broken UTF-8 becomes U+FFFD, ids beyond the vocabulary (a padded embedding's) nothing."""
        pieces, end = self._pieces(special), self.vocab_size
        text = b"".join([pieces[i] for i in map(int, ids) if 0 <= i < end]).decode("utf-8", "replace")
        return text[_leading(text, self.leading_spaces) :]

    def stream(self, special: bool = False) -> "TextStream":
        """Decodes one id at a time."""
        return TextStream(self._pieces(special), self.leading_spaces)

    def require_special(self, names: Iterable[str]) -> None:
        """Refuses names that are not special tokens here."""
        for name in names:
            if name not in self.special_tokens:
                raise UserError(
                    f"config tokenizer.special: {name!r} is not a special token of {self.path}"
                    f"{suggest(name, self.special_tokens)}"
                )

    def _pieces(self, special: bool) -> list[bytes]:
        return self.token_bytes if special else self._silent

    @functools.cached_property
    def _silent(self) -> list[bytes]:
        pieces = list(self.token_bytes)
        for i in self.special_tokens.values():
            pieces[i] = b""
        return pieces

    @functools.cached_property
    def _special_names(self) -> re.Pattern:
        names = sorted(self.special_tokens, key=len, reverse=True)  # the longest where one begins as another
        return re.compile("|".join(map(re.escape, names)) or r"(?!)")


class TextStream:
    """Decodes ids as they come: all that `push` and `flush` return is final, and together equal to `decode`."""

    def __init__(self, pieces: list[bytes], leading_spaces: int):
        self.pieces, self.leading = pieces, leading_spaces
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that became certain with one more id; an incomplete character waits for its bytes."""
        return self._text(self.pieces[token] if 0 <= token < len(self.pieces) else b"")

    def flush(self) -> str:
        """What is left at the end."""
        return self._text(b"", final=True)

    def _text(self, piece: bytes, final: bool = False) -> str:
        text = self.utf8.decode(piece, final)
        if self.leading and text:
            spaces = _leading(text, self.leading)
            self.leading = self.leading - spaces if spaces == len(text) else 0
            text = text[spaces:]
        return text


def _leading(text: str, most: int) -> int:
    """How many spaces a text begins with, up to a number."""
    return min(most, len(text) - len(text.lstrip(" "))) if most else 0


def open_tokenizer_file(path: Path | str) -> Tokenizer:
    """The tokenizer at a path: a `tokenizer.json`, a SentencePiece model, or a folder that holds one."""
    path = find_file(path)
    if path.suffix == ".json":
        from data.tokenizer_json import JsonTokenizer

        return JsonTokenizer(path)
    from data.tokenizer_sentencepiece import SentencePieceTokenizer

    return SentencePieceTokenizer(path)


def find_file(path: Path | str) -> Path:
    """The file that is the tokenizer at a path.

    A folder's `tokenizer.json` goes before its `tokenizer.model`: it is what others load there. Name the file to have
    the other.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        found = [path / name for name in (JSON, MODEL) if (path / name).is_file()]
        if not found:
            raise UserError(f"{path} holds no tokenizer: neither {JSON} nor {MODEL} is there")
        path = found[0]
    if not path.is_file():
        raise UserError(f"{path} does not exist; a tokenizer is a folder, a {JSON} or a SentencePiece .model")
    return path


def own_files(path: Path) -> dict[str, Path]:
    """A tokenizer's file and what belongs to it, under the names that they have in a workdir and an export."""
    own, others = (JSON, {JSON}) if path.suffix == ".json" else (MODEL, {JSON, MODEL})
    return {own: path} | {file.name: file for file in beside(path, (name for name in FILES if name not in others))}


def read_bounded(path: Path) -> bytes:
    """A tokenizer's file, if it is of a size that one can have."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} has more than {MAX_BYTES // 1_000_000} MB, which no tokenizer needs")
    return content


def require_unicode(text: str) -> None:
    """Refuses half a surrogate pair, which a command line or JSON can hold and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the text is not Unicode at character {error.start + 1:,} ({error.reason})") from None


def beside(path: Path, names: Iterable[str]) -> tuple[Path, ...]:
    """Those of the names that stand in a file's folder."""
    return tuple(path.with_name(name) for name in names if path.with_name(name).is_file())
