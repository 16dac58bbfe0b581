"""Inputs for the loss, its exact value in float64, and the same by every implementation."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernels.cross_entropy import reference
from kernels.cross_entropy.api import linear_cross_entropy
from kernels.cross_entropy.problem import Arrays, Head, Settings, TopK


class Case(NamedTuple):
    B: int
    T: int
    D: int
    V: int
    z_loss: float = 0.0
    soft_cap: float | None = None
    teacher: str | None = None
    seed: int = 0
    dtype: str = "float32"
    share: float = 0.3


def inputs(case):
    """(x, w, targets, weights, teacher) with some tokens at weight 0 and logits of about unit size.

    A teacher's top-k has ids that occur twice, probabilities that do not sum to 1, and unused places.
    """
    B, T, D, V = case[:4]
    rng = np.random.default_rng(case.seed)
    x, w = rng.standard_normal((B, T, D)), rng.standard_normal((V, D)) * D**-0.5
    weights = rng.random((B, T)) * (rng.random((B, T)) < 0.8)
    targets = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)
    teacher = None
    if case.teacher == "top-k":
        ids, probs = rng.integers(0, V, (B, T, 5)), rng.random((B, T, 5)) * (rng.random((B, T, 5)) < 0.8)
        teacher = TopK(jnp.asarray(ids, jnp.int32), jnp.asarray(probs / 4, jnp.float32))
    elif case.teacher == "head":
        theirs = rng.standard_normal((B, T, D + 3)), rng.standard_normal((V, D + 3)) * 0.5
        teacher = Head(*(jnp.asarray(a, case.dtype) for a in theirs))
    return jnp.asarray(x, case.dtype), jnp.asarray(w, case.dtype), targets, jnp.asarray(weights, jnp.float32), teacher


TEACHER_CAP = 4.0


def ours(implementation, case, x, w, targets, weights, teacher=None):
    """(loss, nats, nats against the teacher)."""
    teacher = teacher._replace(soft_cap=TEACHER_CAP) if isinstance(teacher, Head) else teacher
    options = {"z_loss": case.z_loss, "soft_cap": case.soft_cap, "implementation": implementation}
    out = linear_cross_entropy(x, w, targets, weights, teacher=teacher, teacher_share=case.share, **options)
    return out.loss, out.nats_BT, out.teacher_nats_BT


def exact(case, x, w, targets, weights, teacher=None):
    """The same by the reference, which keeps float64."""
    settings, arrays = Settings(case.z_loss, case.soft_cap, TEACHER_CAP), Arrays(x, w, targets, weights)
    if teacher is not None:
        arrays = Arrays(x, w, targets, (1 - case.share) * weights, case.share * weights, teacher)
    out = reference.linear_cross_entropy(settings, arrays)
    return out.loss, out.nats_BT, out.teacher_nats_BT


def plain(case, x, w, targets, weights, teacher):
    """What is usually written, with a teacher's top-k: in the dtype of the arrays up to the softmax."""
    log_p = jax.nn.log_softmax(jnp.einsum("BTD,VD->BTV", x, w).astype(jnp.float32))
    nats = -jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    theirs = -jnp.sum(teacher.probs_BTk * jnp.take_along_axis(log_p, teacher.ids_BTk, -1), -1)
    return jnp.sum(weights * ((1 - case.share) * nats + case.share * theirs)), nats, theirs


# Compiles are nearly all of the time of these tests, and with less effort they take a quarter of it.
QUICKLY: dict[str, int | bool] = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):  # later ones have but these emitters
    QUICKLY["xla_cpu_use_fusion_emitters"] = False
quickly_compiled = functools.partial(jax.jit, compiler_options=QUICKLY)


def differentiated(compute):
    """((loss, rest), (dx, dw)) of a multiple of the loss."""

    def of(x, w, *rest):
        def scaled(x, w):
            loss, *others = compute(x, w, *rest)
            return 0.25 * loss, others  # a cotangent other than 1

        return jax.value_and_grad(scaled, (0, 1), has_aux=True)(x, w)

    return quickly_compiled(of)


@functools.cache
def compiled(implementation, case):
    """Compiled once for cases that differ in their numbers alone."""
    if implementation == "plain":
        return differentiated(functools.partial(plain, case))
    return differentiated(functools.partial(ours, implementation, case))


def results(implementation, case):
    """((loss, rest), (dx, dw)) by an implementation."""
    return compiled(implementation, case._replace(seed=0))(*inputs(case))


@functools.cache
def truth(case):
    """((loss, rest), (dx, dw)) in float64."""
    x, w, targets, weights, teacher = inputs(case)
    wide = functools.partial(jax.tree.map, lambda a: jnp.asarray(np.asarray(a, np.float64)))
    with jax.enable_x64(True):
        if teacher is not None:
            teacher = TopK(teacher[0], wide(teacher[1])) if isinstance(teacher, TopK) else wide(teacher)
        found = differentiated(functools.partial(exact, case))(wide(x), wide(w), targets, wide(weights), teacher)
        return jax.tree.map(np.asarray, found)


def error(got, want) -> float:
    """Of an array against the exact one, relative to its size."""
    want = np.asarray(want, np.float64)
    return float(np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want))
