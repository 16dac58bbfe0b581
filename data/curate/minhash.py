"""MinHash signatures, by which near-duplicates are found: FineWeb's arithmetic, bit for bit as datatrove 0.10 has it.

A text without case, accents, punctuation and the values of numbers is split into words. Of the hashes of its runs of
five words 112 functions each keep the least. Two texts that share a part s of their runs agree in each of the 112
with probability s, and in one of 14 buckets of 8 with 1 - (1 - s^8)^14: 0.36 at s = 0.65, 0.92 at 0.8, 1.00 at 0.9.
"""

import dataclasses
import functools
import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from core.config import require
from data.curate import shuffle
from data.curate.step import Outcome, texts
from data.curate.words import PUNCTUATION, RARE, REMEMBERED, packages_of, tokenizer

COLUMN = "minhash"
OWN, ANY = "own", "xx"  # each document's language; that of documents of which it is not known
PRIME = np.uint64(2**61 - 1)
GROUP = 1 << 20  # characters of texts that go through together
BLOCK = 16384  # hashes that are permuted together: with two of its like they stay in the cache of a core
NUMBER = re.compile(r"\d+(?:[.,\u060c\u066b\u2396-\u2398]\d+)?")  # digits of any script, with a decimal mark
MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # SplitMix64's, which make every bit depend on every other


@dataclasses.dataclass(frozen=True)
class MinHash:
    """Adds the column `minhash`, by which the engine finds documents that are nearly the same; drops nothing.

    It holds 64-bit integers, little-endian, one bucket after the other, and null for texts of fewer words than a run
    has. `fast` does without SHA-1, spaCy and the prime: other signatures than FineWeb's, of the same probabilities.
    """

    version: ClassVar[int] = 1
    language: str = "en"  # whose rules split words; `own` are those of each document's language, as in FineWeb-2
    ngrams: int = 5  # words of a run
    buckets: int = 14
    hashes_per_bucket: int = 8
    seed: int = 1
    method: Literal["fineweb", "fast"] = "fineweb"
    keep: Literal["first", "longest"] = "first"  # of documents that are nearly the same; first by hash of the id

    @property
    def packages(self) -> tuple[str, ...]:
        """Those whose versions decide."""
        return packages_of(self.language)

    def __post_init__(self):
        for name in ("ngrams", "buckets", "hashes_per_bucket"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        require(0 <= self.seed < 2**32, f"seed={self.seed} must be in [0, 2^32)")
        require(
            (self.language, self.method) != (OWN, "fast"),
            f"method=fast splits words of every language alike and takes no language={OWN}",
        )

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        """The batch with a signature of each text."""
        given = texts(batch)
        found = np.empty((len(given), self.buckets * self.hashes_per_bucket), np.uint64)
        for language, rows in self._rows(batch).items():
            groups = _groups([given[row] for row in rows])
            found[rows] = np.concatenate([self.signatures(group, language) for group in groups])
        missing = (found == EMPTY).all(1)
        storage = pa.py_buffer(np.packbits(~missing, bitorder="little")), pa.py_buffer(found.astype("<u8", order="C"))
        column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(8 * found.shape[1]), len(found), list(storage))
        return Outcome(batch.append_column(COLUMN, column), [None] * len(found))

    def _rows(self, batch: pa.RecordBatch) -> dict[str, list[int]]:
        """Documents by the language whose rules split their words."""
        if self.language != OWN:
            return {self.language: list(range(len(batch)))}
        rows: dict[str, list[int]] = {}
        for row, language in enumerate(batch.column("language").to_pylist()):
            rows.setdefault(language or ANY, []).append(row)
        return rows

    def signatures(self, group: list[str], language: str) -> np.ndarray:
        """[texts, hashes]; `EMPTY` throughout where a text has too few words."""
        runs, counts = METHODS[self.method](group, language, self.ngrams)
        return least(runs, counts, *parameters(self.seed, self.buckets * self.hashes_per_bucket), self.method)


EMPTY = np.uint64(2**64 - 1)


def _groups(given: list[str]) -> Iterator[list[str]]:
    """Texts in their order, so many that the arrays made of them are neither small nor large."""
    group, room = [], GROUP
    for text in given:
        group.append(text)
        room -= len(text)
        if room < 0:
            yield group
            group, room = [], GROUP
    yield group


@functools.cache
def parameters(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors and summands of the functions, from the generator that datatrove takes."""
    generator = np.random.RandomState(seed)
    factors = generator.randint(1, PRIME, dtype=np.uint64, size=(1, count))
    return factors[0], generator.randint(0, PRIME, dtype=np.uint64, size=(1, count))[0]


def least(
    hashes: np.ndarray, counts: np.ndarray, factors: np.ndarray, summands: np.ndarray, method: str
) -> np.ndarray:
    """The least value of each function over the hashes of each text, `counts` of them one text after the other."""
    found = np.full((len(factors), len(counts)), EMPTY)
    ends = np.cumsum(counts)
    work = np.empty((2, BLOCK), np.uint64)
    for low in range(0, len(hashes), BLOCK):
        block = hashes[low : low + BLOCK]
        value, spare = work[:, : len(block)]
        first, last = np.searchsorted(ends, [low, low + len(block) - 1], "right")
        here = first + np.flatnonzero(counts[first : last + 1])  # the texts that have hashes in the block
        begins = np.maximum(ends[here] - counts[here] - low, 0)
        for row, factor, summand in zip(found, factors, summands):
            if method == "fast":
                np.multiply(block, factor | np.uint64(1), out=value)
            else:
                _modular(block, factor, summand, value, spare)
            row[here] = np.minimum(row[here], np.minimum.reduceat(value, begins))
    return found.T


def _modular(hashes: np.ndarray, factor: np.uint64, summand: np.uint64, value: np.ndarray, spare: np.ndarray) -> None:
    """`value` = (hashes * factor + summand modulo 2^64) modulo 2^61 - 1."""
    np.multiply(hashes, factor, out=value)
    value += summand
    np.right_shift(value, 61, out=spare)
    value &= PRIME
    value += spare  # at most 7 above the prime
    np.subtract(value, PRIME, out=spare)  # wraps to the end of the range where it is below
    np.minimum(value, spare, out=value)


def fineweb_runs(group: list[str], language: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The first 8 bytes of SHA-1 of every run of n words with spaces between, and how many runs each text has."""
    split = _spacy_words(language)
    encoded = [b"".join(map(split.__getitem__, text.split())) for text in group]
    joined = b"".join(encoded)
    spaces = np.flatnonzero(np.frombuffer(joined, np.uint8) == ord(" "))  # one after each word
    begins, counts = _run_places(np.diff(np.searchsorted(spaces, np.cumsum([0, *map(len, encoded)]))), n)
    ends = np.append(0, spaces - np.arange(len(spaces)))  # of the words without the spaces
    buffers = [None, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(joined.replace(b" ", b""))]
    words = pa.BinaryArray.from_buffers(pa.binary(), len(spaces), buffers)
    size = max(len(words) - n + 1, 0)
    runs = pc.binary_join_element_wise(*(words.slice(k, size) for k in range(n)), b" ")
    return shuffle.sha1(runs)[begins], counts


def fast_runs(group: list[str], language: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """As `fineweb_runs`, but words end at white space and punctuation, and the hash of a run follows from theirs."""
    del language
    split = _hashed_words()
    encoded = [b"".join(map(split.__getitem__, text.split())) for text in group]
    words = np.frombuffer(b"".join(encoded), "<u8")
    begins, counts = _run_places(np.array([len(one) // 8 for one in encoded]), n)
    hashes = np.zeros(len(begins), np.uint64)
    for k in range(n):
        hashes *= np.uint64(MIX[0])
        hashes += words[begins + k]
    for factor in MIX:
        hashes ^= hashes >> np.uint64(30)
        hashes *= np.uint64(factor)
    return hashes ^ (hashes >> np.uint64(31)), counts


METHODS: dict[str, Callable] = {"fineweb": fineweb_runs, "fast": fast_runs}


def _run_places(words: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The first word of every run that lies within a text, and how many there are of each text."""
    last = np.cumsum(words) - n  # the first word of the last run of each text
    begins = np.arange(max(int(words.sum()) - n + 1, 0))
    return begins[np.repeat(last, words)[: len(begins)] >= begins], np.maximum(words - n + 1, 0)


class _Remembered(dict):
    """What strings become, found when they are first asked for; long ones seldom come again and are not kept."""

    def __init__(self, find: Callable[[str], bytes]):
        super().__init__()
        self.find = find

    def __missing__(self, key: str) -> bytes:
        found = self.find(key)
        if len(key) <= RARE:
            if len(self) >= REMEMBERED:
                self.clear()
            self[key] = found
        return found


@functools.cache
def _spacy_words(language: str) -> _Remembered:
    """What pieces of text become: words as UTF-8, each with a space behind it."""
    tokens = tokenizer(language)
    return _pieces(lambda text: "".join(f"{word} " for word in tokens(text)).encode())


@functools.cache
def _hashed_words() -> _Remembered:
    """What pieces of text become: a hash of each word."""
    return _pieces(lambda word: hashlib.blake2b(word.encode(), digest_size=8).digest())


def _pieces(encode: Callable[[str], bytes]) -> _Remembered:
    simple = _Remembered(encode)
    return _Remembered(lambda piece: b"".join(map(simple.__getitem__, simplify(piece).split())))


class _Plain(dict):
    """Characters by number without their accents; punctuation is a space."""

    def __missing__(self, code: int) -> str:
        decomposed = unicodedata.normalize("NFD", chr(code))
        self[code] = "".join(part for part in decomposed if unicodedata.category(part) != "Mn")
        return self[code]


PLAIN = _Plain(dict.fromkeys(map(ord, PUNCTUATION), " "))


def simplify(piece: str) -> str:
    """A piece of text without case, accents, punctuation and the values of numbers.

    Every rule looks at single characters or at digits, so that pieces become what they do within a text.
    """
    piece = piece.lower()
    if piece.isascii() and piece.isalpha():
        return piece
    return NUMBER.sub("0", piece).translate(PLAIN)
