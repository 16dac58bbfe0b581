"""Union-find over numbered things, many pairs at a time, in files that are mapped into memory."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from core.files import allocate

CHUNK = 1 << 17  # numbers that a pass over all of them holds in memory


def mapped(path: Path, count: int, kind: type, value: int) -> np.ndarray:
    """An array of one value in a new file."""
    with path.open("wb") as file:
        allocate(file, count * np.dtype(kind).itemsize)
    array = np.memmap(path, kind, "r+", shape=(count,))
    for part in chunks(count):
        array[part] = value
    return array


def chunks(count: int) -> Iterator[slice]:
    """All numbers below `count`, a bounded number at a time."""
    return (slice(low, min(low + CHUNK, count)) for low in range(0, count, CHUNK))


class Forest:
    """Sets of numbers, each a tree whose root is its least one."""

    def __init__(self, count: int, path: Path):
        self.parents = mapped(path, count, np.int64, 0)
        for part in chunks(count):
            self.parents[part] = np.arange(part.start, part.stop)

    def roots(self, numbers: np.ndarray) -> np.ndarray:
        """Of the trees of these; they become children of their roots."""
        found = self.parents[numbers]
        while True:
            above = self.parents[found]
            self.parents[numbers] = above
            if np.array_equal(above, found):
                return found
            found = above

    def join(self, left: np.ndarray, right: np.ndarray) -> None:
        """Makes one set of the sets of each pair."""
        pairs = np.stack([left, right])
        ends = pairs
        while True:
            ends = self.roots(ends)
            ends = ends[:, ends[0] != ends[1]]
            if not ends.size:
                break
            low, high = np.sort(ends, axis=0)
            np.minimum.at(self.parents, high, low)  # of several that a root could hang on, the least; the others wait
        self.roots(pairs)

    def flat(self) -> np.ndarray:
        """The root of every number, in a mapped file."""
        for part in chunks(len(self.parents)):
            self.roots(np.arange(part.start, part.stop))
        return self.parents
