"""Counts in bounded memory: by name, by step, and in the bins of histograms."""

import collections
import math
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

SCORE_BINS = 20  # from 0 to 1
CLUSTERS = 100_000  # of duplicates that are surely counted
MOST_BINS = 400  # on either side of 0

Size = list[int]  # documents and bytes


class Names:
    """Documents and bytes by name. Of more than twice `most` names the rarest are from then on counted together."""

    def __init__(self, most: int):
        self.most = most
        self.sizes: dict[str, Size] = {}
        self.others: Size = [0, 0]

    def add(self, name: str, documents: int, size: int) -> None:
        """Counts documents of this name."""
        own = self.sizes.setdefault(name, [0, 0])
        own[0] += documents
        own[1] += size
        if len(self.sizes) > 2 * self.most:
            for rare, (number, room) in self.ranked()[self.most :]:
                del self.sizes[rare]
                self.others[0] += number
                self.others[1] += room

    def ranked(self) -> list[tuple[str, Size]]:
        """The most frequent first."""
        return sorted(self.sizes.items(), key=lambda pair: (-pair[1][0], pair[0]))

    def plain(self) -> dict[str, Any]:
        """As JSON says it."""
        return {"names": self.sizes, "others": self.others}

    def merge(self, plain: Mapping[str, Any]) -> None:
        """Adds what `plain` gave of others."""
        for name, (documents, size) in plain["names"].items():
            self.add(name, documents, size)
        self.others = [own + more for own, more in zip(self.others, plain["others"])]


class Copies:
    """How many copies clusters have, by a hash of each; of too many an even share is left."""

    def __init__(self):
        self.counts: collections.Counter = collections.Counter()
        self.one_in = 1

    def add(self, number: int) -> None:
        """Counts a copy of the one that the hash stands for."""
        if number % self.one_in == 0:
            self.counts[number] += 1
            if len(self.counts) > 2 * CLUSTERS:
                self.one_in *= 2
                left = {number: copies for number, copies in self.counts.items() if number % self.one_in == 0}
                self.counts = collections.Counter(left)

    def sizes(self) -> collections.Counter:
        """How many clusters there are of each size, the one that stays included."""
        found = collections.Counter(1 + copies for copies in self.counts.values())
        return collections.Counter({size: self.one_in * clusters for size, clusters in found.items()})


class Steps:
    """Documents and bytes into and out of each step, and how many texts it changed."""

    KEYS = ("documents_in", "bytes_in", "documents_out", "bytes_out", "changed")

    def __init__(self, names: Iterable[str] = ()):
        self.counts = {name: dict.fromkeys(self.KEYS, 0) for name in names}

    def add(self, name: str, **counts: int) -> None:
        """Adds to a step."""
        own = self.counts.setdefault(name, dict.fromkeys(self.KEYS, 0))
        for key, number in counts.items():
            own[key] += number


def entropy(counts: Iterable[int]) -> float:
    """In bits, of what is so frequent."""
    numbers = sorted(number for number in counts if number)
    total = sum(numbers)
    return sum(number * math.log2(total / number) for number in numbers) / total if total else 0.0


def length_bin(size: int) -> int:
    """Bin i has the sizes from 2**(i / 2) on, and bin -1 is for nothing."""
    if not size:
        return -1
    octave = size.bit_length() - 1
    return 2 * octave + (size * size >> (2 * octave + 1) > 0)


def host(url: str) -> str:
    """The host of a web address without www., or nothing."""
    try:
        found = urllib.parse.urlsplit(url)
    except ValueError:
        return ""
    return (found.hostname or "").removeprefix("www.") if found.scheme in ("http", "https") else ""


def score_bins(values: Iterable[Any]) -> Iterable[str]:
    """Bin i of a score holds what is above i / 20 up to (i + 1) / 20, and bin 0 also 0 itself."""
    numbers = (value for value in values if isinstance(value, int | float) and math.isfinite(value))
    for value in numbers:
        value = max(-MOST_BINS, min(value * SCORE_BINS, MOST_BINS))
        yield str(math.ceil(value) - 1 if value else 0)
