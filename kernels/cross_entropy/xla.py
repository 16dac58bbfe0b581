"""Cross entropy of a linear layer in chunks along T: no array of shape [B, T, V] exists.

The loss is a sum, so its gradients are known up to the scalar cotangent as soon as a chunk's logits are: the
forward rule computes them in the same pass (as Liger-Kernel does, arXiv:2410.10989), three matrix products in
all, and the backward rule only scales them. Each chunk holds all of B, which keeps a sharded batch axis
sharded.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.cross_entropy.problem import Arrays, Head, Output, Settings, TopK, capped, mass, slope, token_loss
from kernels.cross_entropy.shards import Implementation, Residuals, Split

CHUNK_LOGITS = 2**21  # 8 MiB in float32; 2**20 is as fast on 2 cores, 2**19 and 2**22 lose 5-15%

# Some tokens to their summed loss, what `Output` shows of each, and the gradient of their logits, with these.
ChunkOf = Callable[[Arrays], tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array | None], jax.Array, jax.Array]]

_barrier = jax.lax.optimization_barrier


def _loss(settings: Settings, split: Split, arrays: Arrays) -> Output:
    """The loss alone, when nothing is differentiated."""

    def chunk(loss, tokens):
        here = arrays.with_tokens(tokens)
        terms = _terms(settings, split, here)
        return loss + _of_chunk(settings, here, terms), terms.shown

    loss, shown = scan(chunk, jnp.float32(0), arrays.of_tokens(), arrays.w_VD.shape[0])
    return Output(split.token_total(loss), *shown)


class _Terms(NamedTuple):
    """Of one chunk, in float32; the softmax is exps_BtV / sum_Bt."""

    logits_BtV: jax.Array
    exps_BtV: jax.Array
    sum_Bt: jax.Array
    lse_Bt: jax.Array
    shown: tuple[jax.Array, jax.Array, jax.Array | None]  # of each token, as in Output
    teacher_BtV: jax.Array | None  # a whole teacher's distribution


def _terms(settings, split, arrays) -> _Terms:
    logits_BtV, exps_BtV, max_Bt, sum_Bt = softmax(split, arrays.x_BTD, arrays.w_VD, settings.soft_cap)
    lse_Bt = max_Bt + jnp.log(sum_Bt)
    target_Bt = _at(split, logits_BtV, arrays.targets_BT[..., None])[..., 0]
    teacher, teacher_nats_Bt, teacher_BtV = arrays.teacher, None, None
    if isinstance(teacher, TopK):
        aim_Bt = jnp.sum(teacher.probs_BTk * _at(split, logits_BtV, teacher.ids_BTk), -1)
        teacher_nats_Bt = mass(teacher) * lse_Bt - aim_Bt
    elif isinstance(teacher, Head):
        _, teacher_BtV, _, total_Bt = softmax(split, teacher.x_BTE, teacher.w_VE, settings.teacher_cap)
        teacher_BtV = teacher_BtV / total_Bt[..., None]
        teacher_nats_Bt = lse_Bt - split.total(jnp.sum(teacher_BtV * logits_BtV, -1))
    shown = lse_Bt - target_Bt, target_Bt >= max_Bt, teacher_nats_Bt
    return _Terms(logits_BtV, exps_BtV, sum_Bt, lse_Bt, shown, teacher_BtV)


def _of_chunk(settings, arrays, terms):
    """The loss of its tokens."""
    nats_Bt, _, teacher_nats_Bt = terms.shown
    return token_loss(settings, arrays, terms.lse_Bt, nats_Bt, teacher_nats_Bt)


def softmax(split, x_BtD, w_VD, soft_cap):
    """(logits_BtV, exps_BtV, max_Bt, sum_Bt); maximum and sum over the whole vocabulary."""
    logits_BtV = jnp.einsum("BtD,VD->BtV", x_BtD, w_VD, preferred_element_type=jnp.float32)
    logits_BtV = capped(logits_BtV, soft_cap)
    max_Bt = split.largest(logits_BtV.max(-1))
    exps_BtV = _barrier(jnp.exp(logits_BtV - max_Bt[..., None]))  # without it XLA computes each exp() twice
    return logits_BtV, exps_BtV, max_Bt, split.total(exps_BtV.sum(-1))


def _at(split, logits_BtV, ids_Btk):
    """Logits at these tokens of the whole vocabulary."""
    if not split.vocabulary:
        return jnp.take_along_axis(logits_BtV, ids_Btk, axis=-1)
    V = logits_BtV.shape[-1]
    ids_Btk, here_Btk = _local(split, ids_Btk, V)
    return split.total(jnp.where(here_Btk, jnp.take_along_axis(logits_BtV, jnp.minimum(ids_Btk, V - 1), axis=-1), 0))


def _local(split, ids_Btk, V):
    """(ids counted from the first token that is here, or V; whether they are here)."""
    ids_Btk = ids_Btk - jax.lax.axis_index(split.vocabulary) * V
    here_Btk = (ids_Btk >= 0) & (ids_Btk < V)
    return jnp.where(here_Btk, ids_Btk, V), here_Btk


def scan(chunk, carry, inputs, V):
    """Scans `chunk` over slices of T and joins what it returns along T; the last slice may be shorter."""
    B, T = inputs.targets_BT.shape
    t = max(1, min(T, CHUNK_LOGITS // (B * V)))
    outs = None
    if T // t:

        def at(carry, index):
            return chunk(carry, jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, index * t, t, 1), inputs))

        carry, outs = jax.lax.scan(at, carry, jnp.arange(T // t))
        outs = jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1).reshape(B, -1, *a.shape[3:]), outs)
    if T % t:
        carry, rest = chunk(carry, jax.tree.map(lambda a: a[:, T - T % t :], inputs))
        outs = jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), outs, rest)
    return carry, outs


def _forward(settings: Settings, split: Split, arrays: Arrays) -> tuple[Output, Residuals]:
    """The loss and, as residuals, both gradients for a cotangent of 1."""

    def chunk(here):
        terms = _terms(settings, split, here)
        loss = _of_chunk(settings, here, terms)
        return loss, terms.shown, _logit_gradients(settings, split, here, terms), terms.logits_BtV

    return gradients(chunk, settings, split, arrays)


def gradients(chunk_of: ChunkOf, settings: Settings, split: Split, arrays: Arrays) -> tuple[Output, Residuals]:
    """The same of any loss of the logits, chunk by chunk."""
    V, D = arrays.w_VD.shape

    def chunk(carry, tokens):
        loss, dw_DV = carry
        here = arrays.with_tokens(tokens)
        own, shown, dlogits_BtV, logits_BtV = chunk_of(here)
        loss += own
        if settings.soft_cap is not None:  # d tanh(x) = 1 - tanh(x)^2
            dlogits_BtV *= 1 - jnp.square(logits_BtV / settings.soft_cap)
        dlogits_BtV = dlogits_BtV.astype(here.x_BTD.dtype)
        dx_BtD = split.total(jnp.einsum("BtV,VD->BtD", dlogits_BtV, arrays.w_VD, preferred_element_type=jnp.float32))
        # As [D, Bt] x [Bt, V] with the small operand transposed by hand: [V, Bt] x [Bt, D] would transpose
        # all of dlogits, and the whole op then takes 1.25 times as long.
        x_DX, dlogits_XV = _barrier(here.x_BTD.reshape(-1, D).T), dlogits_BtV.reshape(-1, V)
        dw_DV += jnp.einsum("DX,XV->DV", x_DX, dlogits_XV, preferred_element_type=jnp.float32)
        return (loss, dw_DV), (shown, dx_BtD.astype(here.x_BTD.dtype))

    start = jnp.float32(0), jnp.zeros((D, V), jnp.float32)
    (loss, dw_DV), (shown, dx_BTD) = scan(chunk, start, arrays.of_tokens(), V)
    dw_VD = split.token_total(dw_DV).T.astype(arrays.w_VD.dtype)
    return Output(split.token_total(loss), *shown), Residuals(dx_BTD=dx_BTD, dw_VD=dw_VD)


def _logit_gradients(settings, split, arrays, terms):
    """The gradient of a chunk's logits, after the soft cap."""
    slope_Bt = slope(settings, arrays, terms.lse_Bt) / terms.sum_Bt
    V, targets_Bt1 = arrays.w_VD.shape[0], arrays.targets_BT[..., None]
    hit_BtV = jnp.arange(V) == (_local(split, targets_Bt1, V)[0] if split.vocabulary else targets_Bt1)
    dlogits_BtV = terms.exps_BtV * slope_Bt[..., None] - hit_BtV * arrays.hard_BT[..., None]
    if isinstance(arrays.teacher, TopK):
        ids_Btk = arrays.teacher.ids_BTk
        if split.vocabulary:
            ids_Btk, _ = _local(split, ids_Btk, V)
        B, t, _ = ids_Btk.shape
        place = jnp.arange(B)[:, None, None], jnp.arange(t)[:, None], ids_Btk
        dlogits_BtV = dlogits_BtV.at[place].add(-arrays.soft_BT[..., None] * arrays.teacher.probs_BTk, mode="drop")
    elif isinstance(arrays.teacher, Head):
        dlogits_BtV -= arrays.soft_BT[..., None] * terms.teacher_BtV
    return dlogits_BtV


def backward(_settings, _split, _arrays, residuals: Residuals, dloss):
    """Scales the gradients that the forward rule left."""
    dx_BTD, dw_VD = residuals.dx_BTD, residuals.dw_VD
    return (dx_BTD * dloss).astype(dx_BTD.dtype), (dw_VD * dloss).astype(dw_VD.dtype)


IMPLEMENTATION = Implementation(_loss, _forward, backward)
