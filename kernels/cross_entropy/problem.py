"""What the loss is made of, and what follows from a token's sums.

With the logits z of a token, p = softmax(z), lse = log sum exp(z) and a teacher's distribution q:

    loss    = hard (lse - z[target]) + soft (mass lse - sum_v q_v z_v) + (hard + soft) z_loss lse^2
    dloss/dz = slope p - hard [v = target] - soft q,  slope = hard + soft mass + 2 (hard + soft) z_loss lse

where mass = sum_v q_v, and `hard` and `soft` are the token's weight shared out between target and teacher.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class TopK(NamedTuple):
    """A teacher's distributions as k tokens each; what the probabilities lack to 1 is left out of the loss.

    An id that occurs twice counts twice, so ids drawn from the teacher may come as they were drawn.
    """

    ids_BTk: jax.Array  # integers in [0, V); any integer at places that are not used
    probs_BTk: jax.Array  # not negative; 0 at places that are not used


class Head(NamedTuple):
    """A teacher's whole distributions, as what its output layer computes them from."""

    x_BTE: jax.Array
    w_VE: jax.Array
    soft_cap: float | None = None  # a Python number


class Settings(NamedTuple):
    """Python numbers that a kernel is compiled for."""

    z_loss: float
    soft_cap: float | None
    teacher_cap: float | None = None


class Arrays(NamedTuple):
    """What is computed from, whole or one device's part."""

    x_BTD: jax.Array
    w_VD: jax.Array
    targets_BT: jax.Array
    hard_BT: jax.Array  # float32
    soft_BT: jax.Array | None = None  # float32, with a teacher
    teacher: TopK | Head | None = None

    def of_tokens(self) -> "Arrays":
        """The arrays that begin with [B, T] alone."""
        teacher = self.teacher._replace(w_VE=None) if isinstance(self.teacher, Head) else self.teacher
        return self._replace(w_VD=None, teacher=teacher)

    def with_tokens(self, tokens: "Arrays") -> "Arrays":
        """These output layers, with other tokens."""
        teacher = tokens.teacher
        if isinstance(teacher, Head):
            teacher = teacher._replace(w_VE=self.teacher.w_VE)
        return tokens._replace(w_VD=self.w_VD, teacher=teacher)


class Output(NamedTuple):
    """What every implementation returns, in float32."""

    loss: jax.Array
    nats_BT: jax.Array
    hit_BT: jax.Array  # bool: no logit is larger than the target's
    teacher_nats_BT: jax.Array | None = None


def token_loss(settings: Settings, arrays: Arrays, lse_BT, nats_BT, teacher_nats_BT) -> jax.Array:
    """Sum over the tokens that are here."""
    if arrays.soft_BT is None:
        return jnp.sum(arrays.hard_BT * (nats_BT + settings.z_loss * lse_BT**2))
    both_BT = arrays.hard_BT + arrays.soft_BT
    of_teacher_BT = arrays.soft_BT * teacher_nats_BT
    return jnp.sum(arrays.hard_BT * nats_BT + of_teacher_BT + both_BT * settings.z_loss * lse_BT**2)


def slope(settings: Settings, arrays: Arrays, lse_BT) -> jax.Array:
    """Factor of the softmax in the gradient of the logits."""
    factor_BT = 1 + 2 * settings.z_loss * lse_BT
    if arrays.soft_BT is None:
        return arrays.hard_BT * factor_BT
    return arrays.hard_BT * factor_BT + arrays.soft_BT * (mass(arrays.teacher) + 2 * settings.z_loss * lse_BT)


def mass(teacher: TopK | Head) -> jax.Array | float:
    """Sum of the teacher's probabilities of a token."""
    return jnp.sum(teacher.probs_BTk, -1) if isinstance(teacher, TopK) else 1.0


def capped(logits, soft_cap: float | None):
    """Logits within the soft cap, where there is one."""
    return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
