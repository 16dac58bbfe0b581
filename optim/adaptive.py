"""Learning rate and clipping threshold that follow the largest attention logit of every head.

With S_LN the largest logits of a step, Holt's linear smoothing (1957) gives each head a level l and a trend b a step:

    l <- a S + (1 - a) (l + b)    b <- a (l - l_before) + (1 - a) b    forecast f = max(l, l + horizon * b)

so a head comes near the limit by being large or by growing fast. As the forecast goes from start * limit to the
limit, the learning rate goes from the schedule's to least_rate of it along half a cosine, and stays within those two:
of the head's query (of its key, where several share it, the least of theirs) or, with rate="all", of everything, by
the head with the least. With slack, QK-Clip's threshold of a head is slack * l of the step before, between
least_threshold and qk_clip.threshold: a jump above what the head is used to is clipped long before all others are.

What is not finite leaves level and trend as they were. L layers, N query heads, K key heads.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim.config import AdaptiveConfig, QKClipConfig
from optim.metrics import Metrics
from optim.qk_clip import clip_heads, clip_metrics, count_heads, head_factors, on_heads, require_linear


class Track(NamedTuple):
    """Level and trend of every head's largest logit, zero before the first step."""

    level_LN: jax.Array
    trend_LN: jax.Array  # a step


def follow(track: Track, max_logit_LN: jax.Array, first: jax.Array, smoothing: float) -> Track:
    """One step on; the `first` is the level itself."""
    level_LN = smoothing * max_logit_LN + (1 - smoothing) * (track.level_LN + track.trend_LN)
    trend_LN = smoothing * (level_LN - track.level_LN) + (1 - smoothing) * track.trend_LN
    level_LN, trend_LN = jnp.where(first, max_logit_LN, level_LN), jnp.where(first, 0.0, trend_LN)
    finite_LN = jnp.isfinite(max_logit_LN)
    return Track(jnp.where(finite_LN, level_LN, track.level_LN), jnp.where(finite_LN, trend_LN, track.trend_LN))


def rates(track: Track, config: AdaptiveConfig) -> jax.Array:
    """The factor of every head's learning rate [L, N], from least_rate to 1."""
    forecast_LN = jnp.maximum(track.level_LN, track.level_LN + config.horizon * track.trend_LN)
    beyond_LN = jnp.clip((forecast_LN / config.limit - config.start) / (1 - config.start), 0.0, 1.0)
    fall_LN = (1 - jnp.cos(jnp.pi * beyond_LN)) / 2
    return 1 - (1 - config.least_rate) * fall_LN


def thresholds(level_LN: jax.Array, config: AdaptiveConfig, highest: float) -> jax.Array:
    """QK-Clip's threshold of every head [L, N]."""
    return jnp.clip(config.slack * level_LN, config.least_threshold, highest)


def slowed(updates: Any, rate_LN: jax.Array, whose: str) -> Any:
    """Updates times the rates of their heads, or all times the least of them; where a rate is 1, as they were."""

    def one(update: jax.Array, rate: jax.Array) -> jax.Array:
        rate = rate.astype(update.dtype)
        return jnp.where(rate < 1, update * rate, update)

    if whose == "off":
        return updates
    if whose == "all":
        return jax.tree.map(lambda update: one(update, jnp.min(rate_LN)), updates)
    L, K = len(rate_LN), updates["layers"]["attention"]["key"].shape[2]
    return on_heads(one, rate_LN, rate_LN.reshape(L, K, -1).min(-1), updates)


class AdaptiveState(NamedTuple):
    """What is known of the heads."""

    count: jax.Array  # int32, steps
    level_LN: jax.Array
    trend_LN: jax.Array
    metrics: Metrics


def adapt(config: AdaptiveConfig, qk_clip: QKClipConfig) -> optax.GradientTransformationExtraArgs:
    """The last of a chain, in place of `qk_clip`, which it includes; `update` needs `max_logit_LN`."""

    def init(params: Any) -> AdaptiveState:
        if qk_clip.threshold or config.rate == "heads":
            require_linear(params)
        heads = count_heads(params)
        zeros, ones = jnp.zeros(heads, jnp.float32), jnp.ones(heads, jnp.float32)
        return AdaptiveState(jnp.zeros((), jnp.int32), zeros, zeros, measured(ones, ones, ones))

    def measured(rate_LN: jax.Array, threshold_LN: jax.Array, factor_LN: jax.Array) -> Metrics:
        own = {"qk_rate": jnp.min(rate_LN)} if config.rate != "off" else {}
        if qk_clip.threshold:
            own |= {"qk_threshold": jnp.min(threshold_LN), **clip_metrics(factor_LN).values}
        return Metrics(own)

    def update(
        updates: Any, state: AdaptiveState, params: Any = None, *, max_logit_LN: jax.Array, **_: Any
    ) -> tuple[Any, AdaptiveState]:
        first = state.count == 0
        track = follow(Track(state.level_LN, state.trend_LN), max_logit_LN, first, config.smoothing)
        rate_LN = rates(track, config)
        updates = slowed(updates, rate_LN, config.rate)
        threshold_LN, factor_LN = jnp.full_like(rate_LN, qk_clip.threshold), jnp.ones_like(rate_LN)
        if qk_clip.threshold:
            if config.slack:
                own_LN = thresholds(state.level_LN, config, qk_clip.threshold)
                threshold_LN = jnp.where(first, threshold_LN, own_LN)
            factor_LN = head_factors(max_logit_LN, threshold_LN)
            updates = clip_heads(updates, params, factor_LN, qk_clip)
        return updates, AdaptiveState(state.count + 1, *track, measured(rate_LN, threshold_LN, factor_LN))

    return optax.GradientTransformationExtraArgs(init, update)
