"""What stands in a `tokenizer.json`, checked before the library sees it, which renumbers tokens and lets ids collide.

And what each of its tokens means in bytes.
"""

import json
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from core.errors import UserError
from data.tokenizer import MAX_VOCABULARY

Described = dict[str, Any]


def parse(path: Path, content: bytes) -> Described:
    """A JSON object without keys that are given twice."""

    def once(pairs: list[tuple[str, Any]]) -> Described:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise UserError(f"{path}: {_first_repeated(key for key, _ in pairs)} is given twice")
        return found

    try:
        described = json.loads(content, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({error})") from None
    if not isinstance(described, dict):
        raise UserError(f"{path} is not a JSON object")
    return described


def read_vocabulary(path: Path, described: Described) -> dict[str, int]:
    """Every token with its id; refuses what the library would accept and renumber."""
    model = described.get("model")
    model = model if isinstance(model, dict) else {}
    kind, vocabulary = model.setdefault("type", "BPE" if "merges" in model else "Unigram"), model.get("vocab")
    if kind == "BPE" and isinstance(vocabulary, dict):
        names = dict(vocabulary)
    elif kind == "Unigram" and isinstance(vocabulary, list) and all(map(_is_scored, vocabulary)):
        names = {piece: i for i, (piece, _) in enumerate(vocabulary)}
        if len(names) != len(vocabulary):
            raise UserError(f"{path}: token {_first_repeated(piece for piece, _ in vocabulary)} is given twice")
    else:
        raise UserError(f"{path} is not a tokenizer with a BPE or Unigram model")
    added = described.setdefault("added_tokens", [])
    if not isinstance(added, list) or not all(map(_is_added, added)):
        raise UserError(f"{path}: added_tokens are not a list of tokens with id, content and special")
    for token in added:
        if names.setdefault(token["content"], token["id"]) != token["id"]:
            name, first = reprlib.repr(token["content"]), reprlib.repr(names[token["content"]])
            raise UserError(f"{path}: token {name} has two ids, {first} and {token['id']}")
    owner: dict[int, str] = {}
    for name, i in names.items():
        if type(i) is not int or not 0 <= i < MAX_VOCABULARY:
            most = f"{MAX_VOCABULARY - 1:,}"
            raise UserError(f"{path}: the id of token {reprlib.repr(name)} is {reprlib.repr(i)}, must be 0 to {most}")
        if owner.setdefault(i, name) != name:
            raise UserError(f"{path}: tokens {reprlib.repr(owner[i])} and {reprlib.repr(name)} have the same id {i}")
    if not names:
        raise UserError(f"{path} has no tokens")
    return names


def _first_repeated(names: Iterable[str]) -> str:
    seen: set[str] = set()
    return reprlib.repr(next(name for name in names if name in seen or seen.add(name)))


def _is_scored(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)


def _is_added(token: Any) -> bool:
    own = token if isinstance(token, dict) else {}
    named = isinstance(own.get("content"), str) and own["content"]
    return bool(named) and isinstance(own.get("special"), bool) and type(own.get("id")) is int


def unknown_id(described: Described, names: dict[str, int]) -> int | None:
    """The id for what the vocabulary cannot say."""
    model = described["model"]
    if model["type"] == "Unigram":
        return model["unk_id"] if isinstance(model.get("unk_id"), int) else None
    return names.get(model["unk_token"]) if isinstance(model.get("unk_token"), str) else None


def guard_specials(described: Described, control: list[int], names: dict[str, int]) -> bool:
    """Makes special what is named so, and drops merges that make special tokens of text; True where that was needed.

    A converter that derives merges from all pieces of a SentencePiece model derives those of `</s>` too.
    """
    added, changed = described["added_tokens"], False
    for name in (name for name, i in names.items() if i in control):
        token = next((token for token in added if token["content"] == name), None)
        if token is None:
            flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
            added.append({"id": names[name], "content": name, "special": True, **flags})
        changed |= token is None or not token["special"]
        if token is not None:
            token["special"] = True
    merges = described["model"].get("merges")
    if isinstance(merges, list):
        special = {token["content"] for token in added if token["special"]}
        kept = [pair for pair in merges if _joined(pair) not in special]
        changed |= len(kept) != len(merges)
        described["model"]["merges"] = kept
    return changed


def _joined(pair: Any) -> str | None:
    """What a merge makes: `["a", "b"]`, or `"a b"` in older files."""
    if isinstance(pair, str):
        left, _, right = pair.partition(" ")
        return left + right
    return "".join(pair) if isinstance(pair, list) and all(isinstance(part, str) for part in pair) else None


class Decoder:
    """The decoder of a file, token by token: either byte-level, or some of Replace, ByteFallback, Fuse and Strip.

    The library decodes a run of byte tokens that is not UTF-8 to one U+FFFD a byte; here a broken character is one,
    as everywhere else.
    """

    def __init__(self, path: Path, described: Described):
        decoder = described.get("decoder")
        steps = decoder.get("decoders") if _type(decoder) == "Sequence" else [decoder]
        steps = steps if isinstance(steps, list) else [None]
        model = described["model"]["vocab"]
        self.added = {token["content"] for token in described["added_tokens"]}
        self.added -= model.keys() if isinstance(model, dict) else set()
        self.leading_spaces, self.byte_fallback = 0, False
        self.byte_level = [_type(step) for step in steps] == ["ByteLevel"]
        self.replacements: list[tuple[str, str]] = []
        for step in [] if self.byte_level else steps:
            if not self._take(step):
                said = _type(step) or "none"
                raise UserError(
                    f"{path}: decoder {said} is not supported; ByteLevel and those of Llama and Gemma are"
                )

    def _take(self, step: Any) -> bool:
        match step:
            case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)} if pattern:
                self.replacements.append((pattern, content))
            case {"type": "ByteFallback"}:
                self.byte_fallback = True
            case {"type": "Fuse"}:
                pass
            case {"type": "Strip", "content": " ", "start": int(start), "stop": 0} if start >= 0:
                self.leading_spaces = start
            case _:
                return False
        return True

    def bytes_of(self, token: str) -> bytes:
        """The bytes a token stands for."""
        if self.byte_level:
            known = token not in self.added and all(letter in _BYTE_OF for letter in token)
            return bytes(_BYTE_OF[letter] for letter in token) if known else token.encode()
        if self.byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass  # a token that only looks like a byte
        for pattern, content in self.replacements:
            token = token.replace(pattern, content)
        return token.encode()


def _type(step: Any) -> str | None:
    return step.get("type") if isinstance(step, dict) else None


def _byte_of() -> dict[str, int]:
    """GPT-2's alphabet of bytes: printable Latin-1 for itself, what follows U+00FF for the 68 others in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(0x100 + i): byte for i, byte in enumerate(others)}
    return {**{chr(byte): byte for byte in printable}, **shifted}


_BYTE_OF = _byte_of()
