"""Gopher's repetition rules (Rae et al. 2021, table A1), as datatrove 0.10 decides them.

Its rules on n-grams of words compare strings. Here a run of words is a number, a polynomial in all its characters
modulo 2**64, that of n words follows from that of n - 1 for all places of a text at once. Different runs of ordinary
text do not share a number; a text can be made so that they do, and is then taken for one that repeats.
"""

import dataclasses
import re
from typing import ClassVar

import numpy as np

from data.curate.step import TextRule
from data.curate.words import BASE, Words, packages_of, splitter

PARAGRAPHS, LINES = re.compile(r"\n{2,}"), re.compile(r"\n+")


@dataclasses.dataclass(frozen=True)
class GopherRepetition(TextRule):
    """Drops texts that repeat their lines, paragraphs or runs of words. Shares are of all characters."""

    version: ClassVar[int] = 1
    language: str = "en"
    dup_line_frac: float = 0.30  # of lines
    dup_para_frac: float = 0.30  # of paragraphs
    dup_line_char_frac: float = 0.20
    dup_para_char_frac: float = 0.20
    top_n_grams: tuple[tuple[int, float], ...] = ((2, 0.20), (3, 0.18), (4, 0.16))
    dup_n_grams: tuple[tuple[int, float], ...] = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))

    @property
    def packages(self) -> tuple[str, ...]:
        """Those whose versions decide."""
        return packages_of(self.language)

    def reason(self, text: str) -> str | None:
        """Why the text is dropped, or None."""
        if not text:
            return "empty"
        for parts, name, share, char_share in (
            (PARAGRAPHS.split(text.strip()), "para", self.dup_para_frac, self.dup_para_char_frac),
            (LINES.split(text), "line", self.dup_line_frac, self.dup_line_char_frac),
        ):
            repeated, chars = duplicates(parts)
            if share and repeated / len(parts) > share:
                return f"dup_{name}_frac"
            if char_share and chars / len(text) > char_share:
                return f"dup_{name}_char_frac"
        words = splitter(self.language)(text)
        runs = Runs(words)
        for n, share in self.top_n_grams:
            if n <= len(words) and runs.top(n) / len(text) > share:
                return f"top_{n}_gram"
        for n, share in self.dup_n_grams:
            if n <= len(words) and runs.repeated(n) / len(text) > share:
                return f"duplicated_{n}_n_grams"
        return None


def duplicates(parts: list[str]) -> tuple[int, int]:
    """How many parts were there before, and their characters."""
    unique = set(parts)
    if len(unique) == len(parts):
        return 0, 0
    return len(parts) - len(unique), sum(map(len, parts)) - sum(map(len, unique))


class Runs:
    """The n-grams of a text's words."""

    def __init__(self, words: Words):
        self.ends = np.concatenate([[0], np.cumsum(words.of("length"))])  # characters before each word
        self.hashed, self.powers, self.ids = words.of("hashed"), words.of("power"), words.ids
        self.n, self.keys = 1, self.hashed

    def joined(self, n: int) -> np.ndarray:
        """A number for each n-gram without spaces."""
        if n < self.n:
            self.n, self.keys = 1, self.hashed
        for k in range(self.n, n):
            self.keys = self.keys[:-1] * self.powers[k:] + self.hashed[k:]
        self.n = n
        return self.keys

    def top(self, n: int) -> int:
        """Characters of the most frequent n-gram, the first where several are, times how often it is there.

        Of words with a space between, so that what counts is the words themselves.
        """
        size = len(self.ids) - n + 1
        keys = np.zeros(size, np.uint64)
        for k in range(n):
            keys = keys * np.uint64(BASE) + self.ids[k : k + size].astype(np.uint64)
            keys ^= keys >> np.uint64(29)
        ordered = np.sort(keys)
        bounds = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, [size]])
        counts = np.diff(bounds)
        most = int(counts.max())
        first = 0 if most == 1 else int(np.flatnonzero(np.isin(keys, ordered[bounds[:-1]][counts == most]))[0])
        return most * int(self.ends[first + n] - self.ends[first] + n - 1)

    def repeated(self, n: int) -> int:
        """Characters of n-grams that were there before, where each such ends the words it takes. Without spaces."""
        keys = self.joined(n)
        ordered = np.sort(keys)
        again = ordered[1:][ordered[1:] == ordered[:-1]]
        if not len(again):
            return 0
        places = np.flatnonzero(np.isin(keys, again))
        seen: set[int] = set()
        chars, free = 0, 0
        for place, key in zip(places.tolist(), keys[places].tolist()):
            if place < free:
                continue
            if key in seen:
                chars += int(self.ends[place + n] - self.ends[place])
                free = place + n
            else:
                seen.add(key)
        return chars
