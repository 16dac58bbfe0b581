"""Distillation: a student learns from what a teacher makes of the same rows, each token as its documents let it.

Hinton et al. 2015 (arXiv 1503.02531): at a temperature gradients shrink with its square, which the loss makes up for.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from kernels.cross_entropy.divergence import linear_divergence
from objectives import schedule
from objectives.interface import Measured, Named, Seen, mean
from objectives.schedule import Weight

LOGITS = "distill_loss"


@dataclass(frozen=True)
class Logits:
    """The divergence of the next token's distributions. The metric is its nats a token, at the temperature.

    What it weighs, the next token's cross-entropy weighs less (`objectives/next_token.py`).
    """

    weight: Weight
    temperature: float
    divergence: str  # a name in DIVERGENCES
    passes = 1  # at the temperature

    def counts(self, batch: Any) -> Named:
        """The number of predicted tokens."""
        return {LOGITS: jnp.sum(batch.weights_BT)}

    def measure(self, seen: Seen, counts: Named, progress: jax.Array | float) -> Measured:
        """Of all tokens that are predicted."""
        nats = DIVERGENCES[self.divergence](seen, self.temperature)
        scale = schedule.at(self.weight, progress) * self.temperature**2
        return Measured(scale * mean(nats, counts[LOGITS]), {LOGITS: nats})


def forward_kl(seen: Seen, temperature: float) -> jax.Array:
    """Summed KL(teacher | student): the student's cross-entropy with the teacher's distribution, without its entropy.

    The entropy, for the metric alone, is the teacher's cross-entropy with itself.
    """
    teacher, batch = seen.teacher.predict(temperature=temperature), seen.batch

    def nats(of: Seen) -> jax.Array:
        own, tokens = of.predict(temperature=temperature), (batch.targets_BT, batch.weights_BT)
        return of.cross_entropy(own, *tokens, teacher=teacher, teacher_share=1.0).loss

    return nats(seen) - jax.lax.stop_gradient(nats(seen.teacher))


def other_divergence(kind: str, seen: Seen, temperature: float) -> jax.Array:
    """The same of those that `kernels/cross_entropy/divergence.py` computes."""
    own, teacher = (of.predict(temperature=temperature) for of in (seen, seen.teacher))
    return linear_divergence(kind, own.x_BTE, own.w_VE, seen.batch.weights_BT, teacher, own.soft_cap)


# Summed over the tokens that are predicted.
DIVERGENCES: dict[str, Callable[[Seen, float], jax.Array]] = {
    "forward_kl": forward_kl,
    "reverse_kl": functools.partial(other_divergence, "reverse_kl"),
    "jensen_shannon": functools.partial(other_divergence, "jensen_shannon"),
}
