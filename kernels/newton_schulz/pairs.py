"""The blocks of a symmetric matrix that are computed, on the diagonal and above it, and how large they are."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from kernels.dispatch import target


def pairs(I: int, near: int) -> tuple[np.ndarray, np.ndarray]:  # noqa: E741 (blocks a side)
    """Their rows and columns, int32, in groups of `near` x `near` blocks, which share what they read."""
    rows, columns = np.triu_indices(I)
    order = np.lexsort((columns, rows, columns // near, rows // near))
    return rows[order].astype(np.int32), columns[order].astype(np.int32)


def setting(table: Mapping[tuple[str, str], Any], dtype) -> Any:
    """The entry of this dtype and of the longest name that the device's kind begins with, "" at least."""
    name, kind = jnp.dtype(dtype).name, target().kind
    return table[name, max((device for of, device in table if of == name and kind.startswith(device)), key=len)]
