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
        return {name_of(offset): count_of(batch, offset) for offset in range(2, self.tokens + 1)}

    def measure(self, seen: Seen, counts: Named, progress: jax.Array | float) -> Measured:
        """One module after the other, its output layer and loss included."""
        batch, offsets = seen.batch, range(2, self.tokens + 1)
        given_MBT = jnp.stack([targets_of(batch, offset - 1)[0] for offset in offsets])
        aims = stacked_targets(batch, offsets)
        row = Row(batch.segment_ids_BT, batch.positions_BT)
        nats_M = one_after_another(
            seen.model,
            seen.params,
            seen.output.residual_BTD,
            given_MBT,
            row,
            lambda hidden_BTD, aim: seen.cross_entropy(hidden_BTD, *aim).loss,
            aims,
        )
        sums = {name_of(offset): nats for offset, nats in zip(offsets, nats_M)}
        means = [mean(sums[name], counts[name]) for name in sums]
        return Measured(schedule.at(self.weight, progress) * sum(means) / len(means), sums)


@dataclass(frozen=True)
class Trunk:
    """The logits of the next token are to predict those at offsets 2, 3, ... too, a weight each."""

    weights: tuple[Weight, ...]

    def counts(self, batch: Any) -> Named:
        """Predicted tokens of every offset."""
        return {f"trunk_{name_of(offset)}": count_of(batch, offset) for offset, _ in self._offsets}

    def measure(self, seen: Seen, counts: Named, progress: jax.Array | float) -> Measured:
        """One offset after the other."""
        hidden_BTD = seen.output.hidden_BTD

        def one(_, aim):
            return None, seen.cross_entropy(hidden_BTD, *aim).loss

        aims = stacked_targets(seen.batch, [offset for offset, _ in self._offsets])
        nats_M = jax.lax.scan(jax.checkpoint(one, prevent_cse=False), None, aims)[1]
        total, sums = 0.0, {}
        for (offset, weight), nats in zip(self._offsets, nats_M):
            name = f"trunk_{name_of(offset)}"
            sums[name] = nats
            total += schedule.at(weight, progress) * mean(nats, counts[name])
        return Measured(total, sums)

    @property
    def _offsets(self) -> list[tuple[int, Weight]]:
        return list(enumerate(self.weights, 2))


def name_of(offset: int) -> str:
    """The metric of an offset."""
    return f"loss_offset_{offset}"


def targets_of(batch: Any, offset: int) -> tuple[jax.Array, jax.Array]:
    """The tokens at an offset from every place, and their weights: 0 where they are of another document."""
    ahead = offset - 1
    same_BT = shifted(batch.segment_ids_BT, ahead) == batch.segment_ids_BT
    return shifted(batch.targets_BT, ahead), shifted(batch.weights_BT, ahead) * same_BT


def stacked_targets(batch: Any, offsets: Any) -> tuple[jax.Array, jax.Array]:
    """The same of several [M, B, T]."""
    targets, weights = zip(*(targets_of(batch, offset) for offset in offsets))
    return jnp.stack(targets), jnp.stack(weights)


def count_of(batch: Any, offset: int) -> jax.Array:
    """How many tokens at an offset are predicted."""
    return jnp.sum(targets_of(batch, offset)[1])


def shifted(x_BT: jax.Array, by: int) -> jax.Array:
    """What stands `by` places further in the row, 0 beyond its end."""
    return jnp.pad(x_BT[:, by:], ((0, 0), (0, by)))
