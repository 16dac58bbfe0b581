"""Which pairs of blocks have anything to see: what causality, a window or packed documents empty is left out.

A schedule lists pairs (block of queries, block of keys), ordered so that one of the two stays for a while. It is the
grid of a kernel: an emptied pair costs nothing, not even a step. With segment ids its length depends on the data, and
so it does where queries are a stretch of the row: `first` is the position of the first, None where they are the row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def own_ids(segment_ids_BS: jax.Array, first: int | jax.Array, T: int) -> jax.Array:
    """Segment ids of T queries, the first of which is at position `first` of the row."""
    if isinstance(first, int):
        return segment_ids_BS[:, first : first + T]
    return jax.lax.dynamic_slice_in_dim(segment_ids_BS, first, T, 1)


class Blocks(NamedTuple):
    """How rows are cut: I blocks of t queries, J blocks of s keys."""

    t: int
    s: int
    I: int  # noqa: E741 (the alphabet of shapes)
    J: int


class Schedule(NamedTuple):
    """Pairs in order."""

    # int32 [pairs + 2]: the block that stays, as b * I + i or b * J + j; -1 before and behind the list
    stays_P: jax.Array
    moves_P: (
        jax.Array
    )  # int32 [pairs]: 2 * the other block of its batch entry, + 1 where some pair of tokens is hidden
    count: int | jax.Array  # pairs to visit; those behind fill the arrays up


def by_query(
    blocks: Blocks, B: int, segment_ids_BS: jax.Array | None, window: int | jax.Array | None, first=None
) -> Schedule:
    """Each block of queries with all blocks of keys that it sees: for the forward pass and the queries' gradient."""
    return _listed(blocks, B, *visible_pairs(blocks, segment_ids_BS, window, first), first is not None)


def by_key(
    blocks: Blocks, B: int, segment_ids_BS: jax.Array | None, window: int | jax.Array | None, first=None
) -> Schedule:
    """Each block of keys with all blocks of queries that see it: for the gradients of keys and values."""
    visible_BIJ, whole_BIJ = visible_pairs(blocks, segment_ids_BS, window, first)
    if first is not None:  # a block that nobody sees is visited once, in vain, so that its gradient is written
        unseen_B1J = ~visible_BIJ.any(1, keepdims=True)
        visible_BIJ = visible_BIJ | unseen_B1J & (np.arange(blocks.I)[:, None] == 0)
    return _listed(blocks, B, visible_BIJ.swapaxes(1, 2), whole_BIJ.swapaxes(1, 2), first is not None)


def visible_pairs(blocks, segment_ids_BS, window, first=None):
    """[B or 1, I, J]: some pair of tokens may be visible; all are. NumPy arrays where nothing depends on data."""
    most_IJ, least_IJ = _distances(blocks, first)
    visible_BIJ, whole_BIJ = (most_IJ >= 0)[None], (least_IJ >= 0)[None]
    if window is not None:
        visible_BIJ, whole_BIJ = visible_BIJ & (least_IJ < window), whole_BIJ & (most_IJ < window)
    if segment_ids_BS is not None:
        B = len(segment_ids_BS)
        segment_ids_BT = segment_ids_BS if first is None else own_ids(segment_ids_BS, first, blocks.I * blocks.t)
        q_BIt, k_BJs = segment_ids_BT.reshape(B, blocks.I, -1), segment_ids_BS.reshape(B, blocks.J, -1)
        low_BI1, high_BI1 = q_BIt.min(2)[:, :, None], q_BIt.max(2)[:, :, None]
        low_B1J, high_B1J = k_BJs.min(2)[:, None], k_BJs.max(2)[:, None]
        # Exact where ids are in order, as packing makes them; in any other order never too few pairs.
        visible_BIJ = visible_BIJ & (low_BI1 <= high_B1J) & (low_B1J <= high_BI1)
        whole_BIJ = whole_BIJ & (low_BI1 == high_BI1) & (low_BI1 == low_B1J) & (low_BI1 == high_B1J)
    return visible_BIJ, whole_BIJ


def _distances(blocks: Blocks, first=None):
    """[I, J]: by how much a query of the block follows a key of the other at most, and at least."""
    t_I1, s_J = np.arange(blocks.I)[:, None] * blocks.t, np.arange(blocks.J) * blocks.s
    t_I1 = t_I1 if first is None else t_I1 + first
    return t_I1 + blocks.t - 1 - s_J, t_I1 - (s_J + blocks.s - 1)


def most_pairs(blocks: Blocks, stretch: bool) -> int:
    """Pairs that a row may have."""
    return blocks.I * blocks.J if stretch else int((_distances(blocks)[0] >= 0).sum())


def _listed(blocks: Blocks, B: int, visible, whole, stretch: bool) -> Schedule:
    """The schedule of [B or 1, stays, moves] arrays."""
    known = isinstance(visible, np.ndarray)
    module = np if known else jnp
    visible, whole = (module.broadcast_to(a, (B, *a.shape[1:])) for a in (visible, whole))
    count = int(visible.sum()) if known else visible.sum(dtype=jnp.int32)
    most = count if known else B * most_pairs(blocks, stretch)
    flat_P = np.flatnonzero(visible) if known else jnp.flatnonzero(visible, size=most, fill_value=0)
    stays_P, moves_P = module.divmod(flat_P, visible.shape[2])
    hidden_P = ~whole.reshape(-1)[flat_P]
    stays_P = module.where(module.arange(most) < count, stays_P, -1)
    stays_P = jnp.pad(jnp.asarray(stays_P, jnp.int32), 1, constant_values=-1)
    return Schedule(stays_P, jnp.asarray(2 * moves_P + hidden_P, jnp.int32), count)
