"""Multi-token prediction: tokens beyond the next, by modules of the model or by the trunk's own logits.

The token at offset k of a place counts where it belongs to the same document and is trained on; so no head predicts
across a document's end, nor beyond the row's.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from model.multi_token import Row, one_after_another
from objectives import schedule
from objectives.interface import Measured, Named, Seen, mean
from objectives.schedule import Weight


@dataclass(frozen=True)
class Modules:
    """The mean loss of the modules of a model, which predict the offsets 2 to `tokens`, times a weight."""

    tokens: int
    weight: Weight

    def counts(self, batch: Any) -> Named:
        """Predicted tokens of every offset."""
        return counts_of(batch, range(2, self.tokens + 1))

    def measure(self, seen: Seen, counts: Named, progress: jax.Array | float) -> Measured:
        """One module after the other, its output layer and loss included."""
        batch, offsets = seen.batch, range(2, self.tokens + 1)
        given_MBT = jnp.stack([targets_of(batch, offset - 1)[0] for offset in offsets])
        aims = stacked_targets(batch, offsets)
        row = Row(batch.segment_ids_BT, batch.positions_BT)
        nats_M, hits_M = one_after_another(
            seen.model,
            seen.params,
            seen.output.residual_BTD,
            given_MBT,
            row,
            lambda hidden_BTD, aim: nats_and_hits(seen, hidden_BTD, *aim),
            aims,
        )
        sums = sums_of(offsets, nats_M, hits_M)
        means = [mean(nats, counts[f"loss_offset_{offset}"]) for offset, nats in zip(offsets, nats_M)]
        return Measured(schedule.at(self.weight, progress) * sum(means) / len(means), sums)


@dataclass(frozen=True)
class Trunk:
    """The logits of the next token are to predict those at offsets 2, 3, ... too, a weight each."""

    weights: tuple[Weight, ...]

    def counts(self, batch: Any) -> Named:
        """Predicted tokens of every offset."""
        return counts_of(batch, self._offsets, "trunk_")

    def measure(self, seen: Seen, counts: Named, progress: jax.Array | float) -> Measured:
        """One offset after the other."""
        hidden_BTD = seen.output.hidden_BTD

        def one(_, aim):
            return None, nats_and_hits(seen, hidden_BTD, *aim)

        aims = stacked_targets(seen.batch, self._offsets)
        nats_M, hits_M = jax.lax.scan(jax.checkpoint(one, prevent_cse=False), None, aims)[1]
        total = sum(
            schedule.at(weight, progress) * mean(nats, counts[f"trunk_loss_offset_{offset}"])
            for offset, weight, nats in zip(self._offsets, self.weights, nats_M)
        )
        return Measured(total, sums_of(self._offsets, nats_M, hits_M, "trunk_"))

    @property
    def _offsets(self) -> range:
        return range(2, 2 + len(self.weights))


def nats_and_hits(seen: Seen, hidden_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array) -> Any:
    """The cross-entropy summed over tokens, and how many of them no other token is likelier than."""
    out = seen.cross_entropy(seen.predict(hidden_BTD), targets_BT, weights_BT)
    return out.loss, jnp.sum(out.hit_BT * weights_BT)


def sums_of(offsets: range, nats_M: jax.Array, hits_M: jax.Array, prefix: str = "") -> Named:
    """The metrics of every offset."""
    losses = {f"{prefix}loss_offset_{offset}": nats for offset, nats in zip(offsets, nats_M)}
    return losses | {f"{prefix}accuracy_offset_{offset}": hits for offset, hits in zip(offsets, hits_M)}


def counts_of(batch: Any, offsets: range, prefix: str = "") -> Named:
    """What they are divided by: the tokens at each offset that are predicted."""
    counts_M = [jnp.sum(targets_of(batch, offset)[1]) for offset in offsets]
    return sums_of(offsets, counts_M, counts_M, prefix)


def targets_of(batch: Any, offset: int) -> tuple[jax.Array, jax.Array]:
    """The tokens at an offset from every place, and their weights: 0 where they are of another document."""
    ahead = offset - 1
    same_BT = shifted(batch.segment_ids_BT, ahead) == batch.segment_ids_BT
    return shifted(batch.targets_BT, ahead), shifted(batch.weights_BT, ahead) * same_BT


def stacked_targets(batch: Any, offsets: Any) -> tuple[jax.Array, jax.Array]:
    """The same of several [M, B, T]."""
    targets, weights = zip(*(targets_of(batch, offset) for offset in offsets))
    return jnp.stack(targets), jnp.stack(weights)


def shifted(x_BT: jax.Array, by: int) -> jax.Array:
    """What stands `by` places further in the row, 0 beyond its end."""
    return jnp.pad(x_BT[:, by:], ((0, 0), (0, by)))
