"""Learning-rate schedules: the rate of every step, and what larger batches make of it.

A schedule is a function of the number of updates done, an integer or an array of them.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from core.errors import UserError
from optim.config import OptimConfig

EXPONENTS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}  # of the ratio of batches


class Steps(NamedTuple):
    """Steps of a run, one after the other, that read batches of one size."""

    steps: int
    tokens: int  # of a step


def make_schedule(config: OptimConfig, steps: int, batches: tuple[Steps, ...] = ()) -> optax.Schedule:
    """The rate over a run of `steps`, whose batches may grow: `batches` are its stages."""
    schedule = PLANS[config.schedule.kind](config, steps)
    factors = batch_factors(config, batches)
    if all(factor == 1 for factor in factors):
        return schedule
    ends = jnp.cumsum(jnp.array([stage.steps for stage in batches]))[:-1]
    factor_S = jnp.array(factors)
    return lambda step: schedule(step) * factor_S[jnp.searchsorted(ends, step, side="right")]


def warmup_stable_decay(config: OptimConfig, steps: int) -> optax.Schedule:
    """Linear from 0 to the plateau, constant, then down over the last steps (Hu et al. 2024: MiniCPM, section 4)."""
    decay_steps = config.schedule.decay_steps or round(config.decay_fraction * steps)
    if config.warmup_steps > steps - decay_steps:
        raise UserError(
            f"config optim: warmup_steps={config.warmup_steps} and a decay over the last {decay_steps} do not fit "
            f"into train.steps={steps}; lower one of them"
        )
    return _pieces(config, steps, decay_steps, config.schedule.decay)


def warmup_decay(config: OptimConfig, steps: int) -> optax.Schedule:
    """Linear from 0 to the plateau, and down from there to the end."""
    if config.warmup_steps >= steps:
        raise UserError(
            f"config optim: warmup_steps={config.warmup_steps} leaves no decay of train.steps={steps}; lower it"
        )
    return _pieces(config, steps, steps - config.warmup_steps, config.schedule.kind)


PLANS: dict[str, Callable[[OptimConfig, int], optax.Schedule]] = {
    "warmup_stable_decay": warmup_stable_decay,
    "cosine": warmup_decay,
    "linear": warmup_decay,
}


def _pieces(config: OptimConfig, steps: int, decay_steps: int, shape: str) -> optax.Schedule:
    """Warm-up, plateau, and `decay_steps` of the shape."""
    pieces = [
        # The first update counts: step 0 of n warms up to 1/n of the plateau.
        lambda step: config.learning_rate * (step + 1) / max(config.warmup_steps, 1),
        optax.constant_schedule(config.learning_rate),
        DECAYS[shape](config.learning_rate, config.schedule.final, max(decay_steps, 1)),
    ]
    return optax.join_schedules(pieces, [config.warmup_steps, steps - decay_steps])


def _shaped(shape: Callable[[jax.Array, float], jax.Array]) -> Callable[[float, float, int], optax.Schedule]:
    """A decay by what it leaves of the rate when a part t in 0..1 of it has passed."""

    def decay(rate: float, final: float, steps: int) -> optax.Schedule:
        return lambda step: rate * shape(jnp.clip(step / steps, 0, 1), final)

    return decay


# How the rate goes down, all from 1 to `final`.
DECAYS: dict[str, Callable[[float, float, int], optax.Schedule]] = {
    "linear": lambda rate, final, steps: optax.linear_schedule(rate, rate * final, steps),
    # Hägele et al. 2024 (arXiv:2405.18392, section 4): as good as a cosine over the whole run, from a shorter decay.
    "1-sqrt": _shaped(lambda t, final: 1 - (1 - final) * jnp.sqrt(t)),
    # Loshchilov and Hutter 2017 (arXiv:1608.03983, equation 5)
    "cosine": _shaped(lambda t, final: final + (1 - final) * (1 + jnp.cos(math.pi * t)) / 2),
    "exponential": _shaped(lambda t, final: jnp.power(final, t)),
}


def batch_factors(config: OptimConfig, batches: tuple[Steps, ...]) -> list[float]:
    """What the rate of each stage is multiplied by: (its tokens a step / those of the base)^exponent.

    The noise of a gradient falls with the root of its batch, so Adam's rate is said to grow with the root (Malladi et
    al. 2022, arXiv:2205.10287) and SGD's linearly; what was found by trying lies between (modded-nanogpt: 0.6 for
    twice the batch, 0.5 for three times).
    """
    asked = config.schedule.batch
    if isinstance(asked, tuple):
        if len(asked) != len(batches):
            raise UserError(
                f"config optim.schedule.batch has {len(asked)} exponents for {len(batches)} stages; it needs one each"
            )
        exponents = list(asked)
    else:
        exponents = [EXPONENTS.get(asked, asked)] * len(batches)
    base = config.schedule.base_tokens or (batches[0].tokens if batches else 1)
    return [(stage.tokens / base) ** exponent for stage, exponent in zip(batches, exponents)]
