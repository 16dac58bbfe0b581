"""QK-Clip: query and key heads scaled back after a step in which an attention logit was too large.

A logit is scale * q . k with q and k linear in their projections, so a head whose largest logit is S is brought back
to the threshold t by multiplying its query (and key) by factors whose product is t / S, biases included (Kimi K2
report, section 2.1, there with Muon and called MuonClip). S is that of the forward pass of the step itself, over the
whole batch, before a soft cap; the factors fall on the parameters after the update, so this comes last in a chain.
Parameters are float32 and cast where they are read, so no copy of another dtype is left behind, and no layer shares
its projections with another.

L layers, those of modules that predict further tokens behind the trunk's, D model, N query heads, K key heads,
G = N / K, H head size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from core.errors import UserError
from optim.config import QKClipConfig
from optim.metrics import Metrics

MODULES = "multi_token"  # where among the parameters those of such modules lie


def head_factors(max_logit_LN: jax.Array, threshold: jax.Array | float) -> jax.Array:
    """What the logits of every head are to be multiplied by [L, N]: 1 up to the threshold, and threshold / S above.

    A logit that is not finite says nothing of how large the weights are: the factor is 1.
    """
    over_LN = jnp.isfinite(max_logit_LN) & (max_logit_LN > threshold)
    return jnp.where(over_LN, threshold / jnp.where(over_LN, max_logit_LN, 1.0), 1.0)


def split_factors(
    factor_LN: jax.Array, num_kv_heads: int, treatment: str, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Factors of the query heads [L, N] and of the key heads [L, K].

    "query" puts all of it on the query head, which no other head reads. "group" is Megatron-LM's: the smallest factor
    f of the G query heads of a key gives f^alpha to each of them and f^(1 - alpha) to the key.
    """
    L, N = factor_LN.shape
    if treatment == "query":
        return factor_LN, jnp.ones((L, num_kv_heads), factor_LN.dtype)
    least_LK = factor_LN.reshape(L, num_kv_heads, N // num_kv_heads).min(-1)
    return jnp.repeat(least_LK**alpha, N // num_kv_heads, axis=1), least_LK ** (1 - alpha)


def clip_heads(updates: Any, params: Any, factor_LN: jax.Array, config: QKClipConfig) -> Any:
    """Updates that lead to queries and keys whose logits are multiplied by the factors; where one is 1, as they were.

    So a step that clips nothing is unchanged to the bit.
    """

    def scaled(update: jax.Array, factor: jax.Array, param: jax.Array) -> jax.Array:
        factor = factor.astype(update.dtype)
        return jnp.where(factor < 1, update + (factor - 1) * (param + update), update)

    K = updates["layers"]["attention"]["key"].shape[2]
    factors = split_factors(factor_LN, K, config.treatment, config.alpha)
    return on_heads(scaled, *factors, updates, params)


def on_heads(
    function: Callable[..., jax.Array], query_LN: jax.Array, key_LK: jax.Array, tree: Any, *rest: Any
) -> Any:
    """A tree like the parameters, queries, keys and their biases as `function(leaf, factor of its head, *rest)`."""
    L = len(tree["layers"]["attention"]["query"])
    stacks = (a["layers"] for a in (tree, *rest))
    changed = {**tree, "layers": _on_stack(function, query_LN[:L], key_LK[:L], *stacks)}
    if MODULES in tree:
        stacks = (a[MODULES]["layers"] for a in (tree, *rest))
        changed[MODULES] = {"layers": _on_stack(function, query_LN[L:], key_LK[L:], *stacks)}
    return changed


def _on_stack(function: Callable[..., jax.Array], query_LN: jax.Array, key_LK: jax.Array, *stacks: Any) -> Any:
    """The same of the trunk's layers, or of the modules."""
    own, *others = (stack["attention"] for stack in stacks)
    changed = {}
    for kind, heads in (("query", query_LN), ("key", key_LK)):
        changed[kind] = function(own[kind], heads[:, None, :, None], *(a[kind] for a in others))  # [L, D, heads, H]
        if (bias := f"{kind}_bias") in own:
            changed[bias] = function(own[bias], heads[..., None], *(a[bias] for a in others))  # [L, heads, H]
    return {**stacks[0], "attention": {**own, **changed}}


def count_heads(params: Any) -> tuple[int, int]:
    """Layers and query heads of each, as `max_logit_LN` has them."""
    L, _, N, _ = params["layers"]["attention"]["query"].shape
    return L + (len(params[MODULES]["layers"]["attention"]["query"]) if MODULES in params else 0), N


class QKClipState(NamedTuple):
    """Nothing is remembered."""

    metrics: Metrics


def qk_clip(config: QKClipConfig) -> optax.GradientTransformationExtraArgs:
    """The last of a chain; `update` needs `max_logit_LN`."""

    def init(params: Any) -> QKClipState:
        require_linear(params)
        return QKClipState(clip_metrics(jnp.ones((1, 1), jnp.float32)))

    def update(
        updates: Any, _: QKClipState, params: Any = None, *, max_logit_LN: jax.Array, **__: Any
    ) -> tuple[Any, QKClipState]:
        factor_LN = head_factors(max_logit_LN, config.threshold)
        return clip_heads(updates, params, factor_LN, config), QKClipState(clip_metrics(factor_LN))

    return optax.GradientTransformationExtraArgs(init, update)


def clip_metrics(factor_LN: jax.Array) -> Metrics:
    """How many heads were above the threshold, and the smallest factor."""
    return Metrics(
        {"qk_clipped_heads": jnp.sum(factor_LN < 1.0, dtype=jnp.int32), "qk_clip_factor": jnp.min(factor_LN)}
    )


def require_linear(params: Any) -> None:
    """Refuses QK-norm: its gains, one set for all heads of a layer, set the logits, not the projections."""
    if "query_norm" in params["layers"]["attention"]:
        raise UserError(
            "config optim.qk_clip, optim.adaptive: with model.qk_norm=True a head's projections change no logit, and "
            "the norm bounds them already; leave one out (optim.qk_clip.threshold=0, optim.adaptive.rate=all)"
        )


class WatchState(NamedTuple):
    """Of the last step."""

    metrics: Metrics


def watch_logits() -> optax.GradientTransformationExtraArgs:
    """Changes nothing, and keeps `max_logit_LN` for the metrics."""

    def init(params: Any) -> WatchState:
        return WatchState(Metrics({"max_logit_LN": jnp.zeros(count_heads(params), jnp.float32)}))

    def update(
        updates: Any, _: WatchState, __: Any = None, *, max_logit_LN: jax.Array, **___: Any
    ) -> tuple[Any, WatchState]:
        return updates, WatchState(Metrics({"max_logit_LN": max_logit_LN}))

    return optax.GradientTransformationExtraArgs(init, update)
