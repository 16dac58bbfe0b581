"""Batches through Grain: `batch(k)` is a pure function of the token shards, the seed, the history and k."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import grain
import numpy as np

from data.packing import Piece, empty_row
from data.plan import Plan
from data.repeats import Repeats
from data.targets import Targets

READER_THREADS = 2
PREFETCHED_BATCHES = 4

Take = Callable[[int], np.ndarray]  # rows of the global batch -> the numbers of those wanted


class Batch(NamedTuple):
    """`B` rows; see `data.packing.Row`."""

    tokens_BT: np.ndarray
    targets_BT: np.ndarray
    segment_ids_BT: np.ndarray
    positions_BT: np.ndarray
    weights_BT: np.ndarray


class TaughtBatch(NamedTuple):
    """The same, with k tokens of a teacher's distribution of each target; see `data.targets`."""

    tokens_BT: np.ndarray
    targets_BT: np.ndarray
    segment_ids_BT: np.ndarray
    positions_BT: np.ndarray
    weights_BT: np.ndarray
    teacher_ids_BTk: np.ndarray  # int32
    teacher_probs_BTk: np.ndarray  # float32; 0 where there is no target in the same document


class RowDocument(NamedTuple):
    """A piece of a document in a row of a batch."""

    row: int
    source: str
    epoch: int
    piece: Piece  # its document is a number in the shards


class Batches:
    """The batches of a run, by number or in order from any number on.

    With `take`, a host reads only rows it needs of each global batch; the others cost nothing. With `targets`,
    batches are a `TaughtBatch`. With `repeats`, what is repeated too often has no weight.
    """

    def __init__(
        self,
        plan: Plan,
        take: Take | None = None,
        targets: Targets | None = None,
        repeats: Repeats | None = None,
    ):
        self.plan, self.take, self.targets, self.repeats = plan, take, targets, repeats
        self.dataset = grain.MapDataset.source(self)

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, k: int) -> Batch | TaughtBatch:
        return self.batch(int(k))

    def batch(self, k: int) -> Batch | TaughtBatch:
        """Batch number k: the one that step k, counted from 0, trains on."""
        segment = self.plan.segment(k)
        length, rows = segment.stage.row_length, np.arange(segment.stage.rows)
        if self.take is not None:
            rows = self.take(segment.stage.rows)
        batch, taught = Batch(*(np.empty((len(rows), length), field.dtype) for field in empty_row(1))), []
        for place, row in enumerate(rows.tolist()):
            source, number = segment.locate(k, row)
            stream = segment.streams[source]
            for field_BT, field_T in zip(batch, stream.row(number)):
                field_BT[place] = field_T
            if self.targets is not None:
                taught.append(self.targets.row(stream.pieces(number), length))
        if self.repeats is not None:
            given = batch.targets_BT, batch.segment_ids_BT, batch.weights_BT
            batch = batch._replace(weights_BT=self.repeats.weights(*given))
        return TaughtBatch(*batch, *map(np.stack, zip(*taught))) if taught else batch

    def documents(self, k: int) -> list[RowDocument]:
        """Which tokens of which documents the rows of batch k are, without reading them."""
        segment, found = self.plan.segment(k), []
        names = list(segment.mixture.weights)
        for row in range(segment.stage.rows):
            source, number = segment.locate(k, row)
            stream = segment.streams[source]
            epoch = stream.epoch(number)
            found += [RowDocument(row, names[source], epoch, piece) for piece in stream.pieces(number)]
        return found

    def iterate(self, start: int, stop: int) -> Iterator[Batch | TaughtBatch]:
        """Batches start .. stop-1 in order, read ahead by threads."""
        options = grain.ReadOptions(num_threads=READER_THREADS, prefetch_buffer_size=PREFETCHED_BATCHES)
        return iter(self.dataset[start:stop].to_iter_dataset(options))
