"""One Optax chain from config."""

from typing import Any

import jax
import optax

from optim.config import OptimConfig
from optim.groups import label
from optim.schedule import warmup_stable_decay


def build(config: OptimConfig, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The chain, and its schedule for the metrics."""
    schedule = warmup_stable_decay(config, steps)

    def decays(params: Any) -> Any:
        return jax.tree.map(lambda group: group == "matrix", label(params))

    chain = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.b1, config.b2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=decays),
        optax.scale_by_learning_rate(schedule),
    )
    return chain, schedule
