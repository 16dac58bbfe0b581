"""The Hugging Face back end: a `tokenizer.json`, run by the `tokenizers` library (extra `[hf]`).

The file's normaliser, pre-tokeniser and model make the ids; which tokens begin and end a text is said by the files
beside it.
"""

import contextlib
import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import fingerprint, hash_file
from data.tokenizer import CONTEXT, Span, Tokenizer, beside, own_files, read_bounded, require_unicode
from data.tokenizer_json_file import Decoder, Described, guard_specials, parse, read_vocabulary, unknown_id

NAMED_IN = ("tokenizer_config.json", "special_tokens_map.json")


class JsonTokenizer(Tokenizer):
    """A `tokenizer.json`: byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM), or with byte fallback (Llama 2, Gemma)."""

    def __init__(self, path: Path):
        self.path, self.tokenizers = path, _library(path)
        content = read_bounded(path)
        described = parse(path, content)
        self.names = read_vocabulary(path, described)
        self.kind = described["model"]["type"].lower()
        self.vocab_size = max(self.names.values()) + 1
        self.decoder = Decoder(path, described)
        self.leading_spaces = self.decoder.leading_spaces
        settings = [(file, parse(file, read_bounded(file))) for file in beside(path, (*NAMED_IN, *CONTEXT))]
        self._read_specials(settings)
        if guard_specials(described, [i for i in (self.bos, self.eos, self.pad) if i is not None], self.names):
            content = json.dumps(described).encode()
        self.content = content
        self.special_tokens = {
            token["content"]: token["id"] for token in described["added_tokens"] if token["special"]
        }
        # What is unknown may come of any text.
        self._control_ids = frozenset(self.special_tokens.values()) - {unknown_id(described, self.names)}
        self._text = self._open()
        self._require_numbers(described)
        self.begin = self._prefix(settings)
        self._text.post_processor = None  # it trims offsets
        self._text.encode_special_tokens = True  # "split them": their names in a text are ordinary text
        self.files = own_files(path)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the file and of the tokens put around a document."""
        return fingerprint([hash_file(self.path), self.begin, self.eos])

    @functools.cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of each id; ids that the vocabulary leaves out have none."""
        pieces = [b""] * self.vocab_size
        for name, i in self.names.items():
            pieces[i] = name.encode() if name in self.special_tokens else self.decoder.bytes_of(name)
        return pieces

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text."""
        with self._told(text):
            # The only way to ids without offsets, 1.4 times as fast.
            (encoded,) = self._backend(special).encode_batch_fast([text], add_special_tokens=False)
        ids = encoded.ids
        if not special and not self._control_ids.isdisjoint(ids):
            return self._split_forged(text)[0]
        return ids

    def encode_with_offsets(self, text: str, special: bool = False) -> tuple[list[int], list[Span]]:
        """Ids and spans."""
        encoded = self._run(text, special)
        if special or self._control_ids.isdisjoint(encoded.ids):
            return encoded.ids, encoded.offsets
        return self._split_forged(text)

    def _run(self, text: str, special: bool) -> Any:
        with self._told(text):
            return self._backend(special).encode(text, add_special_tokens=False)

    def _backend(self, special: bool) -> Any:
        return self._special if special else self._text

    def _split_forged(self, text: str) -> tuple[list[int], list[Span]]:
        """Encodes a text parts of which the vocabulary itself joins into control tokens: those are cut in two.

        Unigram models can do so. The merges of BPE that would are left out, see `guard_specials`.
        """
        encoded = self._run(text, special=False)
        forged = [span for i, span in zip(encoded.ids, encoded.offsets) if i in self._control_ids]
        if not forged:
            return encoded.ids, encoded.offsets
        if any(end - begin < 2 for begin, end in forged):
            raise UserError(f"{self.path} makes special tokens of single characters of ordinary text")
        ids, spans, cuts = [], [], [0, *(begin + 1 for begin, _ in forged), len(text)]
        for cut, end in itertools.pairwise(cuts):
            more, others = self._split_forged(text[cut:end])
            ids += more
            spans += [(cut + a, cut + b) for a, b in others]
        return ids, spans

    @functools.cached_property
    def _special(self) -> Any:
        """The same with special tokens read from text: a second one, since the switch would act on other threads."""
        backend = self._open()
        backend.post_processor = None
        return backend

    def _open(self) -> Any:
        with self._told():
            backend = self.tokenizers.Tokenizer.from_buffer(self.content)
            backend.no_truncation()
            backend.no_padding()
            return backend

    @contextlib.contextmanager
    def _told(self, text: str | None = None) -> Iterator[None]:
        """Tells errors of the library when it reads the file or, given one, a text.

        They are plain Exceptions; its panics (a regular expression that backtracks) are not even that.
        """
        try:
            yield
        except BaseException as error:
            if isinstance(error, TypeError) and text is not None:
                require_unicode(text)
            own = type(error) is Exception or type(error).__name__ == "PanicException"
            if not own and not (isinstance(error, ValueError) and text is None):
                raise
            what = "is not a usable tokenizer" if text is None else f"fails on a text of {len(text):,} characters"
            raise UserError(f"{self.path} {what} ({error})") from None

    def _require_numbers(self, described: Described) -> None:
        for token in described["added_tokens"]:
            if (number := self._text.token_to_id(token["content"])) != token["id"]:
                raise UserError(
                    f"{self.path}: added token {token['content']!r} has id {token['id']}; "
                    f"those before it leave {number} to it"
                )

    def _read_specials(self, settings: list[tuple[Path, Described]]) -> None:
        """By name where the files name them, else by number; `stop_ids` are `eos` and all numbers of such."""
        found = {name: self._named(settings, name) for name in ("bos", "eos", "pad")}
        listed = {name: self._numbered(settings, name) for name in found}
        self.bos, self.eos, self.pad = (
            listed[name][0] if i is None and listed[name] else i for name, i in found.items()
        )
        ends = [] if self.eos is None else [self.eos]
        self.stop_ids = tuple(dict.fromkeys([*ends, *listed["eos"]]))

    def _named(self, settings: list[tuple[Path, Described]], name: str) -> int | None:
        for file, said in settings:
            if file.name not in NAMED_IN or (token := said.get(f"{name}_token")) is None:
                continue
            content = token.get("content") if isinstance(token, dict) else token
            if isinstance(content, str) and content in self.names:
                return self.names[content]
            if name != "pad":  # often one that the model never had
                raise UserError(f"{file}: {name}_token {content!r} is not a token of {self.path}")
        return None

    def _numbered(self, settings: list[tuple[Path, Described]], name: str) -> list[int]:
        for file, said in settings:
            if file.name not in CONTEXT or (ids := said.get(f"{name}_token_id")) is None:
                continue
            ids = ids if isinstance(ids, list) else [ids]
            known = set(self.names.values()) if ids else ()
            for i in ids:
                if type(i) is not int or i not in known:
                    if name == "pad":
                        return []
                    raise UserError(f"{file}: {name}_token_id {i!r} is not an id of {self.path}")
            return ids
        return []

    def _prefix(self, settings: list[tuple[Path, Described]]) -> tuple[int, ...]:
        """`bos` where the family puts it: said outright, or shown by what the file's post-processor adds."""
        said = [config["add_bos_token"] for _, config in settings if isinstance(config.get("add_bos_token"), bool)]
        with self._told(""):
            adds = said[0] if said else self._text.encode("").ids[:1] == [self.bos]
        return (self.bos,) if adds and self.bos is not None else ()


def _library(path: Path) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UserError(f"{path} is read by the tokenizers library; run `pip install 'quintet[hf]'`") from None
    return tokenizers
