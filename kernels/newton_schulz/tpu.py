"""The symmetric products for TPUs (Pallas, Mosaic): blocks on and above the diagonal, each written twice.

The grid is (matrix, block on or above the diagonal, step along the columns and one more). The last of the steps that
sum writes the block, the step after it the block's mirror, so that an output block is written once, in turn, by the
usual pipeline. Blocks are large, for few bytes a product; one on the diagonal is itself computed in slabs, each
column slab down to the diagonal, and the half that is missing is mirrored before it is written.

Suffixes: t rows of a block, k columns of a step, P blocks in order.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.newton_schulz.pairs import pairs, setting
from kernels.tpu_chips import chip

LANES = 128
COLUMNS = (512, 384, 256)  # of a step, the first that divides
VMEM_BYTES = 64 << 20  # that the kernel may ask for, where a chip has as much


class Blocks(NamedTuple):
    """How a matrix is cut."""

    rows: int  # of a block at most: so many products for a byte that is read
    slab: int  # columns of a diagonal block that are computed at a time: a side of the matrix unit


# By dtype and, where the first words of the device's kind are known, by that. Chosen by counting bytes and products
# (benchmarks/newton_schulz_static.py) within VMEM (tests/kernels/newton_schulz_test.py), not by time.
BLOCKS = {
    ("bfloat16", ""): Blocks(1024, 128),
    ("bfloat16", "TPU v4"): Blocks(512, 128),  # 16 MB of VMEM
    ("bfloat16", "TPU v6"): Blocks(1024, 256),
    ("bfloat16", "TPU7"): Blocks(1024, 256),
    ("float32", ""): Blocks(512, 128),
    ("float32", "TPU v6"): Blocks(512, 256),
    ("float32", "TPU7"): Blocks(512, 256),
}


def padded(R: int, C: int, dtype) -> tuple[int, int]:
    """The size of a matrix that is not padded again."""
    t, I = _blocks(R, dtype)  # noqa: E741
    return t * I, _ceil(C, LANES) * LANES


def symmetric_product(x_LRC, factors_2=None, *, interpret=False):
    """x x^T; with factors (b, c), b x + c x x^T of symmetric x. With `interpret` step by step, on any platform."""
    L, R, C = x_LRC.shape
    rows, columns = padded(R, C, x_LRC.dtype)
    columns = columns if factors_2 is None else rows  # a symmetric matrix stays square
    x_LRC = jnp.pad(x_LRC, ((0, 0), (0, rows - R), (0, columns - C)))
    t, I = _blocks(R, x_LRC.dtype)  # noqa: E741
    k = next((k for k in COLUMNS if columns % k == 0), LANES)
    rows_P, columns_P = pairs(I, near=I)  # row by row: a block on the diagonal, then those right of it
    steps = columns // k
    scalars = [np.append(a, a[:1]) for a in (rows_P, columns_P)]  # and once more the first, to fetch ahead
    scalars += [] if factors_2 is None else [jnp.asarray(factors_2, jnp.float32)]
    specs = _specs(t, k, I, steps)
    inputs = ["left", "right"] + ["block"] * (factors_2 is not None)
    out_LRR = pl.pallas_call(
        functools.partial(_step, factors_2 is not None, setting(BLOCKS, x_LRC.dtype).slab),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(L, len(rows_P), steps + 1),
            in_specs=[specs[name] for name in inputs],
            out_specs=specs["out"],
            scratch_shapes=[pltpu.VMEM((t, t), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct((L, rows, rows), x_LRC.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=min(VMEM_BYTES, chip().vmem_bytes),
        ),
        name="newton_schulz_product",
        interpret=interpret,
    )(*scalars, *[x_LRC] * len(inputs))
    return out_LRR[:, :R, :R]


def _blocks(R: int, dtype) -> tuple[int, int]:
    """Rows of a block, a multiple of LANES, and how many blocks there are."""
    I = _ceil(R, setting(BLOCKS, dtype).rows)  # noqa: E741
    return _ceil(_ceil(R, I), LANES) * LANES, I


def _specs(t: int, k: int, I: int, steps: int) -> dict[str, pl.BlockSpec]:  # noqa: E741
    """Which block a step sees of each operand. The step that mirrors fetches for the next block."""

    def left(of, p, s, rows_P, _columns_P, *_factors):
        p, s = _next(p, s)
        return of, rows_P[p], s

    def right(of, p, s, rows_P, columns_P, *_factors):
        p, s = _next(p, s)
        # A block on the diagonal has one operand: meanwhile the other holds what the block after it begins with.
        diagonal = rows_P[p] == columns_P[p]
        after = jnp.minimum(columns_P[p] + 1, I - 1)
        return of, jnp.where(diagonal, after, columns_P[p]), jnp.where(diagonal, 0, s)

    def _next(p, s):
        mirrors = s == steps
        return jnp.where(mirrors, p + 1, p), jnp.where(mirrors, 0, s)

    def block(of, p, _s, rows_P, columns_P, *_factors):
        return of, rows_P[p], columns_P[p]

    def out(of, p, s, rows_P, columns_P, *_factors):
        mirrors = s == steps
        return of, jnp.where(mirrors, columns_P[p], rows_P[p]), jnp.where(mirrors, rows_P[p], columns_P[p])

    return {
        "left": pl.BlockSpec((None, t, k), left),
        "right": pl.BlockSpec((None, t, k), right),
        "block": pl.BlockSpec((None, t, t), block),
        "out": pl.BlockSpec((None, t, t), out),
    }


def _step(has_factors: bool, slab: int, rows_P, columns_P, *refs) -> None:
    """One step of a block: it adds a product, or writes the mirror."""
    factors_2, refs = (refs[0], refs[1:]) if has_factors else (None, refs)
    left_tk, right_tk, *block_tt, out_tt, sum_tt = refs
    p, s, steps = pl.program_id(1), pl.program_id(2), pl.num_programs(2) - 1
    diagonal = rows_P[p] == columns_P[p]
    t = sum_tt.shape[0]

    @pl.when(s == 0)
    def _():
        sum_tt[...] = jnp.zeros_like(sum_tt)

    @pl.when((s < steps) & ~diagonal)
    def _():
        sum_tt[...] += _dot(left_tk[...], right_tk[...])

    @pl.when((s < steps) & diagonal)
    def _():
        for start in range(0, t, slab):
            end = min(start + slab, t)
            sum_tt[:end, start:end] += _dot(left_tk[:end], left_tk[start:end])

    @pl.when(s == steps - 1)
    def _():
        value_tt = sum_tt[...]
        if has_factors:
            value_tt = factors_2[0] * block_tt[0][...].astype(jnp.float32) + factors_2[1] * value_tt
        out_tt[...] = value_tt.astype(out_tt.dtype)
        sum_tt[...] = value_tt

    @pl.when((s == steps - 1) & diagonal)
    def _():
        row_tt, column_tt = (jax.lax.broadcasted_iota(jnp.int32, (t, t), axis) for axis in (0, 1))
        value_tt = sum_tt[...]
        out_tt[...] = jnp.where(row_tt <= column_tt, value_tt, value_tt.T).astype(out_tt.dtype)

    @pl.when((s == steps) & ~diagonal)
    def _():
        out_tt[...] = sum_tt[...].astype(out_tt.dtype).T


def _dot(a_ik, b_jk):
    """a b^T in float32."""
    precision = jax.lax.Precision.HIGHEST if a_ik.dtype == jnp.float32 else None
    numbers = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(a_ik, b_jk, numbers, precision=precision, preferred_element_type=jnp.float32)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
