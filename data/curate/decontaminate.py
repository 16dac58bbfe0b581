"""Documents that hold an item of a benchmark are dropped: a model that has read the test is not tested by it.

An item and a document are compared by runs of words (`ngrams.py`): 13, as GPT-3's authors did (Brown et al. 2020,
appendix C), and items of 8 to 12 words as a whole, the bounds of NVIDIA's NeMo Curator. One run in common is enough.
What is asked in other words or another language is not found (Yang et al. 2023, arXiv 2311.04850).

The runs of all items are a sorted array of 64-bit hashes in a file, made once, which all workers map.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from core.config import require
from core.errors import UserError
from core.files import atomic_write, fingerprint, hash_file, read_json, write_json
from core.progress import say
from data.curate.cache import made_once
from data.curate.items import ItemFile, item_files, read_items
from data.curate.ngrams import Words, runs, words
from data.curate.step import Outcome, texts

ENDINGS = ("-hashes.npy", "-items.npy", "-bits.npy", ".json")  # of the files of an index
MAX_DETAIL = 300  # characters
BETWEEN = np.array([0x6A09E667F3BCC908], np.uint64)


@dataclasses.dataclass(frozen=True)
class Decontaminate:
    """Drops texts with a run of words of an item as `contaminated_<the item's file>`; the detail says of which."""

    version: ClassVar[int] = 1
    items: tuple[str, ...]  # files or folders of JSON, JSON lines, CSV, Parquet or text
    ngram: int = 13  # words
    min_words: int = 8  # of an item that is looked for; below `ngram`, as a whole
    fields: tuple[str, ...] = ()  # of an item that count, at any depth; none are all strings
    max_items: int = 50  # with the same run: beyond, it is the benchmark's form, such as an instruction

    def __post_init__(self):
        require(bool(self.items), "items: names no file or folder")
        require(0 < self.min_words <= self.ngram, f"min_words={self.min_words} must lie in 1 to ngram={self.ngram}")
        require(self.max_items > 0, f"max_items={self.max_items} must be positive")

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        """The reason for each text, with the item, how many runs it shares, and the first."""
        index = _index(self, _stamp(item_files(self.items)))
        found = index.find(texts(batch))
        reasons = [hit and f"contaminated_{hit.file}" for hit in found]
        return Outcome(batch, reasons, [hit and str(hit) for hit in found])

    def prepare(self) -> None:
        """Makes the index before workers ask for it at once, and says what it cannot find."""
        made = read_json(_made(self)[".json"])
        say(
            f"curate: {made['items']:,} benchmark items are looked for; {made['too_short']:,} more have fewer than "
            f"{self.min_words} words and cannot be, {made['common']:,} runs of words are in more than "
            f"{self.max_items} items and are not"
        )

    def files(self) -> list[Path]:
        """The items."""
        return [file.path for file in item_files(self.items)]


class Hit(NamedTuple):
    """The item that a text shares the most runs with."""

    file: str
    number: int  # of the item in its file, from 1
    runs: int
    words: str  # the first

    def __str__(self) -> str:
        return f"{self.file}:{self.number}, n-grams in common: {self.runs}, the first: {self.words}"[:MAX_DETAIL]


class Shared(NamedTuple):
    """Runs of so many words that texts share with items."""

    size: int
    places: np.ndarray
    items: np.ndarray


class Index(NamedTuple):
    """The runs of all items, ready to be asked."""

    hashes: np.ndarray  # sorted, of the runs
    items: np.ndarray  # the first item with each
    bits: np.ndarray  # one for each hash's highest bits: most runs of a text need not be searched for
    sizes: tuple[int, ...]  # words of a run
    files: tuple[tuple[str, int], ...]  # name, and the number of its first item

    def find(self, texts: list[str]) -> list[Hit | None]:
        """What of the items is in each text. They are looked at end to end, a number that is no word between them."""
        split = list(map(words, texts))
        ends = np.cumsum([len(one.hashed) + 1 for one in split])
        hashed = np.concatenate([part for one in split for part in (one.hashed, BETWEEN)])
        shared = [Shared(n, *self._shared(keys)) for n, keys in runs(hashed, self.sizes)]
        places, items = (np.concatenate([getattr(one, name) for one in shared]) for name in ("places", "items"))
        sizes = np.concatenate([np.full(len(one.places), one.size) for one in shared])
        found: list[Hit | None] = [None] * len(texts)
        of = np.searchsorted(ends, places, side="right")
        for text in np.unique(of).tolist():
            own = of == text
            begin = ends[text] - len(split[text].hashed) - 1
            found[text] = self._hit(split[text], places[own] - begin, sizes[own], items[own])
        return found

    def _shared(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of the runs are an item's, and of which."""
        near = np.flatnonzero(_has(self.bits, keys))
        at = np.minimum(np.searchsorted(self.hashes, keys[near]), len(self.hashes) - 1)
        same = self.hashes[at] == keys[near]
        return near[same], self.items[at[same]]

    def _hit(self, split: Words, places: np.ndarray, sizes: np.ndarray, items: np.ndarray) -> Hit:
        """The item with the most runs, of several the first."""
        unique, counts = np.unique(items, return_counts=True)
        most = int(unique[counts.argmax()])
        first = min(np.flatnonzero(items == most), key=lambda one: (places[one], -sizes[one]))
        name, begin = next(pair for pair in reversed(self.files) if pair[1] <= most)
        return Hit(name, most - begin + 1, int(counts.max()), split.span(int(places[first]), int(sizes[first])))


def _slots(bits: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The bit of each hash."""
    return (keys >> np.uint64(64 - (8 * len(bits)).bit_length() + 1)).view(np.int64)


def _has(bits: np.ndarray, keys: np.ndarray) -> np.ndarray:
    slots = _slots(bits, keys)
    return bits[slots >> 3] >> (slots & 7).astype(np.uint8) & 1


def _stamp(files: list[ItemFile]) -> tuple[tuple[str, int, int], ...]:
    """Changes when an item does."""
    stats = ((file.path, file.path.stat()) for file in files)
    return tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats)


@functools.lru_cache(maxsize=4)
def _index(step: Decontaminate, stamp: tuple[tuple[str, int, int], ...]) -> Index:
    """The index in this process, read once for each state of the items."""
    del stamp
    paths = _made(step)
    made = read_json(paths[".json"])
    try:
        files = (paths[f"-{name}.npy"] for name in ("hashes", "items", "bits"))
        arrays = [np.asarray(np.load(file, mmap_mode="r")) for file in files]  # as plain arrays: half the time
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{paths['.json'].parent}: {error}; remove the index, and it is made again") from error
    return Index(*arrays, tuple(made["sizes"]), tuple(map(tuple, made["files"])))


def _made(step: Decontaminate) -> dict[str, Path]:
    """The files of the index by their endings, made where they are not there."""
    files = item_files(step.items)
    of = {**dataclasses.asdict(step), "items": [[file.name, hash_file(file.path)] for file in files]}
    name = f"items-{fingerprint({'version': step.version, **of})[:16]}"

    def make(paths: list[Path]) -> None:
        arrays, said = _build(step, files)
        for path, array in zip(paths, arrays):
            with atomic_write(path) as out:
                np.save(out, array)
        write_json(paths[-1], said)

    what = f"the runs of words of {len(files):,} files of items"
    return dict(zip(ENDINGS, made_once([f"{name}{end}" for end in ENDINGS], make, what)))


def _build(step: Decontaminate, files: list[ItemFile]) -> tuple[list[np.ndarray], dict[str, Any]]:
    """The arrays of an index, and what is to be said of it."""
    keys, owners, begins = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint32)], []
    items, too_short, sizes = 0, 0, set()
    for file in files:
        begins.append((file.name, items + too_short))
        for strings in read_items(file.path, step.fields):
            own = [keys_n for string in strings for keys_n in _runs_of(string, step)]
            if own:
                keys.append(np.unique(np.concatenate([keys_n for _, keys_n in own])))
                owners.append(np.full(len(keys[-1]), items + too_short, np.uint32))
                sizes.update(n for n, _ in own)
            items, too_short = items + bool(own), too_short + (not own)
    hashes, first, counts = np.unique(np.concatenate(keys), return_index=True, return_counts=True)
    special = counts <= step.max_items
    hashes, found = hashes[special], np.concatenate(owners)[first[special]]
    if not len(hashes):
        raise UserError(f"decontaminate: no item of {step.items} has {step.min_words} words in a string")
    said = {"items": items, "too_short": too_short, "common": int((~special).sum())}
    return [hashes, found, _bits(hashes)], {**said, "sizes": sorted(sizes), "files": begins}


def _runs_of(string: str, step: Decontaminate) -> list[tuple[int, np.ndarray]]:
    """Those of `ngram` words; the whole of a string that has fewer, if it has enough."""
    hashed = words(string).hashed
    size = min(len(hashed), step.ngram)
    return list(runs(hashed, (size,))) if size >= step.min_words else []


def _bits(hashes: np.ndarray) -> np.ndarray:
    """At least 64 for each hash, one of them set: 1 in 64 runs or fewer is searched for in vain."""
    bits = np.zeros(1 << (8 * len(hashes)).bit_length(), np.uint8)
    slots = _slots(bits, hashes)
    np.bitwise_or.at(bits, slots >> 3, np.uint8(1) << (slots & 7).astype(np.uint8))
    return bits
