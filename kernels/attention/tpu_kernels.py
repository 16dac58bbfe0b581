"""What one step of flash attention on a TPU computes: a block of queries of G heads with a block of keys.

Suffixes: t queries of a block, s keys of a block, X = G * t queries of all heads that share the keys. What stands for
a logit is the bare product of query and key or, with a soft cap, a hyperbolic tangent; differences of them are
multiplied once, by scale or cap and log2(e) together, and go to 2^x.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels.attention.schedule import Blocks
from kernels.attention.tpu_blocks import LANES, Cuts

HIDDEN = -1e30  # a logit that may not be seen
LOG2E = math.log2(math.e)


class Masks(NamedTuple):
    """What a token may see beside causality; int32."""

    segment_ids_BS: jax.Array | None  # of the row
    limit_1: jax.Array | None = None  # the window, where it is not known when compiled
    first_1: jax.Array | None = None  # position of the first query, where they are a stretch of the row

    @property
    def scalars(self) -> list[jax.Array]:
        """Those that every step reads."""
        return [a for a in (self.limit_1, self.first_1) if a is not None]


class Settings(NamedTuple):
    """What a kernel is compiled for."""

    scale: float
    soft_cap: float | None
    window: int | None  # where it is known; else it comes as an array
    cuts: Cuts
    length: int  # queries of a row before it was padded
    vmem_bytes: int
    interpret: bool

    @property
    def bits(self) -> float:
        """What makes a logit of its stand-in, in units of ln 2."""
        return (self.scale if self.soft_cap is None else self.soft_cap) * LOG2E


class Block(NamedTuple):
    """What a kernel knows of its step."""

    first: jax.Array  # of the steps of the block that stays
    last: jax.Array
    position: jax.Array  # of its first query among those that are here
    bias_sX: jax.Array | None  # 0 where a query may see a key, else HIDDEN; None where all may


def place(kernel, blocks: Blocks, p, stays_P, moves_P):
    """Batch entry, block of queries and block of keys of step p."""
    row, other = stays_P[p + 1], moves_P[p] >> 1
    of_queries = STAYS[kernel] == "queries"
    b, own = (op(row, blocks.I if of_queries else blocks.J) for op in (jax.lax.div, jax.lax.rem))
    return (b, own, other) if of_queries else (b, other, own)


def step(kernel, settings: Settings, blocks: Blocks, G: int, has: Masks, stays_P, moves_P, *refs) -> None:
    """Runs `kernel` on the pair of blocks of this step; most pairs lie whole before the diagonal and need no mask.

    `has` says of each mask whether it comes as an array.
    """
    limit_1, refs = (refs[0], refs[1:]) if has.limit_1 else (None, refs)
    first_1, refs = (refs[0], refs[1:]) if has.first_1 else (None, refs)
    inputs = len(KINDS[kernel][0])
    ids, refs = (
        (refs[inputs : inputs + 2], refs[:inputs] + refs[inputs + 2 :]) if has.segment_ids_BS else (None, refs)
    )
    p = pl.program_id(1)
    _, i, j = place(kernel, blocks, p, stays_P, moves_P)
    t, s = blocks.t, blocks.s

    def bias() -> jax.Array:
        query_1t = i * t + jax.lax.broadcasted_iota(jnp.int32, (1, t), 1)
        if first_1 is not None:
            query_1t += first_1[0]
        key_s1 = j * s + jax.lax.broadcasted_iota(jnp.int32, (s, 1), 0)
        seen_st = query_1t >= key_s1
        limit = settings.window if limit_1 is None else limit_1[0]
        if limit is not None:
            seen_st &= query_1t - limit < key_s1
        if ids is not None:
            ids_s1 = jnp.broadcast_to(ids[1][...], (LANES, s)).T[:, :1]
            seen_st &= ids[0][...] == ids_s1
        return jnp.concatenate([jnp.where(seen_st, 0.0, HIDDEN)] * G, axis=1)  # computed once for all heads

    first, last = stays_P[p] != stays_P[p + 1], stays_P[p + 2] != stays_P[p + 1]
    for masked in (False, True):

        @pl.when((moves_P[p] & 1) == masked)
        def _(masked=masked):
            kernel(settings, Block(first, last, i * t, bias() if masked else None), *refs)


def forward(settings, block, q_GtH, k_sH, v_sH, out_GtH, lse_Gt, top_Gl, max_1X, sum_1X, mixed_HX):
    """Softmax with a running maximum; `top` is each head's largest logit so far in this batch entry, unscaled."""

    @pl.when(block.first)
    def _():
        max_1X[...] = jnp.full_like(max_1X, HIDDEN)
        sum_1X[...] = jnp.zeros_like(sum_1X)
        mixed_HX[...] = jnp.zeros_like(mixed_HX)

    raw_sX, capped_sX = _logits(settings, block, q_GtH, k_sH)
    old_1X = max_1X[...]
    new_1X = jnp.maximum(old_1X, raw_sX.max(0, keepdims=True))
    top_1X = _capped(settings, new_1X)  # the soft cap is monotone
    weights_sX = jnp.exp2((capped_sX - top_1X) * settings.bits)
    shrink_1X = jnp.exp2((_capped(settings, old_1X) - top_1X) * settings.bits)
    max_1X[...] = new_1X
    sum_1X[...] = sum_1X[...] * shrink_1X + weights_sX.sum(0, keepdims=True)
    mixed_HX[...] = mixed_HX[...] * shrink_1X + _dot(v_sH[...], weights_sX.astype(v_sH.dtype), 0, 0)

    @pl.when(block.last)
    def _():
        G, t, H = out_GtH.shape
        out_GtH[...] = (mixed_HX[...] / sum_1X[...]).T.reshape(G, t, H).astype(out_GtH.dtype)
        lse_1X = (_capped(settings, max_1X[...]) * settings.bits + jnp.log2(sum_1X[...])) / LOG2E
        for g in range(G):
            lse_Gt[g : g + 1] = lse_1X[:, g * t : (g + 1) * t]
        write_largest(settings, block, t, max_1X, top_Gl)


def write_largest(settings, block, t, max_1X, top_Gl):
    """The largest logit of each head so far in this batch entry, from maxima that the softmax has anyway."""
    position_1t = block.position + jax.lax.broadcasted_iota(jnp.int32, (1, t), 1)
    for g in range(top_Gl.shape[0]):
        real_1t = jnp.where(position_1t < settings.length, max_1X[:, g * t : (g + 1) * t], HIDDEN)
        top_1l = jnp.broadcast_to(real_1t.max(1, keepdims=True), (1, LANES))
        top_Gl[g : g + 1] = jnp.where(block.position == 0, top_1l, jnp.maximum(top_1l, top_Gl[g : g + 1]))


def query_gradient(settings, block, q_GtH, dout_GtH, k_sH, v_sH, lse_Gt, dot_Gt, dq_GtH, dq_HX):
    """The gradient of a block of queries, summed over blocks of keys."""

    @pl.when(block.first)
    def _():
        dq_HX[...] = jnp.zeros_like(dq_HX)

    _, dlogits_sX = _gradients(settings, block, q_GtH, dout_GtH, k_sH, v_sH, lse_Gt, dot_Gt)
    dq_HX[...] += _dot(k_sH[...], dlogits_sX.astype(k_sH.dtype), 0, 0)

    @pl.when(block.last)
    def _():
        dq_GtH[...] = (settings.scale * dq_HX[...]).T.reshape(dq_GtH.shape).astype(dq_GtH.dtype)


def key_gradient(settings, block, q_GtH, dout_GtH, k_sH, v_sH, lse_Gt, dot_Gt, dk_out_sH, dv_out_sH, dk_sH, dv_sH):
    """The gradients of a block of keys and values, summed over blocks of queries and all heads that share them."""

    @pl.when(block.first)
    def _():
        dk_sH[...] = jnp.zeros_like(dk_sH)
        dv_sH[...] = jnp.zeros_like(dv_sH)

    probs_sX, dlogits_sX = _gradients(settings, block, q_GtH, dout_GtH, k_sH, v_sH, lse_Gt, dot_Gt)
    dv_sH[...] += _dot(probs_sX.astype(dout_GtH.dtype), _rows(dout_GtH), 1, 0)
    dk_sH[...] += _dot(dlogits_sX.astype(q_GtH.dtype), _rows(q_GtH), 1, 0)

    @pl.when(block.last)
    def _():
        dk_out_sH[...] = (settings.scale * dk_sH[...]).astype(dk_out_sH.dtype)
        dv_out_sH[...] = dv_sH[...].astype(dv_out_sH.dtype)


def _gradients(settings, block, q_GtH, dout_GtH, k_sH, v_sH, lse_Gt, dot_Gt):
    """(probs_sX, gradient of the scaled logits)."""
    raw_sX, capped_sX = _logits(settings, block, q_GtH, k_sH)
    probs_sX = jnp.exp2((capped_sX - _lanes(lse_Gt) * (LOG2E / settings.bits)) * settings.bits)
    dprobs_sX = _dot(v_sH[...], _rows(dout_GtH), 1, 1)
    dlogits_sX = probs_sX * (dprobs_sX - _lanes(dot_Gt))
    if settings.soft_cap is not None:  # d tanh(x) = 1 - tanh(x)^2
        dlogits_sX *= 1 - jnp.square(jnp.tanh(raw_sX * (settings.scale / settings.soft_cap)))
    return probs_sX, dlogits_sX


def _logits(settings, block, q_GtH, k_sH):
    """(products of queries and keys, the same capped); those that may not be seen are as good as minus infinity."""
    raw_sX = _dot(k_sH[...], _rows(q_GtH), 1, 1)
    if block.bias_sX is None:
        return raw_sX, _capped(settings, raw_sX)
    hidden_sX = raw_sX + block.bias_sX
    return hidden_sX, hidden_sX if settings.soft_cap is None else _capped(settings, raw_sX) + block.bias_sX


def _capped(settings, raw):
    return raw if settings.soft_cap is None else jnp.tanh(raw * (settings.scale / settings.soft_cap))


def _rows(a_GtH):
    G, t, H = a_GtH.shape
    return a_GtH[...].reshape(G * t, H)


def _lanes(a_Gt):
    return jnp.concatenate([a_Gt[g : g + 1] for g in range(a_Gt.shape[0])], axis=1)


def _dot(a, b, over_a: int, over_b: int):
    """The product of two matrices, summed over these axes, in float32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    numbers = (((over_a,), (over_b,)), ((), ()))
    return jax.lax.dot_general(a, b, numbers, precision=precision, preferred_element_type=jnp.float32)


STAYS = {forward: "queries", query_gradient: "queries", key_gradient: "keys"}  # the block that stays for a while
_FOR_GRADIENTS = ("queries", "queries", "keys", "keys", "rows", "rows")
KINDS = {  # of the arrays that a kernel reads and writes
    forward: (("queries", "keys", "keys"), ("queries", "rows", "heads")),
    query_gradient: (_FOR_GRADIENTS, ("queries",)),
    key_gradient: (_FOR_GRADIENTS, ("keys", "keys")),
}


def scratch(kernel, blocks: Blocks, G: int, H: int) -> list[tuple[int, int]]:
    """Shapes of what a kernel keeps from step to step."""
    X, s = G * blocks.t, blocks.s
    return {forward: [(1, X), (1, X), (H, X)], query_gradient: [(H, X)], key_gradient: [(s, H), (s, H)]}[kernel]
