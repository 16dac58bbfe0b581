"""The symmetric products for GPUs (Pallas, Triton): a tile a program, on and above the diagonal, and its mirror.

Tiles are visited in squares of NEAR x NEAR, so that programs that run at a time share rows in the second-level cache.

Suffixes: t rows of a tile, k columns of a step, P tiles in order.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels.newton_schulz.pairs import pairs, setting

NEAR = 8
MOST = 1 << 31  # elements that 32-bit offsets reach; larger stacks go a matrix at a time


class Tiles(NamedTuple):
    """How a kernel is cut and compiled."""

    t: int
    k: int
    warps: int
    stages: int


# By dtype and, where the first words of the device's kind are known, by that; none of them is measured yet.
TILES = {
    ("bfloat16", ""): Tiles(128, 64, 8, 3),
    ("bfloat16", "NVIDIA H100"): Tiles(128, 64, 8, 4),
    ("bfloat16", "NVIDIA H200"): Tiles(128, 64, 8, 4),
    ("float32", ""): Tiles(64, 32, 4, 3),
}


def padded(R: int, C: int, dtype) -> tuple[int, int]:
    """The size of a matrix that is not padded again."""
    t, k, *_ = setting(TILES, dtype)
    return -(-R // t) * t, -(-C // k) * k


def symmetric_product(x_LRC, factors_2=None, *, interpret=False):
    """x x^T; with factors (b, c), b x + c x x^T of symmetric x. With `interpret` step by step, on any platform."""
    L, R, C = x_LRC.shape
    chosen = setting(TILES, x_LRC.dtype)
    rows, columns = padded(R, C, x_LRC.dtype)
    columns = columns if factors_2 is None else rows  # a symmetric matrix stays square
    x_LRC = jnp.pad(x_LRC, ((0, 0), (0, rows - R), (0, columns - C)))
    if L > 1 and L * rows * max(rows, columns) >= MOST:
        return jax.lax.map(
            lambda x_RC: symmetric_product(x_RC[None], factors_2, interpret=interpret)[0, :R, :R], x_LRC
        )
    rows_P, columns_P = pairs(rows // chosen.t, NEAR)
    scalars = [jnp.asarray(rows_P), jnp.asarray(columns_P)]
    scalars += [] if factors_2 is None else [jnp.asarray(factors_2, jnp.float32)]

    def matrix(*shape):
        return pl.BlockSpec((None, *shape), lambda _p, of: (of, 0, 0))

    out_LRR = pl.pallas_call(
        functools.partial(_tile, chosen, factors_2 is not None),
        grid=(len(rows_P), L),
        in_specs=[*(pl.BlockSpec(a.shape, lambda _p, _of: (0,)) for a in scalars), matrix(rows, columns)],
        out_specs=matrix(rows, rows),
        out_shape=jax.ShapeDtypeStruct((L, rows, rows), x_LRC.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=chosen.warps, num_stages=chosen.stages),
        name="newton_schulz_product",
        interpret=interpret,
    )(*scalars, x_LRC)
    return out_LRR[:, :R, :R]


def _tile(chosen: Tiles, has_factors: bool, rows_P, columns_P, *refs) -> None:
    """One tile and its mirror."""
    factors_2, refs = (refs[0], refs[1:]) if has_factors else (None, refs)
    x_RC, out_RR = refs
    t, k = chosen.t, chosen.k
    i, j = (a[pl.program_id(0)] for a in (rows_P, columns_P))
    rows, columns = pl.ds(i * t, t), pl.ds(j * t, t)

    def add(step, sum_tt):
        some = pl.ds(step * k, k)
        return sum_tt + _dot(x_RC[rows, some], x_RC[columns, some])

    value_tt = jax.lax.fori_loop(0, x_RC.shape[1] // k, add, jnp.zeros((t, t), jnp.float32))
    if has_factors:
        value_tt = factors_2[0] * x_RC[rows, columns].astype(jnp.float32) + factors_2[1] * value_tt
    value_tt = value_tt.astype(out_RR.dtype)
    mirror_tt = value_tt.T
    row_tt, column_tt = (jax.lax.broadcasted_iota(jnp.int32, (t, t), axis) for axis in (0, 1))
    below_tt = (i == j) & (row_tt > column_tt)  # a tile on the diagonal is its own mirror
    out_RR[rows, columns] = jnp.where(below_tt, mirror_tt, value_tt)
    out_RR[columns, rows] = jnp.where((i == j) & (row_tt < column_tt), value_tt, mirror_tt)


def _dot(a_tk, b_tk):
    """a b^T in float32."""
    precision = jax.lax.Precision.HIGHEST if a_tk.dtype == jnp.float32 else None
    return plgpu.dot(a_tk, b_tk, trans_b=True, precision=precision)
