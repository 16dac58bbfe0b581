"""Runs of a text's words as 64-bit numbers, whatever its case, punctuation and white space.

A word is a run of letters and digits of the text in Unicode's form NFKC and lower case; apostrophes and invisible
characters inside do not part it. Of scripts written without spaces, Chinese characters and Japanese kana are words
of their own. All characters are looked at in numpy, a piece of the text at a time: 25 MB a second on a core.
"""

import functools
import unicodedata
from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np

PIECE = 1 << 17  # characters at a time: a megabyte for each of the arrays
BASE = 0x9E3779B97F4A7C15  # of the polynomials that stand for words, modulo 2**64; odd, so that it has an inverse
GAP, WORD, ALONE, NOTHING = range(4)  # what a character is
ASSIGNED = 0x33480  # beyond these code points there are no letters
LONE = ((0x3041, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))
UNSEEN = "'\u2019\u02bc\u00ad\u200b\u200c\u200d\u2060\ufeff"


class Words(NamedTuple):
    """The words of a text."""

    text: str  # simplified
    starts: np.ndarray  # where in it each begins
    hashed: np.ndarray

    def span(self, place: int, n: int) -> str:
        """The words from `place` on."""
        end = self.starts[place + n] if place + n < len(self.starts) else len(self.text)
        return " ".join(self.text[self.starts[place] : end].split())


def words(text: str) -> Words:
    """Splits a text, and gives each word its number."""
    text = unicodedata.normalize("NFKC", text).lower()
    starts, hashed = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
    begin = 0
    while begin < len(text):
        at, numbers = _piece(text[begin : begin + PIECE])
        end = begin + PIECE
        if end < len(text) and len(at) and at[-1]:  # the last word may go on: it begins the next piece
            end = begin + int(at[-1])
            at, numbers = at[:-1], numbers[:-1]
        starts.append(at + begin)
        hashed.append(numbers)
        begin = end
    return Words(text, np.concatenate(starts), np.concatenate(hashed))


def runs(hashed: np.ndarray, sizes: Collection[int]) -> Iterator[tuple[int, np.ndarray]]:
    """For each of the sizes in order, a number of each run of so many words."""
    keys = hashed
    for n in range(1, max(sizes, default=0) + 1):
        if n > 1:
            keys = keys[:-1] * np.uint64(BASE)
            keys += hashed[n - 1 :]
        if n in sizes:
            yield n, _mixed(keys + np.uint64(n))


def _piece(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Where words begin, and their numbers."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds, places = _kinds()[codes], None
    if (kinds == NOTHING).any():
        places = np.flatnonzero(kinds != NOTHING)
        codes, kinds = codes[places], kinds[places]
    inside, alone = kinds != GAP, kinds == ALONE
    begins = inside.copy()
    begins[1:] &= ~inside[:-1] | alone[1:] | alone[:-1]
    at = np.flatnonzero(begins)
    if not len(at):
        return at, np.zeros(0, np.uint64)
    powers, inverses = _powers()
    # A word's polynomial times the power of where it begins; the gap behind it adds nothing.
    sums = np.add.reduceat(codes * inside * powers[: len(codes)], at)
    numbers = _mixed(sums * inverses[at])
    return (at if places is None else places[at]), numbers


def _mixed(keys: np.ndarray) -> np.ndarray:
    """Every bit depends on every bit (Steele et al. 2014, splitmix64)."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


@functools.cache
def _powers() -> tuple[np.ndarray, np.ndarray]:
    """Of the base and of its inverse modulo 2**64."""
    both = (np.full(PIECE, base, np.uint64) for base in (BASE, pow(BASE, -1, 2**64)))
    powers, inverses = (np.cumprod(np.concatenate([np.ones(1, np.uint64), ones])) for ones in both)
    return powers, inverses


@functools.cache
def _kinds() -> np.ndarray:
    """What each code point is, in lower case."""
    kinds = np.zeros(0x110000, np.uint8)
    for code in range(ASSIGNED):
        if chr(code).isalnum() or unicodedata.category(chr(code))[0] == "M":
            kinds[code] = WORD
    for first, last in LONE:
        kinds[first : last + 1][kinds[first : last + 1] == WORD] = ALONE
    kinds[list(map(ord, UNSEEN))] = NOTHING
    kinds[0xFE00:0xFE10] = NOTHING  # which of its forms a character takes
    return kinds
