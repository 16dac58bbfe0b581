"""Cross entropy of a linear layer on TPUs (Pallas, Mosaic): logits exist as blocks in VMEM alone.

Two kernels, four matrix products. `forward` keeps a block of tokens and walks through the vocabulary with running
maxima and sums. `backward` keeps a block of the vocabulary with its gradient of w, walks through the tokens, computes
the logits again and adds to the gradient of x in memory. At 8192 tokens, width 2048 and a vocabulary of 128k in
bfloat16 that is 17.2 TFLOP, and 26 GB through memory while products run. Logits written in chunks would save the
fourth product, 22 ms of a v5e, and wait for 31 GB, 38 ms (float32 logits out and in, their gradients out and twice
in, the sum of dw in and out for each of 8 chunks); all at once, XLA counts 12.9 TFLOP, 77 GB, 12.6 GB of buffers.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.cross_entropy import tpu_kernels as kernels
from kernels.cross_entropy.problem import Arrays, Head, Settings, TopK
from kernels.cross_entropy.shards import Residuals, Sums, recomputing
from kernels.cross_entropy.tpu_kernels import LANES, Blocks
from kernels.tpu_chips import MIB, chip

TOKENS, VOCABULARY = (1024, 512, 256, LANES), (1024, 512, 256, 128, 64)  # that a block may have
ROOM = 0.92  # of VMEM for what is counted here


def refusal(arrays: Arrays) -> str | None:
    """What about these arrays leaves no room for a kernel, as the end of a sentence."""
    for kernel in (kernels.forward, kernels.backward):
        _, needed = _blocks(kernel, arrays, arrays.targets_BT.size)
        if needed > ROOM * chip().vmem_bytes:
            widths = f"rows of {arrays.w_VD.shape[1]} {arrays.w_VD.dtype} numbers"
            return f"needs {needed / MIB:.0f} MiB of VMEM for {widths}, of {chip().vmem_bytes // MIB} MiB here"
    return None


def _blocks(kernel, arrays: Arrays, X: int) -> tuple[Blocks, int]:
    """Blocks for X tokens, and about the bytes of VMEM that they need.

    What passes through memory is as much as 1/t of all products (forward) or 1/v (backward), so that side is made
    long first, the other as long as fits.
    """
    V = arrays.w_VD.shape[0]
    most_t, most_v = (1024, 512) if kernel is kernels.forward else (512, 1024)
    if arrays.w_VD.dtype == jnp.float32:  # of whose products larger blocks spill 32 MiB
        most_t = most_v = 256 if chip().vmem_bytes > 64 * MIB else 128
    vocabulary = [v for v in VOCABULARY if v < V and v <= most_v] or [min(V, most_v)]
    tokens = [t for t in TOKENS if t < 2 * X and t <= most_t] or TOKENS[-1:]
    pairs = [(t, v) for t in tokens for v in vocabulary]
    if kernel is kernels.backward:
        pairs.sort(key=lambda pair: -pair[1])
    needed = {pair: _bytes(kernel, arrays, *pair) for pair in pairs}
    t, v = next((pair for pair in pairs if needed[pair] <= ROOM * chip().vmem_bytes), pairs[-1])
    return Blocks(t, v, pl.cdiv(X, t), V, chip().cores), needed[t, v]


def _bytes(kernel, arrays: Arrays, t: int, v: int) -> int:
    """About what a kernel keeps in VMEM; all that comes or goes by blocks is there twice."""
    (_, D), size, teacher = arrays.w_VD.shape, arrays.w_VD.dtype.itemsize, arrays.teacher
    kept = 2 * (t + v) * D * size + 6 * t * v * 4
    if size == 4:  # exact products take operands apart, into three of bfloat16 each
        kept += (t + v) * D * 8
    if isinstance(teacher, Head):
        E, of_teacher = teacher.w_VE.shape[1], teacher.w_VE.dtype.itemsize
        kept += 2 * (t + v) * E * of_teacher + 2 * t * v * 4 + ((t + v) * E * 8 if of_teacher == 4 else 0)
    if isinstance(teacher, TopK):
        kept += 4 * t * teacher.ids_BTk.shape[-1] * 4 + t * v * 4
    if kernel is kernels.backward:
        kept += v * D * (2 * size + 4) + 3 * t * D * 4
    return kept


def _inputs(kernel, arrays: Arrays) -> tuple[Blocks, dict[str, jax.Array]]:
    """(blocks, arrays that both kernels read by name), tokens in one row of whole blocks."""
    X = arrays.targets_BT.size
    blocks, _ = _blocks(kernel, arrays, X)

    def rows(a_BT):  # [B, T, ...] -> [X, ...]
        a_X = a_BT.reshape(X, *a_BT.shape[2:])
        return jnp.pad(a_X, [(0, blocks.t * blocks.I - X)] + [(0, 0)] * (a_X.ndim - 1))

    named = {"targets": rows(arrays.targets_BT)[None], "x": rows(arrays.x_BTD), "w": arrays.w_VD}
    if isinstance(arrays.teacher, TopK):
        ids_kX, probs_kX = (rows(a).T for a in arrays.teacher)
        named["ids"], named["probs"] = jax.lax.sort((ids_kX, probs_kX), dimension=0, num_keys=1)
    elif isinstance(arrays.teacher, Head):
        named |= {"teacher x": rows(arrays.teacher.x_BTE), "teacher w": arrays.teacher.w_VE}
    return blocks, named


def _specs(blocks: Blocks, named: dict[str, jax.Array], index) -> list[pl.BlockSpec]:
    """Which block a step sees of each array; `index` gives the blocks of tokens and vocabulary of a step."""

    def spec(name, array):
        if name in ("w", "teacher w"):
            return pl.BlockSpec((blocks.v, array.shape[1]), lambda *step: (index(*step)[1], 0))
        if name in ("x", "teacher x"):
            return pl.BlockSpec((blocks.t, array.shape[1]), lambda *step: (index(*step)[0], 0))
        return pl.BlockSpec((array.shape[0], blocks.t), lambda *step: (0, index(*step)[0]))

    return [spec(*item) for item in named.items()]


def _compiler(*semantics: str) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=chip().vmem_bytes - MIB // 2)


def _sums(interpret: bool, settings: Settings, arrays: Arrays) -> Sums:
    blocks, named = _inputs(kernels.forward, arrays)
    n = {type(None): 3, TopK: 4, Head: 6}[type(arrays.teacher)]
    out = jax.ShapeDtypeStruct((n, blocks.t * blocks.I), jnp.float32)
    sums_nX = pl.pallas_call(
        functools.partial(kernels.forward, settings, blocks, (*named, "sums")),
        grid=(blocks.I, blocks.J),
        in_specs=_specs(blocks, named, lambda i, j: (i, j)),
        out_specs=pl.BlockSpec((n, blocks.t), lambda i, _: (0, i)),
        out_shape=out,
        compiler_params=_compiler("parallel", "arbitrary"),
        name="cross_entropy_forward",
        interpret=interpret,
    )(*named.values())
    B, T = arrays.targets_BT.shape
    return Sums(*(a_X[: B * T].reshape(B, T) for a_X in sums_nX))


def _gradients(interpret: bool, settings: Settings, arrays: Arrays, slope_BT, residuals: Residuals):
    blocks, named = _inputs(kernels.backward, arrays)
    (B, T), (V, D) = arrays.targets_BT.shape, arrays.w_VD.shape
    X = blocks.t * blocks.I
    numbers = [residuals.lse_BT, slope_BT, arrays.hard_BT, arrays.soft_BT, residuals.teacher_lse_BT]
    numbers_nY = jnp.stack([a_BT.reshape(B * T) for a_BT in numbers if a_BT is not None])
    named["numbers"] = jnp.pad(numbers_nY, ((0, 0), (0, X - B * T)))  # so that padding has no gradient
    last = blocks.J - 1

    def index(half, own, i):
        return i, jnp.minimum(half * blocks.of_half + own, last)

    dx_hXD, dw_VD = pl.pallas_call(
        functools.partial(
            kernels.backward, settings, blocks, (*named, "dx", "dw", "dw sum", "dx buffer", "in", "out")
        ),
        grid=(blocks.halves, blocks.of_half, blocks.I),
        in_specs=_specs(blocks, named, index),
        out_specs=(
            pl.BlockSpec(memory_space=pl.ANY),
            pl.BlockSpec((blocks.v, D), lambda *step: (index(*step)[1], 0)),
        ),
        out_shape=(
            jax.ShapeDtypeStruct((blocks.halves, X, D), jnp.float32),
            jax.ShapeDtypeStruct((V, D), arrays.w_VD.dtype),
        ),
        scratch_shapes=[
            pltpu.VMEM((blocks.v, D), jnp.float32),
            pltpu.VMEM((2, blocks.t, D), jnp.float32),
            pltpu.SemaphoreType.DMA,
            pltpu.SemaphoreType.DMA,
        ],
        compiler_params=_compiler("parallel", "arbitrary", "arbitrary"),
        name="cross_entropy_backward",
        interpret=interpret,
    )(*named.values())
    return dx_hXD.sum(0)[: B * T].reshape(B, T, D), dw_VD


def _implementation(interpret: bool):
    return recomputing(functools.partial(_sums, interpret), functools.partial(_gradients, interpret))


IMPLEMENTATION, INTERPRETED = _implementation(False), _implementation(True)
