"""The rows of one source, of any length, by random access over token shards.

The unit of order is a window of about a thousand documents. An epoch permutes the windows; a window permutes its
documents, plans rows from them (`data/packing.py`) and permutes those. Every choice is a function of (seed, epoch,
window), so row n needs nothing of what came before it.

A source may grow while it is read: what is left of the epoch and the new windows are permuted together, and later
epochs permute all.
"""

import functools
import threading
from typing import NamedTuple

import numpy as np

from data.config import Packing
from data.infill import SENTINELS, FillInTheMiddle
from data.order import Permutation, derive_seed
from data.packing import BestFit, Piece, Row, Split, arrange, count_rows
from data.shards import Tokens, TokenShards, end_to_end

WINDOW_DOCUMENTS = 1024
WINDOW_TOKENS = 1 << 22  # long documents make a window of fewer, to bound memory
CACHED_WINDOWS = 3  # of each source; reader threads work in one or two at a time


class Growth(NamedTuple):
    """New documents joined a source at the `place`-th window of an epoch."""

    epoch: int
    place: int


class Place(NamedTuple):
    """Where a row lies."""

    epoch: int
    place: int  # of the window in the epoch's order
    window: int
    row: int  # of the window's plan


class Source:
    """Documents of one name, by the generation in which they came, and the windows they make."""

    def __init__(
        self,
        shards: TokenShards,
        generations: list[np.ndarray],
        seed: int,
        infill: FillInTheMiddle | None = None,
    ):
        """`generations` are numbers of documents in the shards."""
        self.shards, self.seed, self.infill = shards, seed, infill
        self.documents = np.concatenate(generations)
        self.lengths = shards.lengths[self.documents]
        self.predicted = shards.predicted[self.documents]  # tokens of each that are targets
        if infill is not None:
            more = SENTINELS * infill.chosen(shards, self.documents)
            self.lengths, self.predicted = self.lengths + more, self.predicted + more
        bounds, self.windows = [np.zeros(1, np.int64)], []
        for documents in generations:
            own = window_bounds(shards.lengths[documents]) if len(documents) else np.zeros(1, np.int64)
            bounds.append(own[1:] + bounds[-1][-1])
            self.windows.append(sum(map(len, bounds)) - 1)
        self.bounds = np.concatenate(bounds)  # first document of each window, and the end

    def read(self, documents: np.ndarray, epoch: int) -> list[Tokens]:
        """Tokens of documents, given as their numbers in the shards, as an epoch has them."""
        if self.infill is None:
            return self.shards.read_tokens(documents)
        return self.infill.read(self.shards, documents, epoch)

    def order(self, epoch: int, growths: tuple[Growth, ...]) -> np.ndarray:
        """The windows of an epoch in their order; of the epoch in which the source grew, those from then on."""
        count = self.windows[len(growths)]
        if not growths or epoch > growths[-1].epoch:
            seed = derive_seed(self.seed, "windows", epoch)
            return Permutation(count, seed)(np.arange(count))
        grown = growths[-1]
        assert epoch == grown.epoch, "an epoch before the source grew has another order"
        left = self.order(epoch, growths[:-1])[grown.place :]
        joined = np.concatenate([left, np.arange(self.windows[len(growths) - 1], count)])
        seed = derive_seed(self.seed, "windows", epoch, "grown", len(growths))
        return joined[Permutation(len(joined), seed)(np.arange(len(joined)))]

    def shuffled(self, epoch: int, window: int) -> np.ndarray:
        """Documents of a window in the order of an epoch, as places in `self.documents`."""
        first, last = self.bounds[window : window + 2]
        order = Permutation(int(last - first), derive_seed(self.seed, "documents", epoch, window))
        return first + order(np.arange(last - first))


class Rows:
    """`row(n)` for every n >= 0, a pure function of the source, its growths, the row length, the packing and n.

    Row 0 is the first after the last growth.
    """

    def __init__(self, source: Source, row_length: int, packing: Packing = "split", growths: tuple[Growth, ...] = ()):
        self.source, self.row_length, self.packing, self.growths = source, row_length, packing, growths
        windows = source.windows[len(growths)]
        bounds = source.bounds[: windows + 1]
        self.rows_of_window = count_rows(packing, source.lengths, bounds, row_length)
        self.rows_per_epoch = int(self.rows_of_window.sum())
        self.first_epoch = growths[-1].epoch if growths else 0
        self._epoch = functools.lru_cache(maxsize=2)(self._load_epoch)
        self.rows_of_first = int(self._epoch(self.first_epoch)[1][-1])
        self._order = functools.lru_cache(maxsize=CACHED_WINDOWS)(self._load_order)
        self._plan = functools.lru_cache(maxsize=CACHED_WINDOWS)(self._load_plan)
        self._tokens = functools.lru_cache(maxsize=CACHED_WINDOWS)(self._load_tokens)
        self._lock = threading.Lock()  # threads that need the same window wait for the one that reads it

    def locate(self, number: int) -> Place:
        """Where row `number` lies."""
        epoch, row = self._split(number)
        order, ends = self._epoch(epoch)
        place = int(np.searchsorted(ends, row, side="right"))
        window = int(order[place])
        in_window = row - int(ends[place] - self.rows_of_window[window])
        return Place(epoch, place, window, int(self._order(epoch, window)[in_window]))

    def find(self, epoch: int, window: int, row: int) -> int | None:
        """The number of a window's row in an epoch: the inverse of `locate`. None where it came before row 0."""
        order, _ = self._epoch(epoch)
        places = np.flatnonzero(order == window)
        if not len(places):
            return None
        return self.number(epoch, int(places[0])) + int(self._shuffle(epoch, window).inverse(row))

    def number(self, epoch: int, place: int) -> int:
        """The number of the first row of a window, by its place in an epoch."""
        before = int(self._epoch(epoch)[1][place - 1]) if place else 0
        if epoch == self.first_epoch:
            return before
        return self.rows_of_first + (epoch - self.first_epoch - 1) * self.rows_per_epoch + before

    def next_window(self, number: int) -> Growth:
        """Epoch and place of the first window of which no row comes before row `number`."""
        epoch, row = self._split(number)
        order, ends = self._epoch(epoch)
        place = int(np.searchsorted(ends - self.rows_of_window[order], row, side="left"))
        return Growth(epoch, place) if place < len(ends) else Growth(epoch + 1, 0)

    def row(self, number: int) -> Row:
        """Row `number` of the endless sequence of epochs."""
        where = self.locate(number)
        with self._lock:
            tokens = self._tokens(where.epoch, where.window)
            plan = self._plan(where.epoch, where.window)[0]
        return plan.row(tokens, where.row)

    def pieces(self, number: int) -> list[Piece]:
        """What row `number` is made of; documents are numbers in the shards."""
        where = self.locate(number)
        plan, documents = self._plan(where.epoch, where.window)
        return [piece._replace(document=int(documents[piece.document])) for piece in plan.pieces(where.row)]

    def rows_with(self, document: int, epoch: int) -> list[int]:
        """Numbers of the rows of an epoch that hold tokens of a document, given as its number in the shards."""
        place = int(np.flatnonzero(self.source.documents == document)[0])
        window = int(np.searchsorted(self.source.bounds, place, side="right")) - 1
        if window >= len(self.rows_of_window):
            return []
        plan, documents = self._plan(epoch, window)
        (inside,) = np.flatnonzero(documents == document)
        found = [self.find(epoch, window, row) for row in plan.rows_with(int(inside))]
        return sorted(number for number in found if number is not None)

    def places(self, number: int) -> dict[int, int]:
        """The documents of the window of row `number`, with their places in it."""
        where = self.locate(number)
        documents = self._plan(where.epoch, where.window)[1]
        return {document: place for place, document in enumerate(documents.tolist())}

    def _split(self, number: int) -> tuple[int, int]:
        """The epoch of a row and its number in that epoch."""
        if number < self.rows_of_first:
            return self.first_epoch, number
        epochs, row = divmod(number - self.rows_of_first, self.rows_per_epoch)
        return self.first_epoch + 1 + epochs, row

    def _shuffle(self, epoch: int, window: int) -> Permutation:
        return Permutation(int(self.rows_of_window[window]), derive_seed(self.source.seed, "rows", epoch, window))

    def _load_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of windows in an epoch, and the number of rows up to the end of each."""
        order = self.source.order(epoch, self.growths)
        return order, np.cumsum(self.rows_of_window[order])

    def _load_order(self, epoch: int, window: int) -> np.ndarray:
        """The rows of a window in their order: 200 at once take as long as three, one by one."""
        return self._shuffle(epoch, window)(np.arange(self.rows_of_window[window]))

    def _load_plan(self, epoch: int, window: int) -> tuple[Split | BestFit, np.ndarray]:
        """The rows of a window, and its documents in the order of the epoch."""
        places = self.source.shuffled(epoch, window)
        plan = arrange(self.packing, self.source.lengths[places], self.row_length)
        return plan, self.source.documents[places]

    def _load_tokens(self, epoch: int, window: int) -> Tokens:
        """The documents of a window end to end."""
        return end_to_end(self.source.read(self._plan(epoch, window)[1], epoch))


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
