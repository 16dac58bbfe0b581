"""Clusters of near-duplicates: documents that share a bucket of their signatures, directly or through others.

What grows with their number lies in files, about 450 bytes a document of 14 buckets, read in order or mapped into
memory. Memory itself holds the keys of some documents, or a range of the keys of one bucket.
"""

import contextlib
import heapq
import itertools
import math
import mmap
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.progress import track
from data.curate import shuffle, signatures
from data.curate.forest import Forest, chunks, mapped
from data.curate.minhash import COLUMN, MIX
from data.curate.seen import Seen

Keep = Literal["first", "longest"]
WRITTEN = 1 << 17  # documents whose keys are sorted and written together, 29 MB
SHUFFLED = 1 << 16  # rows that are brought together at a time: Daft takes 400 bytes for each
ROW_GROUP = 1 << 12  # of a file of keys; those of other ranges are not read
IN_ORDER = 1 << 19  # members of clusters that are put in order together
READ = 1 << 12  # of each run of those at a time


class Member(NamedTuple):
    """A document of a cluster of more than one."""

    id: str
    order: int
    dropped: bool
    kept: str  # the document that stays
    size: int  # of the cluster


def members(
    files: Sequence[Path],
    known: Sequence[Path],
    where: Path,
    keep: Keep = "first",
    on: shuffle.Runner = "native",
    address: str | None = None,
) -> Iterator[Member]:
    """The documents of files of signatures that are in clusters of more than one, sorted by `order` and id.

    One of a cluster stays: the first of this order, or the longest and of several the first. Where documents of
    `known` files, curated before, are in it, none of the others does, and `kept` is of them; they are not told
    themselves. All is decided before the first comes out, in a folder inside `where`, which on a cluster of Ray all
    machines see.
    """
    buckets = int(signatures.settings([*known, *files]).get("buckets", 0))
    folder = (where / ".clusters").absolute()  # the other machines of a cluster work in folders of their own
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir(parents=True)
    try:
        with _Writer(folder, buckets) as writer:
            before = writer.add(known)
            count = before + writer.add(files)
        del writer  # and what it holds
        if count > before:
            forest = Forest(count, folder / "parents")
            for bucket in track(range(buckets), "buckets", buckets):
                for left, right in _pairs(folder / f"bucket-{bucket}", count, on, address):
                    forest.join(left, right)
                shutil.rmtree(folder / f"bucket-{bucket}")
            yield from _Clusters(folder, forest.flat(), before, keep)
    finally:
        shutil.rmtree(folder)


def duplicates(
    files: Sequence[Path], known: Sequence[Path], where: Path, keep: Keep = "first", **runner
) -> Iterator[Member]:
    """Those of `members` that are dropped."""
    return (member for member in members(files, known, where, keep, **runner) if member.dropped)


class _Writer:
    """Numbers documents in the order of their files, and writes what is asked of them later and their keys."""

    def __init__(self, folder: Path, buckets: int):
        self.folder, self.buckets = folder, buckets
        self.first = 0  # of the documents whose keys wait to be written
        self.keys = np.empty((WRITTEN + signatures.ROWS, buckets, 2), np.int64)
        self.count, self.bytes = 0, 0  # of all documents, and of their ids

    def __enter__(self) -> "_Writer":
        with contextlib.ExitStack() as stack:
            names = ("ids", "ends", "order", "shortness")
            self.ids, self.ends, self.order, self.shortness = (
                stack.enter_context((self.folder / name).open("wb")) for name in names
            )
            stack.callback(self._write_keys)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *failure: object) -> bool | None:
        return self.stack.__exit__(*failure)

    def add(self, files: Sequence[Path]) -> int:
        """All documents of files that have a signature; how many they are.

        Of an id that is there twice the first counts, as in the merge of the runs.
        """
        before = self.count
        with Seen(self.folder / "seen", sum(pq.read_metadata(path).num_rows for path in files)) as seen:
            for rows in itertools.chain.from_iterable(map(signatures.read, files)):
                first = pa.array(map(seen.add, rows.column("id").to_pylist()), pa.bool_())
                self._add(rows.filter(pc.and_(first, pc.is_valid(rows.column(COLUMN)))))
        return self.count - before

    def _add(self, batch: pa.RecordBatch) -> None:
        if not len(batch):
            return
        ids = [one.encode() for one in batch.column("id").to_pylist()]
        self.ids.write(b"".join(ids))
        ends = self.bytes + np.cumsum(list(map(len, ids)))
        self.bytes = int(ends[-1])
        self.ends.write(ends.astype(np.int64))
        self.order.write(batch.column("order").to_numpy())
        self.shortness.write(~batch.column("chars").to_numpy())
        waiting = self.count - self.first
        self.keys[waiting : waiting + len(batch)] = bucket_keys(signatures.numbers(batch), self.buckets)
        self.count += len(batch)
        if self.count - self.first >= WRITTEN:
            self._write_keys()

    def _write_keys(self) -> None:
        """Sorted, so that a range of them is in few row groups."""
        waiting = self.count - self.first
        if not waiting:
            return
        for bucket, (high, low) in enumerate(self.keys[:waiting].transpose(1, 2, 0)):
            rows = np.argsort(high)
            table = pa.table([high[rows], low[rows], self.first + rows], schema=shuffle.SCHEMA)
            path = self.folder / f"bucket-{bucket}" / f"{self.first}.parquet"
            path.parent.mkdir(exist_ok=True)
            pq.write_table(table, path, row_group_size=ROW_GROUP, compression="none", use_dictionary=False)
        self.first = self.count


def bucket_keys(numbers: np.ndarray, buckets: int) -> np.ndarray:
    """[documents, buckets, 2]: 128 bits for the hashes of each bucket, the same for the same hashes.

    Of a billion documents in a bucket two share them by chance with a probability of 10^-21.
    """
    found = np.zeros((2, len(numbers), buckets), np.uint64)
    for column in np.moveaxis(numbers.reshape(len(numbers), buckets, -1), -1, 0):
        for value, factor in zip(found, MIX):
            value ^= column
            value *= np.uint64(factor)
            value ^= value >> np.uint64(32)
    return np.moveaxis(found, 0, -1).view(np.int64)


def _pairs(
    folder: Path, count: int, on: shuffle.Runner, address: str | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The documents that share a key: the first of them beside each other one."""
    files, parts = sorted(folder.iterdir()), math.ceil(count / SHUFFLED)
    bounds = [2**64 * part // parts - 2**63 for part in range(parts + 1)]
    for first, after in itertools.pairwise(bounds):
        table = shuffle.repeated(files, first, after - 1, on, address)
        high, low, number = (column.to_numpy() for column in table.columns)
        again = np.flatnonzero((high[1:] == high[:-1]) & (low[1:] == low[:-1])) + 1
        begins = np.arange(len(number))
        begins[again] = 0
        yield number[np.maximum.accumulate(begins)][again], number[again]


class _Clusters:
    """The sets of documents that became of the pairs: which of each stays, and all members in order."""

    def __init__(self, folder: Path, roots: np.ndarray, before: int, keep: Keep):
        self.folder, self.roots, self.before, count = folder, roots, before, len(roots)
        self.order, self.ends = (np.memmap(folder / name, np.uint64, "r") for name in ("order", "ends"))
        self.sizes = mapped(folder / "sizes", count, np.int64, 0)
        for part in chunks(count):
            np.add.at(self.sizes, roots[part], 1)
        with (folder / "ids").open("rb") as file:
            self.ids = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        shortness = np.memmap(folder / "shortness", np.uint64, "r")
        self.kept = self._choose([shortness, self.order] if keep == "longest" else [self.order])

    def id(self, number: int) -> str:
        """Of a document."""
        return self.ids[self.ends[number - 1] if number else 0 : self.ends[number]].decode()

    def _choose(self, ranks: list[np.ndarray]) -> np.ndarray:
        """By its root the document of each cluster that stays: of least rank, and of several the one of least id."""
        count = len(self.roots)
        able = mapped(self.folder / "able", count, np.bool_, 0)
        for part in chunks(count):
            roots = self.roots[part]
            able[part] = (self.sizes[roots] > 1) & (
                (np.arange(part.start, part.stop) < self.before) | (roots >= self.before)
            )
        for rank in ranks:
            least = mapped(self.folder / "least", count, np.uint64, 2**64 - 1)
            for part in chunks(count):
                np.minimum.at(least, self.roots[part][able[part]], rank[part][able[part]])
            for part in chunks(count):
                able[part] &= rank[part] == least[self.roots[part]]
        kept = mapped(self.folder / "kept", count, np.int64, -1)
        for part in chunks(count):
            numbers = part.start + np.flatnonzero(able[part])
            roots = self.roots[numbers]
            new = kept[roots] < 0
            kept[roots[new]] = numbers[new]
            tied = kept[roots] != numbers
            for root, number in zip(roots[tied].tolist(), numbers[tied].tolist()):
                if self.id(number) < self.id(kept[root]):
                    kept[root] = number
        return kept

    def __iter__(self) -> Iterator[Member]:
        """The members of clusters of more than one that were not known before, by order and id."""
        runs = []
        for low in range(self.before, len(self.roots), IN_ORDER):
            roots = self.roots[low : low + IN_ORDER]
            numbers = low + np.flatnonzero(self.sizes[roots] > 1)
            runs.append(self.folder / f"run-{low}.npy")
            np.save(runs[-1], self._sorted(numbers))
        return heapq.merge(*map(self._read, runs), key=lambda member: (member.order, member.id))

    def _sorted(self, numbers: np.ndarray) -> np.ndarray:
        order = self.order[numbers]
        rows = np.argsort(order)
        order = order[rows]
        if (order[1:] == order[:-1]).any():  # once in some billion documents
            return np.array(sorted(numbers.tolist(), key=lambda number: (self.order[number], self.id(number))))
        return numbers[rows]

    def _read(self, run: Path) -> Iterator[Member]:
        numbers = np.load(run, mmap_mode="r")
        for low in range(0, len(numbers), READ):
            own = numbers[low : low + READ]
            roots = self.roots[own]
            columns = (own, self.order[own], self.kept[roots], self.sizes[roots])
            for number, order, kept, size in zip(*(column.tolist() for column in columns)):
                name, other = self.id(number), self.id(kept)
                yield Member(name, order, number != kept, other, size)
