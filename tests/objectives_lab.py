"""What tests of objectives share: batches of a few tokens."""

import numpy as np

from data.pipeline import Batch

T, V = 12, 48  # of a row, of the vocabulary


def make_batch(packed: bool = True, rows: int = 2, seed: int = 0) -> Batch:
    """Rows of two documents, padding at the end, and a few tokens that are not trained on; or one document a row."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, V, (rows, T + 1)).astype(np.int32)
    segments, weights = np.ones((rows, T), np.int32), np.ones((rows, T), np.float32)
    positions = np.tile(np.arange(T, dtype=np.int32), (rows, 1))
    if packed:
        for row in range(rows):
            first = 5 + row
            segments[row, first:], segments[row, -1] = 2, 0
            positions[row, first:] = np.arange(T - first)
            weights[row, [first - 1, T - 2, T - 1]] = 0  # ends of documents, and padding
            weights[row, 2] = 0
    return Batch(tokens[:, :-1], tokens[:, 1:], segments, positions, weights)


def batch_of(step: int) -> Batch:
    """For whole steps: two documents a row, in different places, some tokens without a weight."""
    random = np.random.default_rng(step)
    tokens = random.integers(0, 64, (8, 17)).astype(np.int32)
    second = np.arange(16) >= random.integers(1, 16, (8, 1))
    positions = np.arange(16) - np.where(second, second.argmax(1)[:, None], 0)
    weights = (random.random((8, 16)) < 0.8).astype(np.float32)
    return Batch(tokens[:, :-1], tokens[:, 1:], second.astype(np.int32), positions.astype(np.int32), weights)
