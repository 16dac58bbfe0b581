"""Next-token prediction: the mean cross-entropy of tokens whose target belongs to the same document."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from model import transformer
from model.config import ModelConfig
from objectives import schedule
from objectives.interface import Measured, Named, Seen, mean, see
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
        """Weighs what a teacher leaves."""
        batch = seen.batch
        out = seen.cross_entropy(seen.output.hidden_BTD, batch.targets_BT, batch.weights_BT, self.z_loss)
        sums = {"loss": out.loss, "accuracy": jnp.sum(out.hit_BT * batch.weights_BT)}
        if self.z_loss:
            nats = jnp.sum(out.nats_BT * batch.weights_BT)
            sums |= {"loss": nats, "z_loss": out.loss - nats}
        share = 1 - schedule.at(self.taught, progress) if self.taught else 1.0
        return Measured(share * mean(out.loss, counts["loss"]), sums)


def token_nats(config: ModelConfig, params: transformer.Params, batch: Any) -> jax.Array:
    """Cross-entropy of every token in nats, zero where nothing is predicted; for evaluation."""
    seen, weights_BT = see(config, params, batch), jnp.asarray(batch.weights_BT)
    return seen.cross_entropy(seen.output.hidden_BTD, batch.targets_BT, weights_BT).nats_BT * weights_BT
