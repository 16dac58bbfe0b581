"""The pure step: `step(state, batch) -> (state, metrics)`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from train.sharding import on_mesh
from train.state import TrainState

Loss = Callable[[Any, Any], tuple[jax.Array, dict[str, jax.Array]]]
Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


def make_step(loss: Loss, optimizer: optax.GradientTransformation, schedule: optax.Schedule) -> Step:
    """One update from one batch; `loss(params, batch)` gives a scalar and metrics."""

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.params, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": metrics["loss"],
            "learning_rate": schedule(state.step),
            "grad_norm": optax.tree.norm(grads),
            "max_logit": jnp.max(metrics["max_logit_LN"]),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return step


def compile_step(step: Step, state_shardings: TrainState, batch_sharding: NamedSharding) -> Step:
    """The step jitted, its state donated and laid out as told."""
    return jax.jit(
        on_mesh(step, batch_sharding.mesh),
        in_shardings=(state_shardings, batch_sharding),
        out_shardings=(state_shardings, None),
        donate_argnums=0,
    )
