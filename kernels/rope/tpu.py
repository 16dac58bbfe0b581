"""The rotation for TPUs (Pallas, Mosaic): one pass from the projection's layout to that of the attention kernel.

A head's features lie along the lanes of a vector register. XLA:TPU takes their halves apart in memory, rotates, puts
them together and lays the heads out for attention, at a higher cost than the projection's (docs/benchmarks/rope.md).
Here a block is read once, a roll of the lanes brings each feature its partner, and the block is written as [heads,
tokens, head size]. The backward pass is the inverse rotation, the other way.

Suffixes: O = N * H features of all heads, t tokens of a block, W lanes of as many heads as fill a register.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from kernels.dispatch import BATCH_AXES, CONTEXT_AXES, TENSOR_AXES, mesh_axes, over_mesh

LANES = 128
BLOCK_BYTES = 1 << 20  # of a block in VMEM, in and out each; there are two of both
VMEM_BYTES = 16 << 20  # that a kernel may ask for: every chip has as much


class Settings(NamedTuple):
    """What a kernel is compiled for."""

    pairs: str
    dtype_in: str
    dtype_out: str
    interpret: bool


def rotate(x_BTNH, cos_BTR, sin_BTR, pairs, active, dtype, *, interpret=False):
    """Rotated [B, T, N, H], which lies in memory as [B, N, T, H]."""
    B, T, N, H = x_BTNH.shape
    settings = Settings(pairs, x_BTNH.dtype.name, jnp.dtype(dtype).name, interpret)
    join = jnp.concatenate if pairs == "half_split" else jnp.stack
    # A pair's cosine lies where its first feature does, its sine where the second does, so no lane is empty. All
    # layers have the same, so XLA makes it once, before their scan.
    table_BTH = join([cos_BTR, sin_BTR], axis=-1).reshape(B, T, H)
    active_1 = jnp.asarray(True if active is None else active, jnp.int32).reshape(1)

    def local(x_BTNH, table_BTH, active_1):
        y_BNTH = _rotated(settings, x_BTNH.reshape(*x_BTNH.shape[:2], -1), table_BTH, active_1)
        return y_BNTH.transpose(0, 2, 1, 3)

    rows = mesh_axes(BATCH_AXES, B), mesh_axes(CONTEXT_AXES, T)
    layout = P(*rows, mesh_axes(TENSOR_AXES, N))
    return over_mesh(local, (layout, P(*rows), P()), layout)(x_BTNH, table_BTH, active_1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rotated(settings, x_BTO, table_BTH, active_1):
    """[B, N, T, H]"""
    B, T, H = table_BTH.shape
    out = jax.ShapeDtypeStruct((B, x_BTO.shape[2] // H, T, H), settings.dtype_out)
    return _call(_to_heads, settings, active_1, x_BTO, table_BTH, out)


def _forward(settings, x_BTO, table_BTH, active_1):
    return _rotated(settings, x_BTO, table_BTH, active_1), (table_BTH, active_1)


def _backward(settings, residuals, dy_BNTH):
    (table_BTH, active_1), (B, N, T, H) = residuals, dy_BNTH.shape
    out = jax.ShapeDtypeStruct((B, T, N * H), settings.dtype_in)
    return _call(_from_heads, settings, active_1, dy_BNTH, table_BTH, out), None, None


_rotated.defvjp(_forward, _backward)


def _call(kernel, settings, active_1, x, table_BTH, out):
    """A pass over blocks of tokens; x is [B, T, O] and `out` [B, N, T, H], or the other way."""
    B, T, H = table_BTH.shape
    N = x.size // table_BTH.size
    t = _tokens(T, N * max(H, LANES) * max(x.dtype.itemsize, out.dtype.itemsize))

    def spec(array):
        if array.ndim == 3:
            return pl.BlockSpec((None, t, N * H), lambda b, i, _: (b, i, 0))
        return pl.BlockSpec((None, N, t, H), lambda b, i, _: (b, 0, i, 0))

    return pl.pallas_call(
        functools.partial(kernel, settings.pairs),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(B, pl.cdiv(T, t)),
            in_specs=[spec(x), pl.BlockSpec((None, t, H), lambda b, i, _: (b, i, 0))],
            out_specs=spec(out),
        ),
        out_shape=out,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=VMEM_BYTES
        ),
        name=f"rope{kernel.__name__}",
        interpret=settings.interpret,
    )(active_1, x, table_BTH)


def _tokens(T: int, bytes_a_token: int) -> int:
    """Tokens of a block: a power of two of at least 16, the rows of a bfloat16 register, or the whole row."""
    return min(T, max(16, 1 << max(1, BLOCK_BYTES // bytes_a_token).bit_length() - 1))


def _to_heads(pairs, active_1, x_tO, table_tH, out_NtH):
    N, _, H = out_NtH.shape
    turn = functools.cache(functools.partial(_turn, pairs, False, active_1, table_tH))
    for heads in _groups(N, H):
        y_tW = turn(len(heads))(x_tO[:, heads[0] * H : (heads[-1] + 1) * H])
        for i, n in enumerate(heads):
            out_NtH[n] = y_tW[:, i * H : (i + 1) * H].astype(out_NtH.dtype)


def _from_heads(pairs, active_1, dy_NtH, table_tH, dx_tO):
    N, _, H = dy_NtH.shape
    turn = functools.cache(functools.partial(_turn, pairs, True, active_1, table_tH))
    for heads in _groups(N, H):
        dx_tW = turn(len(heads))(jnp.concatenate([dy_NtH[n].astype(jnp.float32) for n in heads], axis=1))
        dx_tO[:, heads[0] * H : (heads[-1] + 1) * H] = dx_tW.astype(dx_tO.dtype)


def _groups(N: int, H: int) -> list[range]:
    """Heads that fill the lanes together."""
    step = LANES // H if LANES % H == 0 else 1
    return [range(n, min(n + step, N)) for n in range(0, N, step)]


def _turn(pairs, inverse, active_1, table_tH, heads: int):
    """The rotation of [t, W] arrays of so many heads, in float32: x * cosine + partner(x) * (+- sine)."""
    H = table_tH.shape[1]
    W, step = heads * H, H // 2 if pairs == "half_split" else 1
    lane_1W = jax.lax.broadcasted_iota(jnp.int32, (1, W), 1)
    first_1W = jax.lax.rem(lane_1W, 2 * step) < step

    def partner(a_tW):
        behind_tW = _roll(a_tW, step)
        return behind_tW if 2 * step == W else jnp.where(first_1W, _roll(a_tW, W - step), behind_tW)

    table_tW = jnp.concatenate([table_tH[...]] * heads, axis=1)
    other_tW = partner(table_tW)
    cos_tW = jnp.where(first_1W, table_tW, other_tW)
    sin_tW = jnp.where(first_1W ^ inverse, -1.0, 1.0) * jnp.where(first_1W, other_tW, table_tW)
    is_active = active_1[0] != 0
    cos_tW, sin_tW = jnp.where(is_active, cos_tW, 1.0), jnp.where(is_active, sin_tW, 0.0)

    def turned(x_tW):
        x_tW = x_tW.astype(jnp.float32)
        return x_tW * cos_tW + partner(x_tW) * sin_tW

    return turned


def _roll(a_tW, by: int):
    """Moves features up by so many lanes."""
    return pltpu.roll(a_tW, by, 1) if a_tW.shape[1] % LANES == 0 else jnp.roll(a_tW, by, 1)
