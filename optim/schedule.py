"""Learning-rate schedules."""

import optax

from core.errors import UserError
from optim.config import OptimConfig


def warmup_stable_decay(config: OptimConfig, steps: int) -> optax.Schedule:
    """Linear from 0 to the plateau, constant, linear to 0 over the last `decay_fraction` of the steps."""
    decay_steps = round(config.decay_fraction * steps)
    stable_until = steps - decay_steps
    if config.warmup_steps > stable_until:
        raise UserError(
            f"config optim: warmup_steps={config.warmup_steps} and a decay over the last {decay_steps} do not fit "
            f"into train.steps={steps}; lower one of them"
        )
    pieces = [
        # The first update counts: step 0 of n warms up to 1/n of the plateau.
        lambda step: config.learning_rate * (step + 1) / max(config.warmup_steps, 1),
        optax.constant_schedule(config.learning_rate),
        optax.linear_schedule(config.learning_rate, 0.0, max(decay_steps, 1)),
    ]
    return optax.join_schedules(pieces, [config.warmup_steps, stable_until])
