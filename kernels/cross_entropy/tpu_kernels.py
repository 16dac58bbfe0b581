"""What one step of the loss on a TPU computes: a block of the vocabulary with a block of tokens.

Logits are held transposed, [v, t]: vocabulary down the sublanes, tokens along the lanes. So a softmax reduces over
sublanes, which is plain vector arithmetic, and all that a token has is a row [1, t] that broadcasts for free and goes
to memory as it lies. Suffixes: v rows of the output layer of a block, t tokens of a block, n numbers of a token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.cross_entropy.problem import Settings, capped

HIDDEN = -1e30  # a logit that the vocabulary does not have
LANES = 128
MAX, SUM, TARGET, AIM, TEACHER_MAX, TEACHER_SUM = range(6)  # numbers of a token that the forward kernel writes
LSE, SLOPE, HARD, SOFT, TEACHER_LSE = range(5)  # numbers of a token that the backward kernel reads


class Blocks(NamedTuple):
    """How tokens and vocabulary are cut."""

    t: int
    v: int
    I: int  # noqa: E741 (the alphabet of shapes); blocks of tokens
    V: int  # vocabulary, of which the last block may have less than v
    halves: int  # parts of the vocabulary that cores of a chip take, each with its own gradient of x

    @property
    def J(self) -> int:
        """Blocks of the vocabulary."""
        return pl.cdiv(self.V, self.v)

    @property
    def of_half(self) -> int:
        """Blocks of the vocabulary that a core takes at most."""
        return pl.cdiv(self.J, self.halves)


def forward(settings: Settings, blocks: Blocks, names: tuple[str, ...], *refs) -> None:
    """Running maxima and sums of a block of tokens over the blocks of the vocabulary."""
    ref, j = dict(zip(names, refs)), pl.program_id(1)
    sums_nt = ref["sums"]

    @pl.when(j == 0)
    def _():
        sums_nt[...] = jnp.zeros_like(sums_nt)
        for row in (MAX, TEACHER_MAX)[: 1 + ("teacher x" in ref)]:
            sums_nt[row : row + 1] = jnp.full((1, blocks.t), HIDDEN, jnp.float32)

    def block(ragged: bool) -> None:
        valid_vt, column_vt = _columns(blocks, j, ragged)
        logits_vt = _logits(ref["x"][...], _layer(ref["w"], blocks, j, ragged), settings.soft_cap, valid_vt)
        exps_vt, _ = _running(sums_nt, MAX, SUM, logits_vt)
        sums_nt[SUM : SUM + 1] += exps_vt.sum(0, keepdims=True)
        hit_vt = column_vt == ref["targets"][...]
        sums_nt[TARGET : TARGET + 1] += jnp.where(hit_vt, logits_vt, 0.0).sum(0, keepdims=True)
        if "ids" in ref:
            teacher_vt = _named(ref, blocks, j, column_vt)
            sums_nt[AIM : AIM + 1] += (teacher_vt * logits_vt).sum(0, keepdims=True)
        elif "teacher x" in ref:
            layer_vE = _layer(ref["teacher w"], blocks, j, ragged)
            theirs_vt = _logits(ref["teacher x"][...], layer_vE, settings.teacher_cap, valid_vt)
            exps_vt, shrink_1t = _running(sums_nt, TEACHER_MAX, TEACHER_SUM, theirs_vt)
            sums_nt[TEACHER_SUM : TEACHER_SUM + 1] += exps_vt.sum(0, keepdims=True)
            aim_1t = sums_nt[AIM : AIM + 1] * shrink_1t
            sums_nt[AIM : AIM + 1] = aim_1t + (exps_vt * logits_vt).sum(0, keepdims=True)

    _with_last(blocks, j, block)


def _running(sums_nt, top: int, total: int, logits_vt):
    """(exp(logit - new maximum), what shrinks older sums); writes the maximum and shrinks the sum."""
    old_1t = sums_nt[top : top + 1]
    new_1t = jnp.maximum(old_1t, logits_vt.max(0, keepdims=True))
    shrink_1t = jnp.exp(old_1t - new_1t)
    sums_nt[top : top + 1] = new_1t
    sums_nt[total : total + 1] *= shrink_1t
    return jnp.exp(logits_vt - new_1t), shrink_1t


def backward(settings: Settings, blocks: Blocks, names: tuple[str, ...], *refs) -> None:
    """Both gradients from logits computed again: of w for the block, summed over tokens, and of x, summed in memory.

    Blocks of tokens come again for each block of the vocabulary. Their sums are fetched while the logits are computed
    and written back while the next step computes: two buffers, taken in turn.
    """
    ref = dict(zip(names, refs))
    half, own, i = (pl.program_id(axis) for axis in range(3))
    j = half * blocks.of_half + own
    slot = (own * blocks.I + i) & 1
    dx_tD, dw_vD = ref["dx buffer"], ref["dw sum"]

    def fetch(slot, i):
        return pltpu.make_async_copy(ref["dx"].at[half, pl.ds(i * blocks.t, blocks.t)], dx_tD.at[slot], ref["in"])

    def write(slot, i):
        return pltpu.make_async_copy(dx_tD.at[slot], ref["dx"].at[half, pl.ds(i * blocks.t, blocks.t)], ref["out"])

    def settle():  # a wait needs but the size of what was sent
        pl.when((own > 0) | (i > 0))(write(1 - slot, i).wait)

    def block(ragged: bool) -> None:
        if blocks.I == 1:  # else what is fetched now was written two steps ago or more
            settle()
        pl.when(own > 0)(fetch(slot, i).start)
        x_tD, w_vD = ref["x"][...], _layer(ref["w"], blocks, j, ragged)
        dlogits_vt = _logit_gradients(settings, blocks, ref, j, ragged, x_tD, w_vD).astype(x_tD.dtype)

        @pl.when(i == 0)
        def _():
            dw_vD[...] = jnp.zeros_like(dw_vD)

        dw_vD[...] += _dot(dlogits_vt, x_tD, 1, 0)
        part_tD = _dot(dlogits_vt, w_vD, 0, 0)
        if blocks.I > 1:
            settle()

        @pl.when(own > 0)
        def _():
            fetch(slot, i).wait()
            dx_tD[slot] += part_tD

        @pl.when(own == 0)
        def _():
            dx_tD[slot] = part_tD

        write(slot, i).start()

        @pl.when(i == blocks.I - 1)
        def _():
            ref["dw"][...] = dw_vD[...].astype(ref["dw"].dtype)
            last = (own == blocks.of_half - 1) | (j == blocks.J - 1)
            pl.when(last)(write(slot, i).wait)

    pl.when(j < blocks.J)(lambda: _with_last(blocks, j, block))


def _logit_gradients(settings, blocks, ref, j, ragged: bool, x_tD, w_vD):
    """The gradient of the products of x and w."""
    valid_vt, column_vt = _columns(blocks, j, ragged)
    logits_vt = _logits(x_tD, w_vD, settings.soft_cap, valid_vt)
    numbers_nt = ref["numbers"]

    def of_token(n: int):
        return numbers_nt[n : n + 1]

    dlogits_vt = jnp.exp(logits_vt - of_token(LSE)) * of_token(SLOPE)
    dlogits_vt -= jnp.where(column_vt == ref["targets"][...], of_token(HARD), 0.0)
    if "ids" in ref:
        dlogits_vt -= of_token(SOFT) * _named(ref, blocks, j, column_vt)
    elif "teacher x" in ref:
        layer_vE = _layer(ref["teacher w"], blocks, j, ragged)
        theirs_vt = _logits(ref["teacher x"][...], layer_vE, settings.teacher_cap, valid_vt)
        dlogits_vt -= of_token(SOFT) * jnp.exp(theirs_vt - of_token(TEACHER_LSE))
    if settings.soft_cap is not None:  # d tanh(x) = 1 - tanh(x)^2
        dlogits_vt *= 1 - jnp.square(logits_vt / settings.soft_cap)
    return dlogits_vt if valid_vt is None else jnp.where(valid_vt, dlogits_vt, 0.0)


def _with_last(blocks: Blocks, j, block) -> None:
    """Runs `block`, told whether it is the last one and has rows beyond the vocabulary."""
    if blocks.V % blocks.v == 0:
        block(False)
    else:
        pl.when(j < blocks.J - 1)(lambda: block(False))
        pl.when(j == blocks.J - 1)(lambda: block(True))


def _columns(blocks: Blocks, j, ragged: bool):
    """(where there is a vocabulary, or None for everywhere; the number of each row in it)."""
    row_vt = jax.lax.broadcasted_iota(jnp.int32, (blocks.v, blocks.t), 0)
    return row_vt < blocks.V % blocks.v if ragged else None, row_vt + j * blocks.v


def _layer(w_vD, blocks: Blocks, j, ragged: bool):
    """Rows of the output layer; those beyond the vocabulary hold anything in memory and zeros here."""
    del j
    if not ragged:
        return w_vD[...]
    row_vD = jax.lax.broadcasted_iota(jnp.int32, w_vD.shape, 0)
    return jnp.where(row_vD < blocks.V % blocks.v, w_vD[...], jnp.zeros_like(w_vD))


def _logits(x_tD, w_vD, soft_cap, valid_vt):
    logits_vt = capped(_dot(w_vD, x_tD, 1, 1), soft_cap)
    return logits_vt if valid_vt is None else jnp.where(valid_vt, logits_vt, HIDDEN)


def _named(ref, blocks: Blocks, j, column_vt):
    """Probabilities that the teacher named, spread over this block; a token's ids come in ascending order."""
    ids_kt = ref["ids"]

    def places_before(token):
        return (ids_kt[...] < token).astype(jnp.float32).sum(0, keepdims=True)

    # Only the places at which some token of the block has an id of this block, about 40 of 256 with 128k tokens.
    first = jnp.min(places_before(j * blocks.v)).astype(jnp.int32)
    end = jnp.max(places_before((j + 1) * blocks.v)).astype(jnp.int32)

    def add(place, teacher_vt):
        of_place = pl.ds(place, 1)
        return teacher_vt + jnp.where(column_vt == ids_kt[of_place, :], ref["probs"][of_place, :], 0.0)

    return jax.lax.fori_loop(first, end, add, jnp.zeros(column_vt.shape, jnp.float32))


def _dot(a, b, over_a: int, over_b: int):
    """The product of two matrices, summed over these axes, in float32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    numbers = (((over_a,), (over_b,)), ((), ()))
    return jax.lax.dot_general(a, b, numbers, precision=precision, preferred_element_type=jnp.float32)
