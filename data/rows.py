"""Rows of any length over token shards: concatenated and split, with segments and positions, by random access.

The unit of order is a window of about a thousand documents. An epoch permutes the windows; a window permutes its
documents, lays them end to end, cuts rows and permutes those. Every choice is a function of (seed, epoch, window),
so row n needs nothing of what came before it.
"""

import functools
from typing import NamedTuple

import numpy as np

from core.errors import UserError
from data.order import Permutation, derive_seed
from data.shards import TokenShards

WINDOW_DOCUMENTS = 1024
WINDOW_TOKENS = 1 << 24  # long documents make a window of fewer, to bound memory
CACHED_WINDOWS = 4  # reader threads work in one or two at a time


class Row(NamedTuple):
    """`T` tokens, the token after each, and what may see what. Padding has segment 0 and weight 0."""

    tokens_T: np.ndarray  # int32
    targets_T: np.ndarray  # int32
    segment_ids_T: np.ndarray  # int32, 1 for the first document of the row
    positions_T: np.ndarray  # int32, from 0 in each segment
    weights_T: np.ndarray  # float32, 1 where the target belongs to the same document


class Window(NamedTuple):
    """The documents of a window laid end to end in the order of one epoch."""

    tokens: np.ndarray
    starts: np.ndarray  # of each document in `tokens`, and the end
    documents: np.ndarray  # their numbers in the shards


class Rows:
    """`row(n)` for every n >= 0, a pure function of the shards, the row length, the seed and n."""

    def __init__(self, shards: TokenShards, row_length: int, seed: int):
        self.shards, self.row_length, self.seed = shards, row_length, seed
        self.bounds = window_bounds(shards.lengths)
        tokens = np.add.reduceat(shards.lengths, self.bounds[:-1])
        # The last token of a window predicts nothing; the last row of a window is padded.
        self.rows_of_window = np.maximum(-(-(tokens - 1) // row_length), 0)
        self.rows_per_epoch = int(self.rows_of_window.sum())
        if self.rows_per_epoch == 0:
            raise UserError("the corpus holds no two tokens in a row; give more text")
        self._epoch = functools.lru_cache(maxsize=2)(self._load_epoch)
        self._window = functools.lru_cache(maxsize=CACHED_WINDOWS)(self._load_window)

    def locate(self, number: int) -> tuple[int, int, int]:
        """Epoch, window and row in the window (before its shuffle) of row `number`."""
        epoch, row = divmod(number, self.rows_per_epoch)
        order, ends = self._epoch(epoch)
        place = int(np.searchsorted(ends, row, side="right"))
        window = int(order[place])
        in_window = row - int(ends[place] - self.rows_of_window[window])
        shuffle = Permutation(int(self.rows_of_window[window]), derive_seed(self.seed, "rows", epoch, window))
        return epoch, window, int(shuffle(in_window))

    def row(self, number: int) -> Row:
        """Row `number` of the endless sequence of epochs."""
        epoch, window_number, in_window = self.locate(number)
        window = self._window(epoch, window_number)
        begin = in_window * self.row_length
        return cut(window.tokens[begin : begin + self.row_length + 1], window.starts, begin, self.row_length)

    def _load_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of windows in an epoch, and the number of rows up to the end of each."""
        count = len(self.rows_of_window)
        order = Permutation(count, derive_seed(self.seed, "windows", epoch))(np.arange(count))
        return order, np.cumsum(self.rows_of_window[order])

    def _load_window(self, epoch: int, window: int) -> Window:
        first, last = self.bounds[window : window + 2]
        order = Permutation(int(last - first), derive_seed(self.seed, "documents", epoch, window))
        documents = first + order(np.arange(last - first))
        starts = np.cumsum([0, *self.shards.lengths[documents]])
        return Window(np.concatenate(self.shards.read(documents)), starts, documents)


def window_bounds(lengths: np.ndarray) -> np.ndarray:
    """First document of each window, and the end: 1,024 documents, or fewer where they are long."""
    ends = np.cumsum(lengths)
    bounds = [0]
    while bounds[-1] < len(lengths):
        first = bounds[-1]
        before = ends[first - 1] if first else 0
        full = int(np.searchsorted(ends, before + WINDOW_TOKENS, side="left")) + 1
        bounds.append(min(max(full, first + 1), first + WINDOW_DOCUMENTS, len(lengths)))
    return np.array(bounds)


def cut(tokens: np.ndarray, starts: np.ndarray, begin: int, row_length: int) -> Row:
    """A row from `row_length + 1` tokens (fewer at the end of a window) of a stream with documents at `starts`."""
    count = len(tokens)
    stream = np.arange(begin, begin + count)
    document = np.searchsorted(starts, stream, side="right")
    segments = document - document[0] + 1
    first = np.maximum(starts[document - 1], begin)
    row = Row(*(np.zeros(row_length, dtype) for dtype in (np.int32, np.int32, np.int32, np.int32, np.float32)))
    size = count - 1
    row.tokens_T[:size] = tokens[:-1]
    row.targets_T[:size] = tokens[1:]
    row.segment_ids_T[:size] = segments[:-1]
    row.positions_T[:size] = (stream - first)[:-1]
    row.weights_T[:size] = segments[1:] == segments[:-1]
    return row
