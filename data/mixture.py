"""Mixing as an index rule: which source gives row j, and how many rows it gave before, without counting.

Rows come in blocks of 256. A block takes evenly spaced points of [0, 1), offset by a term of the van der Corput
sequence, and each point belongs to the source in whose share of [0, 1) it falls, so every stretch of rows has the
mixture asked to within a row or two a source; within the block the order is shuffled. After 4,096 blocks the offsets
repeat, hence counts of any length take a table of one such cycle.
"""

import functools

import numpy as np

from core.errors import UserError
from data.order import Permutation, derive_seed

BLOCK = 256  # rows
BLOCKS = 4096  # of a cycle
CYCLE = BLOCK * BLOCKS


class Mixture:
    """The sources of an endless sequence of rows; S sources, weights of any sum."""

    def __init__(self, weights: dict[str, float], seed: int):
        self.weights, self.seed = weights, seed
        share = np.cumsum(np.array(list(weights.values()), np.float64))
        self.ends = np.rint(share / share[-1] * CYCLE).astype(np.int64)  # of each source's share of the cycle
        self.cycle_S = np.diff(self.ends, prepend=0)
        for name, rows in zip(weights, self.cycle_S):
            if not rows:
                raise UserError(f"the weight of source {name} is less than one row in {CYCLE:,}; leave it out")
        self.offsets = _van_der_corput()
        below = -(-(self.ends[:, None] - self.offsets) // BLOCKS)  # points of a block below the end of each share
        in_block = np.diff(below, axis=0, prepend=0)
        self.before = np.concatenate([np.zeros((len(weights), 1), np.int64), np.cumsum(in_block, axis=1)], axis=1)
        self.layout = functools.lru_cache(maxsize=64)(self._layout)

    def counts(self, j: int) -> np.ndarray:
        """Rows that each source gives among the first j."""
        if len(self.weights) == 1:
            return np.array([j])
        block, inside = divmod(j, BLOCK)
        cycle, block_in_cycle = divmod(block, BLOCKS)
        whole = cycle * self.cycle_S + self.before[:, block_in_cycle]
        return whole + np.bincount(self.layout(block)[:inside], minlength=len(self.weights))

    def locate(self, j: int) -> tuple[int, int]:
        """The source of row j, and how many rows it gave before."""
        if len(self.weights) == 1:
            return 0, j
        source = int(self.layout(j // BLOCK)[j % BLOCK])
        return source, int(self.counts(j)[source])

    def index(self, source: int, number: int) -> int:
        """The j of the source's row `number`: the inverse of `locate`."""
        if len(self.weights) == 1:
            return number
        cycle, rest = divmod(number, int(self.cycle_S[source]))
        block = int(np.searchsorted(self.before[source], rest, side="right")) - 1
        places = np.flatnonzero(self.layout(cycle * BLOCKS + block) == source)
        return (cycle * BLOCKS + block) * BLOCK + int(places[rest - self.before[source, block]])

    def _layout(self, block: int) -> np.ndarray:
        """The source of each row of a block."""
        points = np.arange(BLOCK) * BLOCKS + self.offsets[block % BLOCKS]
        order = Permutation(BLOCK, derive_seed(self.seed, "block", block))(np.arange(BLOCK))
        return np.searchsorted(self.ends, points, side="right")[order]


@functools.lru_cache(maxsize=1)
def _van_der_corput() -> np.ndarray:
    """The numbers below BLOCKS with their bits reversed: every stretch of them is spread evenly."""
    bits = BLOCKS.bit_length() - 1
    index = np.arange(BLOCKS)
    return sum(((index >> bit) & 1) << (bits - 1 - bit) for bit in range(bits))
