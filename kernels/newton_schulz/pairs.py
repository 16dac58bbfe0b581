"""The blocks of a symmetric matrix that are computed: on the diagonal and above it."""

import numpy as np


def pairs(I: int, near: int) -> tuple[np.ndarray, np.ndarray]:  # noqa: E741 (blocks a side)
    """Their rows and columns, int32, in groups of `near` x `near` blocks, which share what they read."""
    rows, columns = np.triu_indices(I)
    order = np.lexsort((columns, rows, columns // near, rows // near))
    return rows[order].astype(np.int32), columns[order].astype(np.int32)
