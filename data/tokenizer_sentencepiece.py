"""The SentencePiece back end: models trained here, which are lossless, and those of others, such as Llama 2's.

Ours: identity normalisation, all whitespace kept, no dummy prefix, whitespace-only pieces for indentation, the
newline a piece of its own, and byte pieces for every character outside the vocabulary. What is encoded decodes to the
same bytes.
"""

import functools
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from core.errors import UserError
from core.files import hash_file
from data.config import TokenizerConfig
from data.tokenizer import FILES, JSON, MAX_VOCABULARY, MODEL, Span, Tokenizer, beside, read_bounded, require_unicode

# SentencePiece writes a space as this character, so a text that holds it must go through its bytes.
SPACE_MARK = "\u2581"
MAX_LINE = 1 << 16  # bytes of a line that is learned from
ALL = 1 << 30  # leading spaces


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model. `begin` and `eos` are the model's own."""

    def __init__(self, path: Path):
        self.path = path
        content = read_bounded(path)
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=content)
            model = sentencepiece_model_pb2.ModelProto.FromString(content)
        except (OSError, RuntimeError, ValueError, DecodeError) as error:
            raise UserError(f"{path} is not a SentencePiece model ({error})") from None
        self.vocab_size = len(model.pieces)
        if not 0 < self.vocab_size <= MAX_VOCABULARY:
            raise UserError(f"{path} is not a usable tokenizer: it has {self.vocab_size:,} pieces")
        # protobuf gives strings that are not UTF-8 as bytes
        if not all(
            isinstance(text, str) for text in (model.trainer_spec.unk_surface, *(p.piece for p in model.pieces))
        ):
            raise UserError(f"{path} is damaged: a piece is not UTF-8")
        self.model = model
        kinds = {model.trainer_spec.UNIGRAM: "unigram", model.trainer_spec.BPE: "bpe"}
        self.kind = kinds.get(model.trainer_spec.model_type, "")
        if not self.kind:
            raise UserError(f"{path} is a model of words or characters; BPE and unigram are supported")
        self.special_tokens = {
            piece.piece: i for i, piece in enumerate(model.pieces) if piece.type == piece.CONTROL and piece.piece
        }
        self.bos, self.eos, self.pad = map(self._named, ("bos_id", "eos_id", "pad_id"))
        self.begin = () if self.bos is None else (self.bos,)
        self.stop_ids = () if self.eos is None else (self.eos,)
        self.files = (path, *beside(path, set(FILES) - {JSON, MODEL}))
        normalizer = model.normalizer_spec
        # Without a prefix, parts of a text encode as the text does: what lossless encoding and marks rest on.
        self.plain = not normalizer.add_dummy_prefix and not normalizer.remove_extra_whitespaces
        if not self.plain:
            self.leading_spaces = ALL if normalizer.remove_extra_whitespaces else 1
        mark = [self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]
        self._mark = mark if self.plain and all(map(self.processor.is_byte, mark)) else None

    def _named(self, name: str) -> int | None:
        number = getattr(self.processor, name)()
        return number if number >= 0 else None

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the model file."""
        return hash_file(self.path)

    @functools.cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of each id."""
        return [self._bytes(piece) for piece in self.model.pieces]

    def _bytes(self, piece) -> bytes:
        if piece.type == piece.BYTE:
            return bytes([int(piece.piece[3:5], 16)])
        if piece.type == piece.UNKNOWN:
            return self.model.trainer_spec.unk_surface.encode()
        text = piece.piece if piece.type == piece.CONTROL else piece.piece.replace(SPACE_MARK, " ")
        return text.encode()

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text."""
        if not special and (self._mark is None or SPACE_MARK not in text):
            return self._run(text, int)
        ids = []
        for begin, end, own in self._parts(text, special):
            ids += self._run(text[begin:end], int) if own is None else own
        return ids

    def encode_with_offsets(self, text: str, special: bool = False) -> tuple[list[int], list[Span]]:
        """Ids and spans."""
        ids, spans = [], []
        for begin, end, own in self._parts(text, special):
            if own is None:
                found = self._run(text[begin:end], "offset_mapping")
                ids += found["ids"]
                spans += self._whole(found["ids"], [(begin + a, begin + b) for a, b in found["offsets"]])
            else:
                ids += own
                spans += [(begin, end)] * len(own)
        return ids, spans

    def _run(self, text: str, return_type: type | str) -> Any:
        try:
            return self.processor.encode(text, return_type=return_type)
        except RuntimeError:
            require_unicode(text)
            raise

    def _parts(self, text: str, special: bool) -> Iterator[tuple[int, int, list[int] | None]]:
        """What SentencePiece encodes, and between it what has ids of its own: special tokens and space marks."""
        own = {SPACE_MARK: self._mark} if self._mark is not None else {}
        names = [re.escape(SPACE_MARK)] if own else []
        if special and self.special_tokens:
            own |= {name: [i] for name, i in self.special_tokens.items()}
            names.append(self._special_names.pattern)
        at = 0
        for match in re.finditer("|".join(names), text) if names else ():
            if at < match.start():
                yield at, match.start(), None
            yield *match.span(), own[match[0]]
            at = match.end()
        if at < len(text):
            yield at, len(text), None

    def _whole(self, ids: list[int], spans: list[Span]) -> list[Span]:
        """Gives all bytes of a character its span; SentencePiece gives it to the last alone."""
        for i in range(len(ids) - 2, -1, -1):
            (begin, end), (next_begin, next_end) = spans[i : i + 2]
            if begin == end == next_begin and self.processor.is_byte(ids[i]):
                spans[i] = (begin, next_end)
        return spans


def train(texts: Iterable[str], config: TokenizerConfig, path: Path) -> None:
    """Learns a tokenizer from texts and writes it to `path`.

    Raises UserError where the corpus is too small for the vocabulary asked.
    """
    model = io.BytesIO()
    lines = _Lines(texts, config.train_mb)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=config.vocab_size,
            model_type=config.model,
            byte_fallback=True,
            character_coverage=0.9999,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            control_symbols=list(config.special),
            user_defined_symbols=["\n"],
            split_digits=True,
            max_sentence_length=MAX_LINE,
            num_threads=1,  # the vocabulary must not depend on the number of cores
            minloglevel=3,
        )
    except RuntimeError as error:
        if lines.failure is not None:  # SentencePiece turns whatever its iterator raises into a RuntimeError
            raise lines.failure from None
        if (refusal := _does_not_fit(config, str(error))) is None:
            raise
        raise UserError(refusal) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())


class _Lines:
    """The lines of the first megabytes; characters that SentencePiece treats specially are left to byte pieces."""

    def __init__(self, texts: Iterable[str], megabytes: float):
        self.texts, self.left = texts, megabytes * 1e6
        self.failure: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self.texts:
                for line in text.replace(SPACE_MARK, " ").replace("\0", " ").split("\n"):
                    if line:
                        yield line
                self.left -= len(text)
                if self.left <= 0:
                    return
        except BaseException as failure:
            self.failure = failure
            raise


def _does_not_fit(config: TokenizerConfig, error: str) -> str | None:
    """SentencePiece's two complaints about the vocabulary in a user's words; None for any other."""
    if "Vocabulary size is smaller than required_chars" in error or "required_chars" in error:
        numbers = re.findall(r"\d+", error.partition("required_chars")[2])
        need = f" (at least {numbers[-1]})" if numbers else ""
        return (
            f"tokenizer.vocab_size={config.vocab_size} is too small for the different characters of the corpus{need}"
            "; raise --config.tokenizer.vocab_size"
        )
    if "Vocabulary size too high" in error or "vocab_size()" in error:
        limit = re.search(r"value <= (\d+)", error)
        most = f" (at most {limit[1]})" if limit else ""
        return (
            f"the corpus is too small for tokenizer.vocab_size={config.vocab_size}{most}; "
            "give more text, or a lower --config.tokenizer.vocab_size"
        )
    return None
