"""Repeated n-grams, which are not trained on: OLMo 2 (arXiv:2501.00656) found them before spikes of its loss.

A repetition is a run of targets in one document of a row, each the same as the one a `period` of tokens before it,
that holds at least `max_count` whole periods. OLMo leaves out the whole row (its "instance") that holds one.
"""

from typing import NamedTuple

import numpy as np

SAMPLES = 4  # of the shortest run that counts, by which most rows are told to hold none


class Repeats(NamedTuple):
    """What counts as a repetition, and what is left out of the loss."""

    min_period: int
    max_period: int
    max_count: int
    whole_rows: bool = False  # that hold a repetition; else its own tokens alone

    def weights(self, targets_BT: np.ndarray, segment_ids_BT: np.ndarray, weights_BT: np.ndarray) -> np.ndarray:
        """The weights of a batch without those of repetitions."""
        repeated_BT = self.find(targets_BT, segment_ids_BT, weights_BT)
        if self.whole_rows:
            repeated_BT = repeated_BT.any(1, keepdims=True)
        return np.where(repeated_BT, np.float32(0), weights_BT)

    def find(self, targets_BT: np.ndarray, segment_ids_BT: np.ndarray, weights_BT: np.ndarray) -> np.ndarray:
        """Which targets belong to a repetition. One that is not trained on ends a run."""
        repeated_BT = np.zeros(targets_BT.shape, bool)
        for period in range(self.min_period, self.max_period + 1):
            for row in self._candidates(targets_BT, weights_BT, period):
                key_T = distinct(targets_BT[row], segment_ids_BT[row], weights_BT[row])
                for begin, end in runs(key_T, period, self.max_count):
                    repeated_BT[row, begin:end] = True
        return repeated_BT

    def _candidates(self, targets_BT: np.ndarray, weights_BT: np.ndarray, period: int) -> list[int]:
        """Rows that may hold a repetition: several targets in a row, of those looked at, are as a period before.

        A run of `shortest` places holds `needed` that are multiples of `stride`, wherever it begins.
        """
        shortest = period * (self.max_count - 1)
        stride = max(1, shortest // SAMPLES)
        needed = shortest // stride
        last = targets_BT.shape[1] - period
        if last < shortest:
            return []
        same_BS = targets_BT[:, :last:stride] == targets_BT[:, period::stride]
        same_BS &= weights_BT[:, :last:stride] > 0
        samples = same_BS.shape[1] - needed + 1
        together_BS = same_BS[:, :samples].copy()
        for later in range(1, needed):
            together_BS &= same_BS[:, later : later + samples]
        return np.flatnonzero(together_BS.any(1)).tolist()


def distinct(targets_T: np.ndarray, segment_ids_T: np.ndarray, weights_T: np.ndarray) -> np.ndarray:
    """The targets of a row as numbers that are equal only within a document; of those not trained on none are."""
    alone_T = weights_T == 0
    apart_T = np.concatenate([[True], (np.diff(segment_ids_T) != 0) | alone_T[:-1]]) | alone_T
    return np.cumsum(apart_T) << 32 | targets_T


def runs(key_T: np.ndarray, period: int, count: int) -> list[tuple[int, int]]:
    """Begin and end of each longest run in which a period is there `count` times or more."""
    differ = np.flatnonzero(key_T[period:] != key_T[:-period])
    bounds = np.concatenate([[-1], differ, [len(key_T) - period]])
    (long,) = np.nonzero(np.diff(bounds) > period * (count - 1))
    return [(int(bounds[place]) + 1, int(bounds[place + 1]) + period) for place in long]
