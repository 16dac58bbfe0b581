"""Divergences of a linear output layer from a teacher's, in chunks along T as the cross entropy of `xla.py`.

With the distributions p of the student and q of the teacher, m their mean, and z the student's logits:

    reverse_kl       sum p log(p / q)                               (mode seeking; MiniLLM, arXiv:2306.08543)
    jensen_shannon   sum p log(p / m) / 2 + sum q log(q / m) / 2    (at most log 2; GKD, arXiv:2306.13649)
    d/dz = p (g - sum p g),  g = log(p / q)  or  log(p / m) / 2

KL(q | p), whose gradient needs no logarithms, is `linear_cross_entropy` with a share of 1, less the entropy of q.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.cross_entropy.problem import Arrays, Head, Output, Settings
from kernels.cross_entropy.shards import Implementation, Split, run
from kernels.cross_entropy.xla import backward, gradients, scan, softmax


class _Pair(NamedTuple):
    """Distributions of a chunk, with their logarithms, in float32."""

    p_BtV: jax.Array
    log_p_BtV: jax.Array
    q_BtV: jax.Array
    log_q_BtV: jax.Array


def _reverse_kl(split: Split, pair: _Pair) -> tuple[jax.Array, jax.Array]:
    """(nats_Bt, gradient of the logits [B, t, V])."""
    pull_BtV = pair.log_p_BtV - pair.log_q_BtV
    nats_Bt = split.total(jnp.sum(pair.p_BtV * pull_BtV, -1))
    return nats_Bt, pair.p_BtV * (pull_BtV - nats_Bt[..., None])


def _jensen_shannon(split: Split, pair: _Pair) -> tuple[jax.Array, jax.Array]:
    """The same."""
    log_m_BtV = jnp.logaddexp(pair.log_p_BtV, pair.log_q_BtV) - jnp.log(2.0)
    pull_BtV = (pair.log_p_BtV - log_m_BtV) / 2
    own_Bt = split.total(jnp.sum(pair.p_BtV * pull_BtV, -1))
    theirs_Bt = split.total(jnp.sum(pair.q_BtV * (pair.log_q_BtV - log_m_BtV), -1)) / 2
    return own_Bt + theirs_Bt, pair.p_BtV * (pull_BtV - own_Bt[..., None])


DIVERGENCES: dict[str, Callable[[Split, _Pair], tuple[jax.Array, jax.Array]]] = {
    "reverse_kl": _reverse_kl,
    "jensen_shannon": _jensen_shannon,
}


def linear_divergence(
    kind: str, x_BTD: jax.Array, w_VD: jax.Array, weights_BT: jax.Array, teacher: Head, soft_cap: float | None = None
) -> jax.Array:
    """Weighted sum over tokens, in nats, of softmax(x w^T) from the teacher's distributions; `kind` in DIVERGENCES.

    Gradients go to x and w. A temperature comes from outside: both x and both caps divided by it. Meshes as those of
    `linear_cross_entropy`.
    """
    settings = Settings(0.0, soft_cap, teacher.soft_cap)
    teacher, weights_BT = jax.lax.stop_gradient((teacher._replace(soft_cap=None), weights_BT.astype(jnp.float32)))
    nothing_BT = jnp.zeros(weights_BT.shape, jnp.int32)  # no token is aimed at
    arrays = Arrays(x_BTD, w_VD, nothing_BT, jnp.zeros_like(weights_BT), weights_BT, teacher)
    return run(IMPLEMENTATIONS[kind], settings, arrays).loss


def _chunk(kind: str, settings: Settings, split: Split, here: Arrays) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(nats_Bt, gradient of the logits, logits [B, t, V]) of some tokens."""
    logits_BtV, *own = softmax(split, here.x_BTD, here.w_VD, settings.soft_cap)
    theirs_BtV, *other = softmax(split, here.teacher.x_BTE, here.teacher.w_VE, settings.teacher_cap)
    pair = _Pair(*_normalised(logits_BtV, *own), *_normalised(theirs_BtV, *other))
    return *DIVERGENCES[kind](split, pair), logits_BtV


def _normalised(logits_BtV, exps_BtV, max_Bt, sum_Bt):
    """A distribution and its logarithm."""
    return exps_BtV / sum_Bt[..., None], logits_BtV - (max_Bt + jnp.log(sum_Bt))[..., None]


def _loss(kind: str, settings: Settings, split: Split, arrays: Arrays) -> Output:
    def chunk(loss, tokens):
        nats_Bt, _, _ = _chunk(kind, settings, split, arrays.with_tokens(tokens))
        return loss + jnp.sum(tokens.soft_BT * nats_Bt), _shown(nats_Bt)

    loss, shown = scan(chunk, jnp.float32(0), arrays.of_tokens(), arrays.w_VD.shape[0])
    return Output(split.token_total(loss), *shown)


def _shown(nats_Bt: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each token, as in Output; none has a target."""
    return nats_Bt, jnp.zeros(nats_Bt.shape, bool), nats_Bt


def _forward(kind: str, settings: Settings, split: Split, arrays: Arrays):
    """The loss and, as residuals, both gradients for a cotangent of 1."""

    def chunk(here: Arrays):
        nats_Bt, dlogits_BtV, logits_BtV = _chunk(kind, settings, split, here)
        dlogits_BtV *= here.soft_BT[..., None]
        return jnp.sum(here.soft_BT * nats_Bt), _shown(nats_Bt), dlogits_BtV, logits_BtV

    return gradients(chunk, settings, split, arrays)


IMPLEMENTATIONS = {
    kind: Implementation(functools.partial(_loss, kind), functools.partial(_forward, kind), backward)
    for kind in DIVERGENCES
}
