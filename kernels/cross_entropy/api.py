"""Cross entropy of a linear output layer: the public function and the choice of implementation.

Shapes: B batch, T length, D model, V vocabulary, k and E of a teacher: tokens it names, its model width. The logits
[B, T, V] are the largest array of a small model's step, so the layer and its loss are one op.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.cross_entropy import gpu, reference, tpu, xla
from kernels.cross_entropy.problem import Arrays, Head, Settings, TopK
from kernels.cross_entropy.shards import run
from kernels.dispatch import choose, gpu_refusal

IMPLEMENTATIONS = {
    "reference": reference.linear_cross_entropy,
    "xla": functools.partial(run, xla.IMPLEMENTATION),
    "tpu": functools.partial(run, tpu.IMPLEMENTATION),
    "gpu": functools.partial(run, gpu.IMPLEMENTATION),
    "tpu_interpret": functools.partial(run, tpu.INTERPRETED),
    "gpu_interpret": functools.partial(run, gpu.INTERPRETED),
}


class CrossEntropyOutput(NamedTuple):
    """The summed loss, differentiable in x and w, and what it is made of, per token and not weighted, for reports."""

    loss: jax.Array  # float32 scalar
    nats_BT: jax.Array  # float32, no gradient: cross entropy of the targets
    hit_BT: jax.Array  # bool: no logit is larger than the target's
    teacher_nats_BT: jax.Array | None = None  # float32, no gradient: cross entropy of the teacher's distributions


def linear_cross_entropy(
    x_BTD: jax.Array,
    w_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    teacher: TopK | Head | None = None,
    teacher_share: float | jax.Array = 0.5,
    implementation: str = "auto",
) -> CrossEntropyOutput:
    """Weighted sum over tokens of the cross entropy of softmax(x w^T), without gradient to weights.

    A target or id of the teacher outside [0, V) is taken as the nearest one inside: it costs nothing where its weight
    or probability is 0, so padding may have any id, such as -100; elsewhere the loss is finite and wrong. `z_loss` is
    a Python number, the factor of the squared log-sum-exp (PaLM, section 5). With `soft_cap`, a Python number, logits
    become cap * tanh(logits / cap) (Gemma 2).

    With a teacher, which gets no gradient, a token's loss is (1 - share) * nats + share * teacher_nats + its z-loss.
    teacher_nats = sum over v of q_v * (lse - logit_v) is the KL divergence from the teacher's distribution q plus the
    entropy of q; `teacher_share` may be traced. A temperature comes from outside: both x divided by it, a share of 1.

    Where the mesh in context has axes `replica`, `fsdp` (batch), `context` (tokens of a row) or `tensor` (vocabulary)
    that divide B, T or V, each device computes with its part. `implementation` is a name in IMPLEMENTATIONS or auto,
    which picks by platform.
    """
    _check(x_BTD, w_VD, targets_BT, weights_BT)
    weights_BT = jax.lax.stop_gradient(weights_BT.astype(jnp.float32))
    targets_BT = _inside(targets_BT, w_VD)
    settings, arrays = Settings(float(z_loss), soft_cap), Arrays(x_BTD, w_VD, targets_BT, weights_BT)
    if teacher is not None:
        _check_teacher(teacher, x_BTD, w_VD)
        if isinstance(teacher, Head):
            settings = settings._replace(teacher_cap=teacher.soft_cap)
            teacher = teacher._replace(soft_cap=None)
        else:
            teacher = TopK(_inside(teacher.ids_BTk, w_VD), teacher.probs_BTk.astype(jnp.float32))
        teacher, share = jax.lax.stop_gradient((teacher, jnp.asarray(teacher_share, jnp.float32)))
        arrays = arrays._replace(hard_BT=(1 - share) * weights_BT, soft_BT=share * weights_BT, teacher=teacher)
    refusal = _refusal(arrays)
    refusals = {name: refusal for name in IMPLEMENTATIONS if name not in ("reference", "xla")}
    refusals |= {"tpu": refusal or tpu.refusal(arrays), "gpu": refusal or gpu_refusal()}
    compute = IMPLEMENTATIONS[choose("linear_cross_entropy", tuple(IMPLEMENTATIONS), implementation, refusals)]
    out = compute(settings, arrays)
    return CrossEntropyOutput(out.loss, *jax.lax.stop_gradient(tuple(out[1:])))


def _inside(ids: jax.Array, w_VD: jax.Array) -> jax.Array:
    """Ids as int32 in [0, V), so that none of them reaches beyond an array."""
    last = min(w_VD.shape[0] - 1, jnp.iinfo(ids.dtype).max)
    return jnp.clip(ids, 0, last).astype(jnp.int32)


def _refusal(arrays: Arrays) -> str | None:
    """What the kernels cannot take, as the end of a sentence."""
    layers = {"x_BTD": arrays.x_BTD, "w_VD": arrays.w_VD}
    if arrays.x_BTD.dtype != arrays.w_VD.dtype:
        return f"takes x_BTD and w_VD of one dtype, not {arrays.x_BTD.dtype} and {arrays.w_VD.dtype}"
    if isinstance(arrays.teacher, Head):
        teacher = arrays.teacher
        layers |= {"teacher.x_BTE": teacher.x_BTE, "teacher.w_VE": teacher.w_VE}
        if teacher.x_BTE.dtype != teacher.w_VE.dtype:
            return f"takes one dtype for the teacher, not {teacher.x_BTE.dtype} and {teacher.w_VE.dtype}"
    for name, array in layers.items():
        if array.dtype not in (jnp.float32, jnp.bfloat16):
            return f"takes float32 or bfloat16, not {name} in {array.dtype}"
    return None


def _check(x_BTD, w_VD, targets_BT, weights_BT) -> None:
    """What does not fit is refused here, where the message can still name it."""
    if x_BTD.ndim != 3 or w_VD.ndim != 2 or x_BTD.shape[-1] != w_VD.shape[-1]:
        raise _wrong(f"inputs x_BTD {x_BTD.shape} do not fit the output layer w_VD {w_VD.shape}")
    for name, array in (("targets_BT", targets_BT), ("weights_BT", weights_BT)):
        if array.shape != x_BTD.shape[:2]:
            raise _wrong(f"{name} {array.shape} should have shape {x_BTD.shape[:2]}")
    for name, array in (("x_BTD", x_BTD), ("w_VD", w_VD)):
        _check_filled(name, array)
        _check_kind(name, array, jnp.floating)
    _check_kind("targets_BT", targets_BT, jnp.integer)


def _check_teacher(teacher: TopK | Head, x_BTD, w_VD) -> None:
    if isinstance(teacher, TopK):
        ids_BTk, probs_BTk = teacher
        if ids_BTk.ndim != 3 or ids_BTk.shape[:2] != x_BTD.shape[:2]:
            raise _wrong(f"teacher.ids_BTk {ids_BTk.shape} should have shape {(*x_BTD.shape[:2], 'k')}")
        if probs_BTk.shape != ids_BTk.shape:
            raise _wrong(f"teacher.probs_BTk {probs_BTk.shape} should have the shape of ids_BTk, {ids_BTk.shape}")
        _check_filled("teacher.ids_BTk", ids_BTk)
        _check_kind("teacher.ids_BTk", ids_BTk, jnp.integer)
        _check_kind("teacher.probs_BTk", probs_BTk, jnp.floating)
    elif isinstance(teacher, Head):
        x_BTE, w_VE = teacher.x_BTE, teacher.w_VE
        if x_BTE.ndim != 3 or x_BTE.shape[:2] != x_BTD.shape[:2]:
            raise _wrong(f"teacher.x_BTE {x_BTE.shape} should have shape {(*x_BTD.shape[:2], 'E')}")
        if w_VE.shape != (w_VD.shape[0], x_BTE.shape[-1]):
            raise _wrong(f"teacher.w_VE {w_VE.shape} should have shape {(w_VD.shape[0], x_BTE.shape[-1])}")
        _check_filled("teacher.x_BTE", x_BTE)
        _check_kind("teacher.x_BTE", x_BTE, jnp.floating)
        _check_kind("teacher.w_VE", w_VE, jnp.floating)
    else:
        raise _wrong(f"teacher is a TopK or a Head, not {type(teacher).__name__}")


def _check_filled(name: str, array: jax.Array) -> None:
    if 0 in array.shape:
        raise _wrong(f"{name} {array.shape} should not be empty")


def _check_kind(name: str, array: jax.Array, kind: type) -> None:
    if not jnp.issubdtype(array.dtype, kind):
        raise _wrong(f"{name} should hold {kind.__name__} numbers, not {array.dtype}")


def _wrong(what: str) -> ValueError:
    return ValueError(f"linear_cross_entropy: {what}")
