"""The Hugging Face back end: a `tokenizer.json`, run by the `tokenizers` library (extra `[hf]`).

The file's normaliser, pre-tokeniser and model make the ids; which tokens begin and end a text is said by the files
beside it.
"""

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import fingerprint, hash_file
from data.tokenizer import CONTEXT, FILES, JSON, Span, Tokenizer, beside, read_bounded
from data.tokenizer_json_file import Decoder, Described, guard_specials, parse, read_vocabulary

NAMED_IN = ("tokenizer_config.json", "special_tokens_map.json")


class JsonTokenizer(Tokenizer):
    """A `tokenizer.json`: byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM), or with byte fallback (Llama 2, Gemma)."""

    def __init__(self, path: Path):
        self.path, self.library = path, _library(path)
        content = read_bounded(path)
        described = parse(path, content)
        self.kind = described["model"]["type"].lower()
        self.names = read_vocabulary(path, described)
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
        self._control_ids = frozenset(self.special_tokens.values())
        self._text = self._open()
        self._require_numbers(described)
        self.begin = self._prefix(settings)
        self._text.post_processor = None  # it trims offsets
        self._text.encode_special_tokens = True  # "split them": their names in a text are ordinary text
        self.files = (path, *beside(path, set(FILES) - {JSON}))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the file and of the tokens put around a document."""
        return fingerprint([hash_file(self.path), self.begin, self.eos])

    @functools.cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of each id; ids that the vocabulary leaves out have none."""
        pieces = [b""] * self.vocab_size
        for name, i in self.names.items():
            pieces[i] = name.encode() if i in self._control_ids else self.decoder.bytes_of(name)
        return pieces

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text."""
        ids = self._run(text, special).ids
        if not special and not self._control_ids.isdisjoint(ids):
            return self._split_forged(text)[0]
        return ids

    def encode_with_offsets(self, text: str, special: bool = False) -> tuple[list[int], list[Span]]:
        """Ids and spans."""
        encoded = self._run(text, special)
        if not special and not self._control_ids.isdisjoint(encoded.ids):
            return self._split_forged(text)
        return encoded.ids, encoded.offsets

    def _run(self, text: str, special: bool) -> Any:
        backend = self._special if special else self._text
        with self._told(f"fails on a text of {len(text):,} characters"):
            return backend.encode(text, add_special_tokens=False)

    def _split_forged(self, text: str) -> tuple[list[int], list[Span]]:
        """Ids of a text part of which the vocabulary itself joins into a control token: that part is cut in two.

        Unigram models can do so. The merges of BPE that would are left out, see `guard_specials`.
        """
        encoded = self._run(text, special=False)
        forged = [span for i, span in zip(encoded.ids, encoded.offsets) if i in self._control_ids]
        if not forged:
            return encoded.ids, encoded.offsets
        cut = next((begin + 1 for begin, end in forged if end - begin > 1), None)
        if cut is None:
            raise UserError(f"{self.path} makes special tokens of single characters of ordinary text")
        (ids, spans), (more, others) = self._split_forged(text[:cut]), self._split_forged(text[cut:])
        return ids + more, spans + [(cut + begin, cut + end) for begin, end in others]

    @functools.cached_property
    def _special(self) -> Any:
        """The same with special tokens read from text: a second one, since the switch would act on other threads."""
        backend = self._open()
        backend.post_processor = None
        return backend

    def _open(self) -> Any:
        with self._told("is not a usable tokenizer"):
            backend = self.library.Tokenizer.from_buffer(self.content)
            backend.no_truncation()
            backend.no_padding()
            return backend

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Its errors are plain Exceptions; its panics (a regular expression that backtracks) are not even that."""
        try:
            yield
        except BaseException as error:
            if type(error) is not Exception and type(error).__name__ != "PanicException":
                raise
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
        with self._told("fails on an empty text"):
            adds = said[0] if said else self._text.encode("").ids[:1] == [self.bos]
        return (self.bos,) if adds and self.bos is not None else ()


def _library(path: Path) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UserError(f"{path} is read by the tokenizers library; run `pip install 'quintet[hf]'`") from None
    return tokenizers
