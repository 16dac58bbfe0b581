"""Flash attention for NVIDIA GPUs (Pallas, Triton): forward, and a kernel each for the gradients of q and of k and v.

A program has one block of queries (or of keys) and visits the blocks it sees one after the other, so that every sum
has one order and nothing is added atomically. Which blocks those are, and which of them need no mask, is computed
before the kernel from causality, window and segment ids (`_spans`). Keys are read by head, never repeated.

Suffixes: I blocks of t queries, J blocks of s keys. The grid is (block, head, batch entry).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels.attention.gpu_kernels import Masks, Settings, Tile, forward, key_gradient, query_gradient
from kernels.attention.residuals import named
from kernels.attention.schedule import Blocks, visible_pairs
from kernels.dispatch import gpu_refusal, target

LEAST = 16  # of a block's sizes: what a matrix product on the tensor cores takes


class Tiles(NamedTuple):
    """How each kernel is cut and compiled."""

    forward: Tile
    query_gradient: Tile
    key_gradient: Tile


# By padded head size, for bfloat16. Chosen by what the compiler for sm_90a says of registers, spills and shared
# memory; not yet by time (`python benchmarks/gpu.py --tune`).
HOPPER = {
    64: Tiles(Tile(128, 128, 8, 3), Tile(128, 64, 8, 2), Tile(64, 128, 8, 2)),
    128: Tiles(Tile(128, 128, 8, 2), Tile(128, 64, 8, 2), Tile(64, 128, 8, 2)),
    256: Tiles(Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), Tile(32, 64, 8, 2)),
}
OTHERS = {
    64: Tiles(Tile(64, 64, 4, 2), Tile(64, 64, 4, 2), Tile(64, 64, 4, 2)),
    128: Tiles(Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(32, 64, 4, 2)),
    256: Tiles(Tile(64, 32, 4, 2), Tile(32, 32, 4, 2), Tile(32, 32, 4, 2)),
}
FLOAT32 = Tiles(Tile(32, 32, 8, 1), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1))  # products without tensor cores


def refusal(q_BTNH: jax.Array, k_BSKH: jax.Array) -> str | None:
    """What it is in the shapes, or in the GPU, that the kernel cannot take."""
    del k_BSKH
    H = q_BTNH.shape[-1]
    return gpu_refusal() or (f"takes heads of up to 256, not {H}" if H > 256 else None)


def attention(
    q_BTNH, k_BSKH, v_BSKH, segment_ids_BS, scale, soft_cap=None, window=None, *, first=0, interpret=False, tiles=None
):
    """Returns (out_BTNH, lse_BTN, max_logit_N); with `interpret` computed step by step, on any platform."""
    (T, N, H), S = q_BTNH.shape[1:], k_BSKH.shape[1]
    width = max(LEAST, 1 << (H - 1).bit_length())
    tiles = _fit(tiles or _tiles(width, q_BTNH.dtype), T, S)
    block = max(max(tile.t, tile.s) for tile in tiles)
    # Padded tokens come last: no other sees them. The padded queries of a stretch have keys too, wherever it begins.
    rest_T = -T % block
    rest_S = -(S + rest_T) % block + rest_T
    rests = (q_BTNH, rest_T), (k_BSKH, rest_S), (v_BSKH, rest_S)
    q_BTNH, k_BSKH, v_BSKH = (
        jnp.pad(a, ((0, 0), (0, rest), (0, 0), (0, width - H))) if rest or width > H else a for a, rest in rests
    )
    if segment_ids_BS is not None:
        segment_ids_BS = jnp.pad(jnp.asarray(segment_ids_BS, jnp.int32), ((0, 0), (0, rest_S)), mode="edge")
    known = window if isinstance(window, int) else None
    limit_1 = None if window is None else jnp.asarray(window, jnp.int32).reshape(1)
    first_1 = None if T == S else jnp.asarray(first, jnp.int32).reshape(1)
    settings = Settings(scale, soft_cap, T, N // k_BSKH.shape[2], q_BTNH.dtype == jnp.float32, interpret)
    masks = Masks(limit_1, segment_ids_BS, first_1)
    out_BTNH, lse_BNT, max_logit_N = _attend(settings, tiles, known, q_BTNH, k_BSKH, v_BSKH, masks)
    return out_BTNH[:, :T, :, :H], lse_BNT.swapaxes(1, 2)[:, :T], max_logit_N


def _tiles(width: int, dtype) -> Tiles:
    if dtype == jnp.float32:
        return FLOAT32
    table = HOPPER if any(chip in target().kind for chip in ("H100", "H200", "GH200")) else OTHERS
    return table[max(width, 64)]


def _fit(tiles: Tiles, T: int, S: int) -> Tiles:
    """Blocks no longer than few queries, or a short row, need."""
    most_t, most_s = (max(LEAST, 1 << (length - 1).bit_length()) for length in (T, S))
    return Tiles(*(tile._replace(t=min(tile.t, most_t), s=min(tile.s, most_s)) for tile in tiles))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(settings, tiles, window, q_BTNH, k_BSKH, v_BSKH, masks):
    return _forward(settings, tiles, window, q_BTNH, k_BSKH, v_BSKH, masks)[0]


def _forward(settings, tiles, window, q_BTNH, k_BSKH, v_BSKH, masks):
    """((out_BTNH, lse_BNT, max_logit_N), residuals)."""
    out_BTNH, lse_BNT, top_BNI = _call(forward, settings, tiles.forward, window, masks, q_BTNH, k_BSKH, v_BSKH)
    max_logit_N = settings.scale * top_BNI.max((0, 2))
    out_BTNH, lse_BNT = named(out_BTNH, lse_BNT)
    return (out_BTNH, lse_BNT, max_logit_N), (q_BTNH, k_BSKH, v_BSKH, masks, out_BTNH, lse_BNT)


def _backward(settings, tiles, window, residuals, cotangents):
    """Gradients of queries, keys and values; the maximum has none."""
    q_BTNH, k_BSKH, v_BSKH, masks, out_BTNH, lse_BNT = residuals
    dout_BTNH, dlse_BNT, _ = cotangents
    dot_BTN = jnp.sum(dout_BTNH.astype(jnp.float32) * out_BTNH.astype(jnp.float32), -1)
    dot_BNT = dot_BTN.swapaxes(1, 2) - dlse_BNT  # d lse / d logit is the weight
    arrays = q_BTNH, dout_BTNH, k_BSKH, v_BSKH, lse_BNT, dot_BNT
    (dq_BTNH,) = _call(query_gradient, settings, tiles.query_gradient, window, masks, *arrays)
    dk_BSKH, dv_BSKH = _call(key_gradient, settings, tiles.key_gradient, window, masks, *arrays)
    return dq_BTNH, dk_BSKH, dv_BSKH, None


_attend.defvjp(_forward, _backward)


def _call(kernel, settings: Settings, tile: Tile, window: int | None, masks: Masks, *arrays):
    """Runs a kernel for every block, head and batch entry; `window` is the one of `masks` where it is known."""
    by_key = kernel is key_gradient
    q_BTNH, k_BSKH = arrays[0], arrays[1 if kernel is forward else 2]
    (B, T, N, H), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
    blocks = Blocks(tile.t, tile.s, T // tile.t, S // tile.s)
    window = window if masks.limit_1 is None or window is not None else masks.limit_1[0]
    first = None if masks.first_1 is None else masks.first_1[0]
    spans = _spans(blocks, masks.segment_ids_BS, window, by_key, first)
    count = blocks.J if by_key else blocks.I
    query, key, rows = _specs(tile, count, settings.heads, T, S, H, by_key)

    def own(n):  # which block program n has
        return n if by_key else count - 1 - n

    entry = (lambda n, _, b: (b, own(n), 0)) if len(spans) > 1 else (lambda n, *_: (0, own(n), 0))
    in_specs = [
        pl.BlockSpec((None, None, 4), entry),
        Masks(
            None if masks.limit_1 is None else pl.BlockSpec((1,), lambda *_: (0,)),
            None if masks.segment_ids_BS is None else pl.BlockSpec((None, S), lambda _n, _h, b: (b, 0)),
            None if masks.first_1 is None else pl.BlockSpec((1,), lambda *_: (0,)),
        ),
        *([query, key, key] if kernel is forward else [query, query, key, key, rows, rows]),
    ]
    like = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype)  # noqa: E731
    if kernel is forward:
        top = pl.BlockSpec((None, None, None), lambda n, h, b: (b, h, own(n)))
        shapes = like(q_BTNH), _float32(B, N, T), _float32(B, N, count)
        out_specs = query, rows, top
    else:
        shapes, out_specs = ((like(k_BSKH),) * 2, (key, key)) if by_key else ((like(q_BTNH),), (query,))
    return pl.pallas_call(
        functools.partial(kernel, settings, tile),
        grid=(count, K if by_key else N, B),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=shapes,
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        name=f"attention_{kernel.__name__}",
        interpret=settings.interpret,
    )(spans, masks, *arrays)


def _specs(tile: Tile, count: int, G: int, T: int, S: int, H: int, by_key: bool):
    """What a program may read of the queries, of the keys, and of rows [B, N, T]."""
    if by_key:  # all queries of G heads, one block of keys
        return (
            pl.BlockSpec((None, T, G, H), lambda _, k, b: (b, 0, k, 0)),
            pl.BlockSpec((None, tile.s, None, H), lambda n, k, b: (b, n, k, 0)),
            pl.BlockSpec((None, G, T), lambda _, k, b: (b, k, 0)),
        )
    return (
        pl.BlockSpec((None, tile.t, None, H), lambda n, h, b: (b, count - 1 - n, h, 0)),
        pl.BlockSpec((None, S, None, H), lambda _, h, b: (b, 0, jax.lax.div(h, G), 0)),
        pl.BlockSpec((None, None, tile.t), lambda n, h, b: (b, h, count - 1 - n)),
    )


def _spans(blocks: Blocks, segment_ids_BS, window, by_key: bool, first=None) -> jax.Array:
    """int32 [B or 1, own blocks, 4]: the others that a block sees lie in [first, end), and of those in
    [whole first, whole end) every pair of tokens is seen."""
    visible, whole = visible_pairs(blocks, segment_ids_BS, window, first)
    if by_key:
        visible, whole = visible.swapaxes(1, 2), whole.swapaxes(1, 2)
    module = np if isinstance(visible, np.ndarray) else jnp
    place = np.arange(visible.shape[2])
    begin, end = module.argmax(visible, 2), visible.shape[2] - module.argmax(visible[..., ::-1], 2)
    if first is not None:  # a block of keys may be seen by no query
        end = module.where(visible.any(2), end, 0)
    whole = whole & visible
    whole_end = module.max(module.where(whole, place + 1, 0), 2)
    broken = ~whole & (place < whole_end[..., None])  # ids in no order: the last stretch counts
    whole_first = module.max(module.where(broken, place + 1, 0), 2)
    whole_first = module.maximum(module.minimum(whole_first, whole_end), begin)
    return jnp.asarray(module.stack([begin, whole_first, module.maximum(whole_end, whole_first), end], -1), jnp.int32)


def _float32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)
