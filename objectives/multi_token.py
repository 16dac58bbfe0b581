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
    z_loss: float = 0.0  # of the logits of each, beside its nats

    def counts(self, batch: Any) -> Named:
        """Predicted tokens of every offset."""
        return counts_of(batch, self._offsets, ("loss", "accuracy", *["z_loss"] * bool(self.z_loss)))

    def measure(self, seen: Seen, counts: Named, progress: jax.Array | float) -> Measured:
        """One module after the other, its output layer and loss included."""
        batch = seen.batch
        given_MBT = jnp.stack([targets_of(batch, offset - 1)[0] for offset in self._offsets])
        found, max_logit_MN = one_after_another(
            seen.model,
            seen.params,
            seen.output.residual_BTD,
            given_MBT,
            Row(batch.segment_ids_BT, batch.positions_BT),
            lambda hidden_BTD, aim: sums_of(seen, hidden_BTD, *aim, self.z_loss),
            stacked_targets(batch, self._offsets),
        )
        sums = by_offset(self._offsets, found)
        total_M = found["loss"] + found.get("z_loss", 0.0)
        means = [mean(total, counts[f"loss_offset_{offset}"]) for offset, total in zip(self._offsets, total_M)]
        return Measured(schedule.at(self.weight, progress) * sum(means) / len(means), sums, max_logit_MN)

    @property
    def passes(self) -> int:
        """One for each offset."""
        return len(self._offsets)

    @property
    def _offsets(self) -> range:
        return range(2, self.tokens + 1)


@dataclass(frozen=True)
class Trunk:
    """The logits of the next token are to predict those at offsets 2, 3, ... too, a weight each."""

    weights: tuple[Weight, ...]

    def counts(self, batch: Any) -> Named:
        """Predicted tokens of every offset."""
        return counts_of(batch, self._offsets, ("loss", "accuracy"), "trunk_")

    def measure(self, seen: Seen, counts: Named, progress: jax.Array | float) -> Measured:
        """One offset after the other."""
        hidden_BTD = seen.output.hidden_BTD

        def one(_, aim):
            return None, sums_of(seen, hidden_BTD, *aim)

        aims = stacked_targets(seen.batch, self._offsets)
        found = jax.lax.scan(jax.checkpoint(one, prevent_cse=False), None, aims)[1]
        total = sum(
            schedule.at(weight, progress) * mean(nats, counts[f"trunk_loss_offset_{offset}"])
            for offset, weight, nats in zip(self._offsets, self.weights, found["loss"])
        )
        return Measured(total, by_offset(self._offsets, found, "trunk_"))

    @property
    def passes(self) -> int:
        """One for each offset."""
        return len(self._offsets)

    @property
    def _offsets(self) -> range:
        return range(2, 2 + len(self.weights))


def sums_of(
    seen: Seen, hidden_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array, z_loss: float = 0.0
) -> Named:
    """Over tokens: the cross-entropy, how often no other token is likelier, and a z-loss, where there is one."""
    out = seen.cross_entropy(seen.predict(hidden_BTD), targets_BT, weights_BT, z_loss=z_loss)
    sums = {"loss": out.loss, "accuracy": jnp.sum(out.hit_BT * weights_BT)}
    if not z_loss:
        return sums
    nats = jnp.sum(out.nats_BT * weights_BT)
    return sums | {"loss": nats, "z_loss": out.loss - nats}


def by_offset(offsets: range, found: Named, prefix: str = "") -> Named:
    """Stacked values by the names of the metrics of every offset."""
    return {
        f"{prefix}{name}_offset_{offset}": value
        for name, of_M in found.items()
        for offset, value in zip(offsets, of_M)
    }


def counts_of(batch: Any, offsets: range, names: tuple[str, ...], prefix: str = "") -> Named:
    """What the metrics of those names are divided by: the tokens at each offset that are predicted."""
    counts_M = [jnp.sum(targets_of(batch, offset)[1]) for offset in offsets]
    return by_offset(offsets, dict.fromkeys(names, counts_M), prefix)


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
