"""An implementation on the devices of a mesh: tokens split over batch and context, vocabulary over `tensor`.

Every device computes with its tokens and its part of the vocabulary; then the maximum, sum and target logit of each
token, [B, T] in all, are combined over `tensor`, and gradients are summed where what they belong to is whole. Neither
logits nor output layer travel along `tensor`. Gradients are ours, so that they need no rule of any kernel.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from kernels.cross_entropy.problem import Arrays, Head, Output, Settings, TopK, mass, slope, token_loss
from kernels.dispatch import (
    BATCH_AXES,
    CONTEXT_AXES,
    TENSOR_AXES,
    free_axes,
    mesh_axes,
    over_mesh,
    parameter_parts,
    sum_onto_parts,
)


class Split(NamedTuple):
    """Mesh axes that hold parts of the arrays; without any, the arrays are whole."""

    batch: tuple[str, ...] = ()
    context: tuple[str, ...] = ()  # of the tokens of a row
    vocabulary: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()  # that also get each their rows of the gradient of the output layer

    def first(self, w_VD: jax.Array):
        """Number of the first token of the vocabulary that is here."""
        return jax.lax.axis_index(self.vocabulary) * w_VD.shape[0] if self.vocabulary else 0

    def largest(self, a: jax.Array) -> jax.Array:
        """Over the parts of the vocabulary."""
        return jax.lax.pmax(a, self.vocabulary) if self.vocabulary else a

    def total(self, a: jax.Array) -> jax.Array:
        """Summed over the parts of the vocabulary."""
        return jax.lax.psum(a, self.vocabulary) if self.vocabulary else a

    def token_total(self, a: jax.Array) -> jax.Array:
        """Summed over the parts of the batch and of its rows."""
        axes = self.batch + self.context
        return jax.lax.psum(a, axes) if axes else a

    def onto_parts(self, dw_VD: jax.Array) -> jax.Array:
        """The same of the gradient of the output layer, its rows of this part."""
        axes = self.batch + self.context
        return sum_onto_parts(dw_VD, axes, self.parts) if axes else dw_VD


class Residuals(NamedTuple):
    """What the backward rule needs beside the arrays: log-sum-exps to compute again from, or the gradients."""

    lse_BT: jax.Array | None = None
    teacher_lse_BT: jax.Array | None = None
    dx_BTD: jax.Array | None = None
    dw_VD: jax.Array | None = None


class Implementation(NamedTuple):
    """Functions of the arrays, or of the part of them that a device holds."""

    loss: Callable[[Settings, Split, Arrays], Output]
    forward: Callable[[Settings, Split, Arrays], tuple[Output, Residuals]]
    backward: Callable[[Settings, Split, Arrays, Residuals, jax.Array], tuple[jax.Array, jax.Array]]
    is_kernel: bool = False  # XLA cannot partition it


def run(implementation: Implementation, settings: Settings, arrays: Arrays) -> Output:
    """The loss, differentiable in x and w, on the devices of the mesh in context."""
    B, T, _ = arrays.x_BTD.shape
    vocabulary = mesh_axes(TENSOR_AXES, arrays.w_VD.shape[0])
    batch, context = mesh_axes(BATCH_AXES, B), mesh_axes(CONTEXT_AXES, T)
    rows = arrays.w_VD.shape[0] // math.prod(free_axes()[axis] for axis in vocabulary)
    parts = parameter_parts(rows, batch + context) if implementation.is_kernel else ()
    split = Split(batch, context, vocabulary, parts)
    by_hand = any(split) or (implementation.is_kernel and free_axes())
    return _run(implementation, settings, split if by_hand else None, arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _run(implementation, settings, split, arrays):
    specs = _Specs(split)
    of_part = functools.partial(implementation.loss, settings, split or Split())
    return specs.map(of_part, (specs.arrays(arrays),), specs.output)(arrays)


def _forward(implementation, settings, split, arrays):
    specs = _Specs(split)
    of_part = functools.partial(implementation.forward, settings, split or Split())
    out, residuals = specs.map(of_part, (specs.arrays(arrays),), (specs.output, specs.residuals))(arrays)
    return out, (arrays, residuals)


def _backward(implementation, settings, split, kept, cotangents):
    """Gradients of x and w; weights and teacher have none, nor have the nats."""
    arrays, residuals = kept
    specs = _Specs(split)
    of_part = functools.partial(implementation.backward, settings, split or Split())
    mapped = specs.map(of_part, (specs.arrays(arrays), specs.residuals, P()), (specs.tokens, specs.gradient))
    dx_BTD, dw_VD = mapped(arrays, residuals, cotangents.loss)
    return (Arrays(dx_BTD, dw_VD, None, None, None, None),)


_run.defvjp(_forward, _backward)


class _Specs:
    """Which axes of the arrays the mesh splits."""

    def __init__(self, split: Split | None):
        self.whole = split is None
        split = split or Split()
        self.tokens = P(split.batch or None, split.context or None)
        self.layer = P(split.vocabulary or None)
        self.gradient = P((*split.vocabulary, *split.parts) or None)
        self.output = Output(P(), *3 * [self.tokens])
        self.residuals = Residuals(self.tokens, self.tokens, self.tokens, self.layer)

    def arrays(self, arrays: Arrays) -> Arrays:
        teacher = TopK(self.tokens, self.tokens)
        if isinstance(arrays.teacher, Head):
            teacher = Head(self.tokens, self.layer)
        rows = Arrays(self.tokens, self.layer, *3 * [self.tokens], teacher)
        return rows if arrays.teacher else rows._replace(soft_BT=None, teacher=None)

    def map(self, function: Callable[..., Any], inputs: Any, outputs: Any) -> Callable[..., Any]:
        return function if self.whole else over_mesh(function, inputs, outputs)


class Sums(NamedTuple):
    """Of a token, over the part of the vocabulary that is here."""

    max_BT: jax.Array
    sum_BT: jax.Array  # of exp(logit - max)
    target_BT: jax.Array  # logit of the target; 0 where it is elsewhere
    aim_BT: jax.Array | None = None  # top-k teacher: sum of probability * logit; else of exp(its logit - max) * logit
    teacher_max_BT: jax.Array | None = None  # of a whole teacher
    teacher_sum_BT: jax.Array | None = None


def recomputing(sums, gradients) -> Implementation:
    """An implementation whose backward pass computes the logits again, from kernels for both passes.

    `sums(settings, arrays)` gives Sums and `gradients(settings, arrays, slope_BT, residuals)` (dx_BTD, dw_VD) in
    float32, or dw in its own dtype, both for targets and ids counted from the first token that is here.
    """

    def forward(settings, split, arrays):
        own = sums(settings, _numbered_from_here(split, arrays))
        max_BT = split.largest(own.max_BT)
        lse_BT = max_BT + jnp.log(split.total(own.sum_BT * jnp.exp(own.max_BT - max_BT)))
        target_BT = split.total(own.target_BT)
        nats_BT, hit_BT = lse_BT - target_BT, target_BT >= max_BT
        teacher_lse_BT, teacher_nats_BT = None, None
        if isinstance(arrays.teacher, TopK):
            teacher_nats_BT = mass(arrays.teacher) * lse_BT - split.total(own.aim_BT)
        elif isinstance(arrays.teacher, Head):
            top_BT = split.largest(own.teacher_max_BT)
            shrink_BT = jnp.exp(own.teacher_max_BT - top_BT)
            sum_BT = split.total(own.teacher_sum_BT * shrink_BT)
            teacher_lse_BT = top_BT + jnp.log(sum_BT)
            teacher_nats_BT = lse_BT - split.total(own.aim_BT * shrink_BT) / sum_BT
        loss = split.token_total(token_loss(settings, arrays, lse_BT, nats_BT, teacher_nats_BT))
        return Output(loss, nats_BT, hit_BT, teacher_nats_BT), Residuals(lse_BT, teacher_lse_BT)

    def backward(settings, split, arrays, residuals, dloss):
        hard_BT, soft_BT = (None if a is None else a * dloss for a in (arrays.hard_BT, arrays.soft_BT))
        arrays = _numbered_from_here(split, arrays._replace(hard_BT=hard_BT, soft_BT=soft_BT))
        slope_BT = slope(settings, arrays, residuals.lse_BT)
        dx_BTD, dw_VD = gradients(settings, arrays, slope_BT, residuals)
        dx_BTD, dw_VD = split.total(dx_BTD), split.onto_parts(dw_VD)
        return dx_BTD.astype(arrays.x_BTD.dtype), dw_VD.astype(arrays.w_VD.dtype)

    return Implementation(lambda *args: forward(*args)[0], forward, backward, is_kernel=True)


def _numbered_from_here(split: Split, arrays: Arrays) -> Arrays:
    """Targets and the teacher's ids counted from the first token that is here, those elsewhere -1."""
    V, first, teacher = arrays.w_VD.shape[0], split.first(arrays.w_VD), arrays.teacher

    def numbered(ids):
        ids = ids.astype(jnp.int32) - first
        return jnp.where(ids < V, jnp.maximum(ids, -1), -1)

    if isinstance(teacher, TopK):
        teacher = teacher._replace(ids_BTk=numbered(teacher.ids_BTk))
    return arrays._replace(targets_BT=numbered(arrays.targets_BT), teacher=teacher)
