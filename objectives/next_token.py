"""Next-token prediction: the mean cross-entropy of tokens whose target belongs to the same document."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from model import transformer
from model.config import ModelConfig
from objectives import schedule
from objectives.interface import Measured, Named, Seen, mean, nobody, see
from objectives.schedule import Weight


@dataclass(frozen=True)
class NextToken:
    """Of the trunk. The metric `loss` is its nats a token, `accuracy` how often no token is likelier than the target.

    With a z-loss the metrics name it apart, so that `loss` compares with that of runs without.
    """

    z_loss: float = 0.0
    taught: Weight = 0.0  # share of the weight that a teacher's distributions have instead
    passes = 1

    def counts(self, batch: Any) -> Named:
        """The number of predicted tokens."""
        count = jnp.sum(batch.weights_BT)
        return dict.fromkeys(("loss", "accuracy", *(["z_loss"] if self.z_loss else [])), count)

    def measure(self, seen: Seen, counts: Named, progress: jax.Array | float) -> Measured:
        """Weighs what a teacher leaves; the z-loss whole."""
        batch, share = seen.batch, 1.0
        options = {"z_loss": self.z_loss}
        if self.taught:
            share = 1 - schedule.at(self.taught, progress)
            options |= {"teacher": nobody(batch.targets_BT), "teacher_share": 1 - share}
        out = seen.cross_entropy(seen.predict(), batch.targets_BT, batch.weights_BT, **options)
        nats = jnp.sum(out.nats_BT * batch.weights_BT) if self.taught or self.z_loss else out.loss
        sums = {"loss": nats, "accuracy": jnp.sum(out.hit_BT * batch.weights_BT)}
        if self.z_loss:
            sums["z_loss"] = out.loss - share * nats
        return Measured(mean(out.loss, counts["loss"]), sums)


def token_nats(config: ModelConfig, params: transformer.Params, batch: Any) -> jax.Array:
    """Cross-entropy of every token in nats, zero where nothing is predicted; for evaluation."""
    seen, weights_BT = see(config, params, batch), jnp.asarray(batch.weights_BT)
    return seen.cross_entropy(seen.predict(), batch.targets_BT, weights_BT).nats_BT * weights_BT
