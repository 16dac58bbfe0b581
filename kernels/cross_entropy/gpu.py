"""Cross entropy of a linear layer on GPUs by blocks of the vocabulary: products by XLA, softmax by Pallas (Triton).

The products are XLA's because cuBLAS reaches more of a Hopper chip than matrix products in Triton do, and they are
nearly all of the work. A block's logits go to memory in float32 and are read once: XLA alone would read them for the
maximum and again for the sum. The backward pass computes them again, the fourth product, so that one block of logits
and one of gradients are all there ever is: at 8192 tokens and a vocabulary of 128k 0.4 GB beside the results, where
logits and their gradients in float32 are 8.4 GB. Chunks of tokens would save that product, but add to a gradient of w
in float32, 1 GB in and out for each chunk.

float32 products have XLA's precision for the platform, as plain ones have (`jax_default_matmul_precision`).
Suffixes: X all tokens, v rows of the output layer of a block.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels.cross_entropy.problem import Arrays, Head, Settings, TopK, capped
from kernels.cross_entropy.shards import Residuals, Sums, recomputing

BLOCK_LOGITS = 2**26  # of a block: 256 MiB in float32
COLUMNS = 4096  # that a program of the kernel holds at once


def _sums(interpret: bool, settings: Settings, arrays: Arrays) -> Sums:
    rows, (B, T) = _Rows(arrays), arrays.targets_BT.shape
    start = [jnp.full(B * T, -jnp.inf), jnp.zeros(B * T)]  # maximum and sum
    start = start * 2 + [jnp.zeros(B * T)] if isinstance(arrays.teacher, Head) else start

    def block(carry, first, width):
        target_X, aim_X, running = carry
        logits_Xv, theirs_Xv = rows.products(first, width)
        running = _running(interpret, settings, logits_Xv, theirs_Xv, running)
        target_X += _at(settings, logits_Xv, rows.targets_X[:, None] - first)[:, 0]
        if isinstance(arrays.teacher, TopK):
            aim_X += jnp.sum(rows.probs_Xk * _at(settings, logits_Xv, rows.ids_Xk - first), -1)
        return target_X, aim_X, running

    zeros_X = jnp.zeros(B * T)
    target_X, aim_X, running = _over_vocabulary(arrays, block, (zeros_X, zeros_X, tuple(start)))
    found = [*running[:2], target_X]
    if isinstance(arrays.teacher, TopK):
        found += [aim_X]
    elif isinstance(arrays.teacher, Head):
        found += [running[4], running[2], running[3]]
    return Sums(*(a_X.reshape(B, T) for a_X in found))


def _gradients(interpret: bool, settings: Settings, arrays: Arrays, slope_BT, residuals: Residuals):
    """One fused pass over a block's logits makes their gradients; XLA does that as well as a kernel would."""
    del interpret
    rows, (B, T), D = _Rows(arrays), arrays.targets_BT.shape, arrays.w_VD.shape[1]
    slope_X, lse_X, hard_X, soft_X, teacher_lse_X = (
        None if a is None else a.reshape(B * T)[:, None]
        for a in (slope_BT, residuals.lse_BT, arrays.hard_BT, arrays.soft_BT, residuals.teacher_lse_BT)
    )

    if isinstance(arrays.teacher, TopK):  # probability of each id in all its places
        same_Xkk = rows.ids_Xk[:, :, None] == rows.ids_Xk[:, None]
        totals_Xk = jnp.sum(jnp.where(same_Xkk, rows.probs_Xk[:, None], 0.0), -1)

    def block(carry, first, width):
        dx_XD, dw_VD = carry
        raw_Xv, theirs_Xv = rows.products(first, width)

        def gradient(raw, ids, theirs=None, probs=0.0):
            logits = capped(raw, settings.soft_cap)
            dlogits = jnp.exp(logits - lse_X) * slope_X - jnp.where(ids == rows.targets_X[:, None], hard_X, 0.0)
            if theirs is not None:
                dlogits -= soft_X * jnp.exp(capped(theirs, settings.teacher_cap) - teacher_lse_X)
            elif soft_X is not None:
                dlogits -= soft_X * probs
            if settings.soft_cap is not None:  # d tanh(x) = 1 - tanh(x)^2
                dlogits *= 1 - jnp.square(logits / settings.soft_cap)
            return dlogits.astype(rows.x_XD.dtype)

        dlogits_Xv = gradient(raw_Xv, first + jnp.arange(width), theirs_Xv)
        if isinstance(arrays.teacher, TopK):  # computed whole and put over what was there, so the order is no matter
            place_Xk = jnp.where(rows.ids_Xk < first, width, rows.ids_Xk - first)
            raw_Xk = jnp.take_along_axis(raw_Xv, jnp.minimum(place_Xk, width - 1), axis=1)
            exact_Xk = gradient(raw_Xk, rows.ids_Xk, None, totals_Xk)
            token_X1 = jnp.arange(B * T)[:, None]
            dlogits_Xv = dlogits_Xv.at[token_X1, place_Xk].set(exact_Xk, mode="drop")
        w_vD = jax.lax.dynamic_slice_in_dim(arrays.w_VD, first, width)
        dx_XD += jnp.einsum("Xv,vD->XD", dlogits_Xv, w_vD, preferred_element_type=jnp.float32)
        dw_vD = jnp.einsum("Xv,XD->vD", dlogits_Xv, rows.x_XD, preferred_element_type=dw_VD.dtype)
        return dx_XD, jax.lax.dynamic_update_slice_in_dim(dw_VD, dw_vD, first, 0)

    start = jnp.zeros((B * T, D), jnp.float32), jnp.zeros_like(arrays.w_VD)
    dx_XD, dw_VD = _over_vocabulary(arrays, block, start)
    return dx_XD.reshape(B, T, D), dw_VD


class _Rows:
    """The arrays of tokens with B and T as one axis, X."""

    def __init__(self, arrays: Arrays):
        self.arrays = arrays
        X = arrays.targets_BT.size
        self.x_XD, self.targets_X = arrays.x_BTD.reshape(X, -1), arrays.targets_BT.reshape(X)
        if isinstance(arrays.teacher, TopK):
            self.ids_Xk, self.probs_Xk = (a.reshape(X, -1) for a in arrays.teacher)

    def products(self, first, width: int):
        """(products with `width` rows of the output layer, those of a whole teacher or None), in float32."""

        def product(x, w_VD):
            w_vD = jax.lax.dynamic_slice_in_dim(w_VD, first, width)
            return jnp.einsum("XD,vD->Xv", x.reshape(-1, x.shape[-1]), w_vD, preferred_element_type=jnp.float32)

        teacher = self.arrays.teacher
        theirs_Xv = product(teacher.x_BTE, teacher.w_VE) if isinstance(teacher, Head) else None
        return product(self.x_XD, self.arrays.w_VD), theirs_Xv


def _over_vocabulary(arrays: Arrays, block, carry):
    """`block` over equal blocks of the vocabulary and what is left, one after the other."""
    V, X = arrays.w_VD.shape[0], arrays.targets_BT.size
    count = -(-V * X // BLOCK_LOGITS)
    width = min(V, -(-V // count // 128) * 128)  # tiles of a matrix product are whole
    whole, rest = divmod(V, width)
    if whole > 1:
        carry, _ = jax.lax.scan(lambda c, j: (block(c, j * width, width), None), carry, jnp.arange(whole))
    elif whole:
        carry = block(carry, 0, width)
    return block(carry, whole * width, rest) if rest else carry


def _at(settings, raw_Xv, ids_Xk):
    """Logits at ids counted from the block's first, 0 where they are in another block."""
    width = raw_Xv.shape[1]
    logits_Xk = capped(jnp.take_along_axis(raw_Xv, jnp.clip(ids_Xk, 0, width - 1), axis=1), settings.soft_cap)
    return jnp.where((ids_Xk >= 0) & (ids_Xk < width), logits_Xk, 0.0)


def _running(interpret, settings, raw_Xv, theirs_Xv, running):
    """Maxima and sums with this block's: of the logits and, with a teacher, of its logits, and what it aims at."""
    X, width = raw_Xv.shape
    of_row, scalar = pl.BlockSpec((1, width), lambda i: (i, 0)), pl.BlockSpec((1,), lambda i: (i,))
    blocks = [raw_Xv] if theirs_Xv is None else [raw_Xv, theirs_Xv]
    return pl.pallas_call(
        functools.partial(_row, settings, width, theirs_Xv is not None),
        grid=(X,),
        in_specs=[of_row] * len(blocks) + [scalar] * len(running),
        out_specs=(scalar,) * len(running),
        out_shape=tuple(jax.ShapeDtypeStruct((X,), jnp.float32) for _ in running),
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=2),
        name="cross_entropy_sums",
        interpret=interpret,
    )(*blocks, *running)


def _row(settings, width: int, has_teacher: bool, *refs) -> None:
    """A program: one token's logits of a block, COLUMNS at a time."""
    inputs, refs = refs[: 1 + has_teacher], refs[1 + has_teacher :]
    olds, outs = refs[: len(refs) // 2], refs[len(refs) // 2 :]
    size = min(COLUMNS, pl.next_power_of_2(width))

    def columns(ref, c, soft_cap):
        column_c = c * size + jnp.arange(size)
        here_1c = (column_c < width)[None]
        raw_1c = plgpu.load(ref.at[:, pl.ds(c * size, size)], mask=here_1c, other=0.0)
        return jnp.where(here_1c, capped(raw_1c, soft_cap), -jnp.inf), here_1c

    def add(c, running):
        logits_1c, here_1c = columns(inputs[0], c, settings.soft_cap)
        max_1, sum_1, *theirs = running
        *found, _, _ = _grown(logits_1c, max_1, sum_1)
        if has_teacher:
            theirs_1c, _ = columns(inputs[1], c, settings.teacher_cap)
            top_1, total_1, exps_1c, shrink_1 = _grown(theirs_1c, *theirs[:2])
            aim_1 = theirs[2] * shrink_1 + jnp.sum(exps_1c * jnp.where(here_1c, logits_1c, 0.0), 1)
            found += [top_1, total_1, aim_1]
        return tuple(found)

    running = jax.lax.fori_loop(0, pl.cdiv(width, size), add, tuple(ref[...] for ref in olds))
    for out, value in zip(outs, running):
        out[...] = value


def _grown(logits_1c, max_1, sum_1):
    """(maximum, sum of exponentials, these exponentials, what older ones shrink by)."""
    new_1 = jnp.maximum(max_1, jnp.max(logits_1c, 1))
    shrink_1, exps_1c = jnp.exp(max_1 - new_1), jnp.exp(logits_1c - new_1[:, None])
    return new_1, sum_1 * shrink_1 + jnp.sum(exps_1c, 1), exps_1c, shrink_1


def _implementation(interpret: bool):
    return recomputing(functools.partial(_sums, interpret), functools.partial(_gradients, interpret))


IMPLEMENTATION, INTERPRETED = _implementation(False), _implementation(True)
