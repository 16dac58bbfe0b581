"""What a program of flash attention on a GPU computes: one block of queries, or of keys, with all blocks it sees.

Suffixes: t queries of a block, s keys of a block. Logits are bare products of query and key up to their maximum;
scale and log2(e) come in as one factor, in the subtraction from it, on the way to 2^x.
"""

import math
import struct
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

HIDDEN = -1e30  # a logit that may not be seen
LOG2E = math.log2(math.e)


class Tile(NamedTuple):
    """How one kernel is cut and compiled."""

    t: int  # queries of a block
    s: int  # keys of a block
    warps: int
    stages: int  # of the pipeline that loads blocks


class Masks(NamedTuple):
    """What a token may see beside causality, as int32 arrays or, in a kernel, as references to them."""

    limit_1: jax.Array | None = None  # the window
    segment_ids_BS: jax.Array | None = None  # of the row
    first_1: jax.Array | None = None  # position of the first query, where they are a stretch of the row


class Settings(NamedTuple):
    """What a kernel is compiled for."""

    scale: float
    soft_cap: float | None
    length: int  # queries of a row before it was padded
    heads: int  # query heads of a key/value head, G
    exact: bool  # for float32: no step may lose bits
    interpret: bool


def forward(settings, tile, spans_ref, masks, q_ref, k_ref, v_ref, out_ref, lse_ref, top_ref) -> None:
    """The mixed values of a block of queries, their log-sum-exp, and the largest bare logit among them."""
    i = pl.num_programs(0) - 1 - pl.program_id(0)  # the blocks that see most come first
    row_t = _positions(i, tile.t)
    visible = _visibility(masks, row_t[:, None])
    q_tH = q_ref[...]

    def visit(j, carry, masked):
        top_t, sum_t, mixed_tH = carry
        keys = pl.ds(j * tile.s, tile.s)
        logits_ts = _dot(q_tH, k_ref[keys, :], "tH,sH->ts")
        if masked:
            seen_ts = visible(_positions(j, tile.s)[None])
            logits_ts = jnp.where(seen_ts, logits_ts, HIDDEN)
        next_t = jnp.maximum(top_t, jnp.max(logits_ts, axis=1))
        next_bits_t = _bits(settings, next_t)
        weights_ts = _weights(settings, logits_ts, next_bits_t[:, None])
        if masked:
            weights_ts = jnp.where(seen_ts, weights_ts, 0.0)
        shrink_t = _exp2(settings, _fall(settings, top_t, next_t))
        v_sH = v_ref[keys, :]
        mixed_tH = mixed_tH * shrink_t[:, None] + _dot(weights_ts.astype(v_sH.dtype), v_sH, "ts,sH->tH")
        return next_t, sum_t * shrink_t + jnp.sum(weights_ts, axis=1), mixed_tH

    nothing = (
        jnp.full(tile.t, HIDDEN, jnp.float32),
        jnp.zeros(tile.t, jnp.float32),
        jnp.zeros(q_tH.shape, jnp.float32),
    )
    top_t, sum_t, mixed_tH = _visit_all(spans_ref, visit, nothing)
    out_ref[...] = (mixed_tH * (1.0 / sum_t)[:, None]).astype(out_ref.dtype)
    lse_ref[...] = _bits(settings, top_t) / LOG2E + jnp.log(sum_t)
    top_ref[...] = jnp.max(jnp.where(row_t < settings.length, top_t, -jnp.inf))


def query_gradient(settings, tile, spans_ref, masks, q_ref, dout_ref, k_ref, v_ref, lse_ref, dot_ref, dq_ref) -> None:
    """The gradient of a block of queries."""
    i = pl.num_programs(0) - 1 - pl.program_id(0)
    visible = _visibility(masks, _positions(i, tile.t)[:, None])
    q_tH, dout_tH = q_ref[...], dout_ref[...]
    lse_t1, dot_t1 = (lse_ref[...] * LOG2E)[:, None], dot_ref[...][:, None]

    def visit(j, dq_tH, masked):
        keys = pl.ds(j * tile.s, tile.s)
        k_sH = k_ref[keys, :]
        logits_ts = _dot(q_tH, k_sH, "tH,sH->ts")
        seen_ts = visible(_positions(j, tile.s)[None]) if masked else None
        dweights_ts = _dot(dout_tH, v_ref[keys, :], "tH,sH->ts")
        _, dlogits_ts = _gradients(settings, logits_ts, dweights_ts, lse_t1, dot_t1, seen_ts)
        return dq_tH + _dot(dlogits_ts.astype(k_sH.dtype), k_sH, "ts,sH->tH")

    dq_tH = _visit_all(spans_ref, visit, jnp.zeros(q_tH.shape, jnp.float32))
    dq_ref[...] = (dq_tH * settings.scale).astype(dq_ref.dtype)


def key_gradient(
    settings, tile, spans_ref, masks, q_ref, dout_ref, k_ref, v_ref, lse_ref, dot_ref, dk_ref, dv_ref
) -> None:
    """The gradients of a block of keys and of values, summed over the G query heads in their order."""
    j = pl.program_id(0)  # the blocks that most queries see come first
    visible = _visibility(masks, _positions(j, tile.s)[:, None], of_keys=True)
    k_sH, v_sH = k_ref[...], v_ref[...]

    def visit(i, carry, masked, g):
        dk_sH, dv_sH = carry
        queries = pl.ds(i * tile.t, tile.t)
        q_tH, dout_tH = q_ref[queries, g, :], dout_ref[queries, g, :]
        lse_1t, dot_1t = (lse_ref[g, queries] * LOG2E)[None], dot_ref[g, queries][None]
        logits_st = _dot(k_sH, q_tH, "sH,tH->st")
        seen_st = visible(_positions(i, tile.t)[None]) if masked else None
        dweights_st = _dot(v_sH, dout_tH, "sH,tH->st")
        weights_st, dlogits_st = _gradients(settings, logits_st, dweights_st, lse_1t, dot_1t, seen_st)
        dv_sH = dv_sH + _dot(weights_st.astype(dout_tH.dtype), dout_tH, "st,tH->sH")
        return dk_sH + _dot(dlogits_st.astype(q_tH.dtype), q_tH, "st,tH->sH"), dv_sH

    def visit_head(g, carry):
        return _visit_all(spans_ref, lambda i, carry, masked: visit(i, carry, masked, g), carry)

    zeros_sH = jnp.zeros(k_sH.shape, jnp.float32)
    dk_sH, dv_sH = jax.lax.fori_loop(0, settings.heads, visit_head, (zeros_sH, zeros_sH))
    dk_ref[...] = (dk_sH * settings.scale).astype(dk_ref.dtype)
    dv_ref[...] = dv_sH.astype(dv_ref.dtype)


def _visit_all(spans_ref, visit: Callable, carry):
    """Visits a program's span of blocks: first those in which all is seen, without a mask, then the rest with one."""
    first, whole_first, whole_end, end = (spans_ref[n] for n in range(4))
    whole = whole_end - whole_first
    carry = jax.lax.fori_loop(whole_first, whole_end, lambda j, carry: visit(j, carry, False), carry)

    def masked(n, carry):
        return visit(n + jnp.where(n >= whole_first, whole, 0), carry, True)

    return jax.lax.fori_loop(first, end - whole, masked, carry)


def _visibility(masks: Masks, own, of_keys: bool = False) -> Callable[[jax.Array], jax.Array]:
    """Which pairs of own tokens, a column, and others, a row, may be seen; queries count from the first here."""
    limit_ref, ids_ref, first_ref = masks
    first = None if first_ref is None else first_ref[0]
    limit = None if limit_ref is None else limit_ref[0]
    own = own if of_keys else _moved(own, first)
    own_ids = None if ids_ref is None else ids_ref[own[:, 0]][:, None]

    def visible(other):
        other = _moved(other, first) if of_keys else other
        distance = other - own if of_keys else own - other
        seen = distance >= 0
        if limit is not None:
            seen &= distance < limit
        if own_ids is not None:
            seen &= own_ids == ids_ref[other[0]][None]
        return seen

    return visible


def _moved(queries, first):
    """Their positions in the row."""
    return queries if first is None else queries + first


def _positions(block, size: int):
    return block * size + jax.lax.iota(jnp.int32, size)


def _gradients(settings, logits, dweights, lse, dot, seen):
    """The softmax's weights from their stored log-sum-exp, in bits, and the gradient of the scaled logits."""
    weights = _weights(settings, logits, lse)
    if seen is not None:
        weights = jnp.where(seen, weights, 0.0)
    dlogits = weights * (dweights - dot)
    if settings.soft_cap is not None:  # d tanh(x) = 1 - tanh(x)^2
        dlogits *= 1.0 - jnp.square(_tanh(settings, logits * (settings.scale / settings.soft_cap)))
    return weights, dlogits


def _bits(settings, logits):
    """Scaled and capped logits in units of ln 2; monotone."""
    if settings.soft_cap is None:
        return logits * (settings.scale * LOG2E)
    return _tanh(settings, logits * (settings.scale / settings.soft_cap)) * (settings.soft_cap * LOG2E)


def _fall(settings, low, high):
    """_bits(low) - _bits(high), exact where both are HIDDEN: a fused multiply-add would leave a rounding of 1e23."""
    if settings.soft_cap is None:
        return (low - high) * (settings.scale * LOG2E)
    return _bits(settings, low) - _bits(settings, high)


def _tanh(settings, x):
    """For bfloat16 from one 2^x and one division, off by 1e-7; the hardware's own is off by 5e-4."""
    if settings.exact:
        return jnp.tanh(x)
    return 1.0 - 2.0 / (1.0 + _exp2(settings, x * (2 * LOG2E)))


def _weights(settings, logits, bits):
    """2^(_bits(logits) - bits), for two instructions a logit if none is capped."""
    if settings.soft_cap is not None or settings.interpret:
        return _exp2(settings, _bits(settings, logits) - bits)
    factor = struct.pack(">f", settings.scale * LOG2E).hex()
    code = f"{{ .reg .f32 x; fma.rn.f32 x, $1, 0f{factor}, $2; ex2.approx.ftz.f32 $0, x; }}"
    return _assembly(code, logits, jnp.broadcast_to(-bits, logits.shape))


def _exp2(settings, x):
    """2^x; what is under 2^-126 is 0, which saves three of four instructions."""
    return jnp.exp2(x) if settings.interpret else _assembly("ex2.approx.ftz.f32 $0, $1;", x)


def _assembly(code: str, *operands):
    """PTX for every element; XLA neither fuses multiply-adds in Triton kernels nor flushes denormal numbers."""
    shape = jax.ShapeDtypeStruct(operands[0].shape, jnp.float32)
    constraints = "=f" + ",f" * len(operands)
    return plgpu.elementwise_inline_asm(
        code, args=operands, constraints=constraints, pack=1, result_shape_dtypes=[shape]
    )[0]


def _dot(a, b, spec: str):
    """A matrix product in float32; float32 operands are not rounded."""
    left, right = spec.split("->")[0].split(",")
    (shared,) = set(left) & set(right)
    dimensions = (((left.index(shared),), (right.index(shared),)), ((), ()))
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)
