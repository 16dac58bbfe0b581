"""Weights that may change over a run."""

import itertools
import math

import jax
import jax.numpy as jnp

from core.config import require

# A number, or points (part of the run's steps that is done, weight): linear between them, constant before the first
# and after the last. Two points at one part are a jump.
Weight = float | tuple[tuple[float, float], ...]


def at(weight: Weight, progress: jax.Array | float) -> jax.Array:
    """The weight when the part `progress` of the run is done; at a jump, the one after it."""
    if not isinstance(weight, tuple):
        return jnp.float32(weight)
    value = jnp.float32(weight[0][1])
    for (begin, before), (end, after) in itertools.pairwise(weight):
        share = jnp.clip((progress - begin) / (end - begin), 0, 1) if end > begin else 1.0
        value = jnp.where(progress >= begin, before + share * (after - before), value)
    return value


def largest(weight: Weight) -> float:
    """That it ever is."""
    return max((value for _, value in weight), default=0.0) if isinstance(weight, tuple) else weight


def require_weight(name: str, weight: Weight) -> None:
    """Refuses what is no schedule, or never above 0."""
    points = weight if isinstance(weight, tuple) else ((0.0, weight),)
    values = [value for _, value in points]
    require(
        bool(values) and all(math.isfinite(value) and value >= 0 for value in values) and max(values) > 0,
        f"{name}={weight} must be 0 or more, and above 0 somewhere",
    )
    parts = [part for part, _ in points]
    require(
        parts == sorted(parts) and all(0 <= part <= 1 for part in parts),
        f"{name}={weight}: the first number of each point is the part of the run that is done, ascending from 0 to 1",
    )
