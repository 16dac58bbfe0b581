"""What a step changes: the parameters, the optimiser's state, and the number of steps done."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from model import transformer
from objectives.build import Total


class TrainState(NamedTuple):
    """Plain trees of arrays."""

    step: jax.Array  # int32, updates done
    params: transformer.Params
    opt_state: Any


class Parameters(NamedTuple):
    """Of a state the parameters, or some of them."""

    params: transformer.Params


def init(objective: Total, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step."""
    return begin(objective.init(seed), optimizer)


def begin(params: transformer.Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, from parameters that exist."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def abstract(objective: Total, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes and dtypes of the state, without its arrays."""
    return jax.eval_shape(lambda: init(objective, optimizer, 0))
