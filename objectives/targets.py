"""A teacher's stored distributions: the student learns from them instead of, or beside, the token that came next.

The weight w of the teacher is taken from the next token's: (1 - w) * cross-entropy + w * T^2 * the cross-entropy of
the teacher's distribution at the temperature T (Hinton et al. 2015, arXiv:1503.02531). At T = 1 both are one pass.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from kernels.cross_entropy.problem import TopK
from objectives import schedule
from objectives.interface import Measured, Named, Seen, mean, nobody
from objectives.schedule import Weight


@dataclass(frozen=True)
class StoredTargets:
    """In place of `NextToken`: `loss` and `accuracy` are of the next token, `teacher_loss` the teacher's nats.

    What the stored probabilities of a place lack to 1 is left out, as the kernel has it.
    """

    weight: Weight
    temperature: float = 1.0
    z_loss: float = 0.0

    @property
    def passes(self) -> int:
        """One more where the temperature is another than the next token's."""
        return 1 if self.temperature == 1 else 2

    def counts(self, batch: Any) -> Named:
        """The number of predicted tokens."""
        count = jnp.sum(batch.weights_BT)
        return dict.fromkeys(("loss", "accuracy", "teacher_loss", *["z_loss"] * bool(self.z_loss)), count)

    def measure(self, seen: Seen, counts: Named, progress: jax.Array | float) -> Measured:
        """Weighs the two."""
        batch, share = seen.batch, schedule.at(self.weight, progress)
        teacher = TopK(batch.teacher_ids_BTk, batch.teacher_probs_BTk)
        tokens = batch.targets_BT, batch.weights_BT
        named = teacher if self.temperature == 1 else nobody(batch.targets_BT)
        out = seen.cross_entropy(seen.predict(), *tokens, z_loss=self.z_loss, teacher=named, teacher_share=share)
        total, nats, teacher_nats = out.loss, summed(batch, out.nats_BT), summed(batch, out.teacher_nats_BT)
        sums = {"loss": nats, "accuracy": summed(batch, out.hit_BT), "teacher_loss": teacher_nats}
        if self.z_loss:
            sums["z_loss"] = out.loss - (1 - share) * nats - share * teacher_nats
        if self.temperature != 1:
            soft = seen.predict(temperature=self.temperature)
            softened = seen.cross_entropy(soft, *tokens, teacher=teacher, teacher_share=1.0)
            total += share * self.temperature**2 * softened.loss
            sums["teacher_loss"] = summed(batch, softened.teacher_nats_BT)
        return Measured(mean(total, counts["loss"]), sums)


def summed(batch: Any, of_BT: jax.Array) -> jax.Array:
    """Over the predicted tokens."""
    return jnp.sum(of_BT * batch.weights_BT)
