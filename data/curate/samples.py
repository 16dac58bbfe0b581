"""Samples of documents to look at: of every group the same few, in whatever order the documents come.

Each keeps its address, language, source and licence, and an excerpt of its text.
"""

import bisect
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from data.document import SCHEMA, Document, Dropped, id_hash

EACH, KEPT = 8, 24  # samples of a reason, and of what stays
GROUPS = 256  # that are sampled; a step of the user's own may give any number of reasons
EXCERPT = 2000  # characters of a sample
CONTEXT = 200  # of these before the first change
VALUES = 12  # numbers that steps added to a document
FIRSTS = 8192  # texts whose first document is remembered, to name it beside a copy
FIELDS = ("id", "url", "language", "source", "license")


class Group(NamedTuple):
    """Documents that are sampled together."""

    kind: str  # kept, dropped or changed
    step: str = ""
    reason: str = ""


class Samples:
    """Of each group the documents with the smallest hashes of their ids: in whatever order they come, the same."""

    def __init__(self):
        self.groups: dict[Group, list[tuple[int, dict[str, Any]]]] = {}

    def offer(self, group: Group, number: int, make: Callable[[], dict[str, Any]]) -> None:
        """Takes what `make` gives where `number`, a hash, is among the smallest. Of equal ones the first stays."""
        most = KEPT if group.kind == "kept" else EACH
        members = self.groups.setdefault(group, [])
        place = bisect.bisect_left(members, number, key=lambda one: one[0])
        if place == most or (place < len(members) and members[place][0] == number):
            return
        members.insert(place, (number, make()))
        del members[most:]
        if len(self.groups) > GROUPS:
            del self.groups[max(self.groups, key=lambda one: id_hash("\0".join(one), "sample"))]

    def plain(self) -> list[dict[str, Any]]:
        """As JSON says it, in order of names."""
        return [{**group._asdict(), "samples": members} for group, members in sorted(self.groups.items())]

    def merge(self, plain: Iterable[Mapping[str, Any]]) -> None:
        """Adds what `plain` gave of others."""
        for one in plain:
            for number, sample in one["samples"]:
                self.offer(Group(one["kind"], one["step"], one["reason"]), number, lambda sample=sample: sample)


class Firsts:
    """Which document had a text first, for an even share of all texts that fits in memory."""

    def __init__(self):
        self.of: dict[int, str] = {}
        self.bound = 1 << 64

    def add(self, number: int, identifier: str) -> None:
        """Remembers the first of a text, by the text's hash."""
        if number < self.bound:
            self.of.setdefault(number, identifier)
        if len(self.of) > 2 * FIRSTS:
            self.bound //= 2
            self.of = {number: first for number, first in self.of.items() if number < self.bound}


def dropped_row(before: pa.RecordBatch, after: pa.RecordBatch, row: int) -> dict[str, Any]:
    """A document of a batch as the step that drops it saw it, with what the step found."""
    return {**_of_row(after, row), **_excerpt(before.column("text")[row].as_py())}


def changed_row(before: pa.RecordBatch, after: pa.RecordBatch, row: int) -> dict[str, Any]:
    """A document that a step changed, both texts from shortly before the first change."""
    old, new = (batch.column("text")[row].as_py() for batch in (before, after))
    begin = max(0, _common(old, new) - CONTEXT)
    cut = slice(begin, begin + EXCERPT)
    return {**_of_row(after, row), **_excerpt(new), "text": new[cut], "before": old[cut], "begin": begin}


def of_document(document: Document, kept: str | None = None) -> dict[str, Any]:
    """A document that went through all steps; of a duplicate the id of the one that is kept, where known."""
    shown = {name: getattr(document, name) for name in FIELDS} | _values(document.meta)
    return {**shown, **_excerpt(document.text), **({"kept": kept} if kept else {})}


def of_unread(entry: Dropped) -> dict[str, Any]:
    """What is known of a document that its source could not read."""
    return {"id": entry.id, "source": entry.source, "bytes": entry.size}


def digest(text: str) -> int:
    """64 bits of a text's hash."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _common(one: str, other: str) -> int:
    """How many characters both texts begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _of_row(batch: pa.RecordBatch, row: int) -> dict[str, Any]:
    added = [field.name for field in batch.schema if field.name not in SCHEMA.names and _is_number(field.type)]
    found = {name: batch.column(name)[row].as_py() for name in (*FIELDS, *added)}
    return {name: found[name] for name in FIELDS} | _values({name: found[name] for name in added})


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _excerpt(text: str) -> dict[str, Any]:
    """The beginning of a text, and how long all of it is."""
    return {"text": text[:EXCERPT], "characters": len(text), "bytes": len(text.encode())}


def _values(added: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    numbers = {name: value for name, value in added.items() if type(value) in (int, float) and math.isfinite(value)}
    return {"values": dict(sorted(numbers.items())[:VALUES])} if numbers else {}
