"""Weight decay that waits for the update: only where both move a weight towards zero."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def add_cautious_decay(weight_decay: float, mask: Any | Callable[[Any], Any] = None) -> optax.GradientTransformation:
    """As `optax.add_decayed_weights`, where the update, which is subtracted, has the sign of the weight.

    Elsewhere decay would work against the gradient (modded-nanogpt's record 43).
    """

    def update(updates: Any, state: optax.EmptyState, params: Any) -> tuple[Any, optax.EmptyState]:
        def one(u: jax.Array, w: jax.Array) -> jax.Array:
            return u + weight_decay * jnp.where(u * w > 0, w, 0).astype(u.dtype)

        return jax.tree.map(one, updates, params), state

    decay = optax.GradientTransformation(lambda _: optax.EmptyState(), update)
    return decay if mask is None else optax.masked(decay, mask)
