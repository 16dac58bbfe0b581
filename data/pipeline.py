"""Batches through Grain: `batch(k)` is a pure function of the shards, the seed and k."""

from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np

from data.config import BatchConfig
from data.rows import Row, Rows
from data.shards import TokenShards

READER_THREADS = 2
PREFETCHED_BATCHES = 4
ENDLESS = 1 << 48  # rows; epochs never end, the run's steps do


class Batch(NamedTuple):
    """`B` rows; see `data.rows.Row`."""

    tokens_BT: np.ndarray
    targets_BT: np.ndarray
    segment_ids_BT: np.ndarray
    positions_BT: np.ndarray
    weights_BT: np.ndarray


class _RowSource:
    """Rows as Grain wants a source: a length and random access."""

    def __init__(self, rows: Rows):
        self.rows = rows

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, number: int) -> Row:
        return self.rows.row(int(number))


class Batches:
    """The batches of a run, by number or in order from any number on."""

    def __init__(self, shards: TokenShards, config: BatchConfig, seed: int):
        self.rows = Rows(shards, config.row_length, seed)
        self.dataset = grain.MapDataset.source(_RowSource(self.rows)).batch(config.rows, batch_fn=_stack)
        self.batches_per_epoch = self.rows.rows_per_epoch / config.rows

    def batch(self, k: int) -> Batch:
        """Batch number k."""
        return self.dataset[k]

    def iterate(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches start .. stop-1 in order, read ahead by threads."""
        options = grain.ReadOptions(num_threads=READER_THREADS, prefetch_buffer_size=PREFETCHED_BATCHES)
        return iter(self.dataset[start:stop].to_iter_dataset(options))


def _stack(rows: list[Row]) -> Batch:
    return Batch(*(np.stack(field) for field in zip(*rows)))
