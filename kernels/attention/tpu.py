"""Flash attention for TPUs (Pallas, Mosaic): forward, and a kernel each for the gradients of q and of k and v.

Logits are held transposed, [s, X]: keys down the sublanes and, along the lanes, the X = G * t queries of all G heads
that share a key/value head. So softmax reduces over sublanes, which is plain vector arithmetic, its maxima and sums
are rows [1, X] that broadcast for free and go to memory as they lie, and keys are read once for all G heads. The
largest logit of a head is the maximum of rows that the softmax needs anyway.

Suffixes: t queries of a block, s keys of a block. The grid is (key/value head, pair of blocks) by `schedule.py`.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.attention import tpu_blocks
from kernels.attention.residuals import named
from kernels.attention.schedule import Blocks, by_key, by_query, own_ids
from kernels.attention.tpu_blocks import LANES
from kernels.attention.tpu_kernels import (
    KINDS,
    STAYS,
    Masks,
    Settings,
    forward,
    key_gradient,
    place,
    query_gradient,
    scratch,
    step,
)


def attention(q_BTNH, k_BSKH, v_BSKH, segment_ids_BS, scale, soft_cap=None, window=None, *, first=0, interpret=False):
    """Returns (out_BTNH, lse_BTN, max_logit_N); with `interpret` computed step by step, on any platform."""
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    heads = _heads(q_BTNH, k_BSKH)
    cuts = tpu_blocks.cut(T, S, heads)
    rest_T, rest_S = cuts.forward.t * cuts.forward.I - T, cuts.forward.s * cuts.forward.J - S
    rests = (q_BTNH, rest_T), (k_BSKH, rest_S), (v_BSKH, rest_S)
    q_BTNH, k_BSKH, v_BSKH = (jnp.pad(a, ((0, 0), (0, rest), (0, 0), (0, 0))) for a, rest in rests)
    if segment_ids_BS is not None:
        segment_ids_BS = jnp.pad(jnp.asarray(segment_ids_BS, jnp.int32), ((0, 0), (0, rest_S)), mode="edge")
    q_BKGTH = q_BTNH.reshape(B, -1, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = (a.transpose(0, 2, 1, 3) for a in (k_BSKH, v_BSKH))
    known = window if isinstance(window, int) else None
    limit_1 = None if window is None or known is not None else jnp.asarray(window, jnp.int32)[None]
    first_1 = None if T == S else jnp.asarray(first, jnp.int32).reshape(1)
    attend = functools.partial(_attend, Settings(scale, soft_cap, known, cuts, T, tpu_blocks.vmem_bytes(), interpret))
    if B * tpu_blocks.pairs_of_blocks(T, S, heads) > tpu_blocks.MOST_STEPS:  # the list of them would not fit
        rows = (a if a is None else a[:, None] for a in (q_BKGTH, k_BKSH, v_BKSH, segment_ids_BS))
        out_BKGTH, lse_BKGT, max_logit_BKG = jax.lax.map(
            lambda row: attend(*row[:3], Masks(row[3], limit_1, first_1)), tuple(rows)
        )
        out_BKGTH, lse_BKGT, max_logit_KG = out_BKGTH[:, 0], lse_BKGT[:, 0], max_logit_BKG.max(0)
    else:
        out_BKGTH, lse_BKGT, max_logit_KG = attend(q_BKGTH, k_BKSH, v_BKSH, Masks(segment_ids_BS, limit_1, first_1))
    out_BTNH = out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, -1, N, H)[:, :T]
    return out_BTNH, lse_BKGT.reshape(B, N, -1).swapaxes(1, 2)[:, :T], max_logit_KG.reshape(N)


def refusal(q_BTNH: jax.Array, k_BSKH: jax.Array) -> str | None:
    """What it is in the shapes that the kernel cannot take."""
    return tpu_blocks.refusal(q_BTNH.shape[1], k_BSKH.shape[1], _heads(q_BTNH, k_BSKH))


def _heads(q_BTNH, k_BSKH) -> tpu_blocks.Heads:
    return tpu_blocks.Heads(q_BTNH.shape[2] // k_BSKH.shape[2], q_BTNH.shape[3], q_BTNH.dtype.itemsize)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(settings, q_BKGTH, k_BKSH, v_BKSH, masks):
    return _forward(settings, q_BKGTH, k_BKSH, v_BKSH, masks)[0]


def _forward(settings, q_BKGTH, k_BKSH, v_BKSH, masks):
    """((out_BKGTH, lse_BKGT, max_logit_KG), residuals)."""
    out_BKGTH, lse_BKGT, top_BKGl = _call(forward, settings, masks, q_BKGTH, k_BKSH, v_BKSH)
    max_logit_KG = settings.scale * top_BKGl[..., 0].max(0)
    out_BKGTH, lse_BKGT = named(out_BKGTH, lse_BKGT)
    return (out_BKGTH, lse_BKGT, max_logit_KG), (q_BKGTH, k_BKSH, v_BKSH, masks, out_BKGTH, lse_BKGT)


def _backward(settings, residuals, cotangents):
    """Gradients of queries, keys and values, each block summed in one order; the maximum has none."""
    q_BKGTH, k_BKSH, v_BKSH, masks, out_BKGTH, lse_BKGT = residuals
    dout_BKGTH, dlse_BKGT, _ = cotangents
    dot_BKGT = jnp.sum(dout_BKGTH.astype(jnp.float32) * out_BKGTH.astype(jnp.float32), -1) - dlse_BKGT
    arrays = q_BKGTH, dout_BKGTH, k_BKSH, v_BKSH, lse_BKGT, dot_BKGT
    (dq_BKGTH,) = _call(query_gradient, settings, masks, *arrays)
    dk_BKSH, dv_BKSH = _call(key_gradient, settings, masks, *arrays)
    return dq_BKGTH, dk_BKSH, dv_BKSH, None


_attend.defvjp(_forward, _backward)


def _call(kernel, settings, masks, *arrays):
    """Runs a kernel over its schedule; returns a tuple."""
    segment_ids_BS, limit_1, first_1 = masks
    inputs, outputs = KINDS[kernel]
    queries, keys = (arrays[inputs.index(kind)] for kind in ("queries", "keys"))
    (B, K, G, T, H), blocks = queries.shape, getattr(settings.cuts, kernel.__name__)
    window, first = settings.window if limit_1 is None else limit_1[0], None if first_1 is None else first_1[0]
    schedule = (by_query if STAYS[kernel] == "queries" else by_key)(blocks, B, segment_ids_BS, window, first)
    prefetched = [schedule.stays_P, schedule.moves_P, *masks.scalars]
    specs = _specs(kernel, blocks, G, H)
    shapes = {"queries": queries, "keys": keys, "rows": _float32(B, K, G, T), "heads": _float32(B, K, G, LANES)}
    ids = []
    if segment_ids_BS is not None:
        key_ids = segment_ids_BS[:, None]
        ids = [key_ids if first is None else own_ids(segment_ids_BS, first, T)[:, None], key_ids]
    return pl.pallas_call(
        functools.partial(step, kernel, settings, blocks, G, Masks(*(a is not None for a in masks))),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(prefetched),
            grid=(K, schedule.count),
            in_specs=[specs[kind] for kind in (*inputs, *["query ids", "key ids"][: len(ids)])],
            out_specs=tuple(specs[kind] for kind in outputs),
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch(kernel, blocks, G, H)],
        ),
        out_shape=tuple(jax.ShapeDtypeStruct(shapes[kind].shape, shapes[kind].dtype) for kind in outputs),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=settings.vmem_bytes
        ),
        name=f"attention_{kernel.__name__}",
        interpret=settings.interpret,
    )(*prefetched, *arrays, *ids)


def _specs(kernel, blocks: Blocks, G: int, H: int) -> dict[str, pl.BlockSpec]:
    """Which block a step sees of each kind of array."""

    def spec(shape, index):  # `index` of (key/value head, batch entry, block of queries, block of keys)
        def of_step(k, p, stays_P, moves_P, *_):
            return index(k, *place(kernel, blocks, p, stays_P, moves_P))

        return pl.BlockSpec(shape, of_step)

    t, s = blocks.t, blocks.s
    return {
        "queries": spec((None, None, G, t, H), lambda k, b, i, _: (b, k, 0, i, 0)),
        "keys": spec((None, None, s, H), lambda k, b, _, j: (b, k, j, 0)),
        "rows": spec((None, None, G, t), lambda k, b, i, _: (b, k, 0, i)),
        "heads": spec((None, None, G, LANES), lambda k, b, *_: (b, k, 0, 0)),
        "query ids": spec((None, 1, t), lambda _k, b, i, _j: (b, 0, i)),
        "key ids": spec((None, 1, s), lambda _k, b, _i, j: (b, 0, j)),
    }


def _float32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)
