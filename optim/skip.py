"""Updates that are left out: those that are not finite always, those that stand out where the config asks.

A step whose loss or gradient norm lies more than 6 standard deviations above the mean of the last 128 steps is taken
for a spike (OLMo 2, arXiv:2501.00656; OLMo-core `optim/skip_step_optimizer.py`). Its rule is kept: the mean is of
the steps before this one, the deviation that of a sample (n - 1), only what lies above counts, it begins when this
step is the 64th, and a spike enters the window as any step does, so that a lasting change is followed.

Nothing of a skipped step stays: the new state of the chain is selected leaf by leaf, new or old. OLMo multiplies with
0 or 1 inside AdamW, which needs a formula for each optimiser, and 0 x NaN is NaN. A branch (`lax.cond`) would save an
update's arithmetic a few times in a run, and always keep XLA from fusing it with what is around it. No number goes to
the host.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim.config import SkipConfig
from optim.metrics import Metrics


class SkipState(NamedTuple):
    """The states of what it is made of, and what decides the next step. W is the window's length."""

    inner: Any
    rate: Any
    last: Any
    count: jax.Array  # int32: finite steps seen, whose values the window holds, or the last W of them
    window: dict[str, jax.Array]  # float32[W] of `loss` and `grad_norm`, a ring; empty where spikes are not skipped
    metrics: Metrics


def skip(
    inner: optax.GradientTransformation,
    rate: optax.GradientTransformation,
    last: optax.GradientTransformation,
    config: SkipConfig,
) -> optax.GradientTransformationExtraArgs:
    """The chain of the three; in steps that are skipped updates are 0, and `inner` and `last` stay as they were.

    `rate`, the learning rate, follows all steps of the run. Zeros are selected behind it: XLA:CPU then rounds updates
    before they are added to parameters, in every program alike, so that what comes `last` (QK-Clip) changes no bit
    where it does nothing.

    `update(grads, state, params, loss=...)`; without a loss only the gradients are watched. Metrics: `skipped_steps`,
    all so far; `nonfinite_in_a_row`, up to this step. Once those are `nonfinite_limit`, all that follows is skipped
    too: whoever reads the metrics, however seldom, finds the parameters from before.
    """
    inner, last = optax.with_extra_args_support(inner), optax.with_extra_args_support(last)

    def init(params: Any) -> SkipState:
        zero = jnp.zeros((), jnp.int32)
        window = {name: jnp.zeros(config.window) for name in ("loss", "grad_norm") if config.spikes}
        metrics = Metrics({"skipped_steps": zero, "nonfinite_in_a_row": zero})
        return SkipState(inner.init(params), rate.init(params), last.init(params), zero, window, metrics)

    def update(grads: Any, state: SkipState, params: Any = None, *, loss: Any = 0.0, **extra: Any) -> tuple:
        before = state.metrics.values
        latest = {"loss": jnp.float32(loss), "grad_norm": optax.tree.norm(grads).astype(jnp.float32)}
        finite = jnp.isfinite(latest["loss"]) & jnp.isfinite(latest["grad_norm"])
        stopped = before["nonfinite_in_a_row"] >= config.nonfinite_limit
        in_a_row = jnp.where(finite & ~stopped, 0, before["nonfinite_in_a_row"] + 1)
        take = (in_a_row == 0) & ~is_spike(latest, state.window, state.count, config.sigmas)

        updates, after = inner.update(grads, state.inner, params, loss=loss, **extra)
        updates, followed = rate.update(updates, state.rate, params)
        updates, watched = last.update(_only(take, updates), state.last, params, loss=loss, **extra)
        updates = _only(take, updates)
        kept = jax.tree.map(
            lambda new, old: new if isinstance(new, Metrics) else jnp.where(take, new, old),
            (after, watched),
            (state.inner, state.last),
            is_leaf=lambda node: isinstance(node, Metrics),  # which tell what this step was like
        )
        window = {name: _push(values_W, latest[name], state.count, finite) for name, values_W in state.window.items()}
        metrics = {"skipped_steps": before["skipped_steps"] + ~take, "nonfinite_in_a_row": in_a_row}
        return updates, SkipState(kept[0], followed, kept[1], state.count + finite, window, Metrics(metrics))

    return optax.GradientTransformationExtraArgs(init, update)


def _only(take: jax.Array, updates: Any) -> Any:
    """The updates, or zeros."""
    return jax.tree.map(lambda u: jnp.where(take, u, jnp.zeros_like(u)), updates)


def is_spike(
    latest: dict[str, jax.Array], window: dict[str, jax.Array], count: jax.Array, sigmas: float
) -> jax.Array:
    """Whether any of the latest values lies so many standard deviations above the mean of its window."""
    found = jnp.zeros((), bool)
    for name, values_W in window.items():
        size = values_W.size
        seen_W = jnp.arange(size) < count
        number = jnp.minimum(count, size)
        mean = jnp.sum(jnp.where(seen_W, values_W, 0)) / jnp.maximum(number, 1)
        squares = jnp.sum(jnp.where(seen_W, jnp.square(values_W - mean), 0))
        deviation = jnp.sqrt(squares / jnp.maximum(number - 1, 1))
        found |= (latest[name] - mean > sigmas * deviation) & (count + 1 >= max(2, size // 2))
    return found


def _push(values_W: jax.Array, value: jax.Array, count: jax.Array, finite: jax.Array) -> jax.Array:
    """The ring with one more value; one that is not finite would make every later mean so, and stays out."""
    return jnp.where((jnp.arange(values_W.size) == count % values_W.size) & finite, value, values_W)
