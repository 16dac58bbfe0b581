"""How much of a batch is learnt from: nothing to minimise, a metric for runs that leave tokens out."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from objectives.interface import Measured, Named, Seen


@dataclass(frozen=True)
class Predicted:
    """The metric `predicted` is the share of places, padding aside, whose target has a weight."""

    def counts(self, batch: Any) -> Named:
        """Places that hold a token."""
        return {"predicted": jnp.sum(batch.segment_ids_BT > 0).astype(jnp.float32)}

    def measure(self, seen: Seen, counts: Named, progress: jax.Array | float) -> Measured:  # noqa: ARG002
        """Adds 0."""
        return Measured(jnp.float32(0), {"predicted": jnp.sum(seen.batch.weights_BT)})
