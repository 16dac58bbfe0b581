"""Next-token prediction: the mean cross-entropy of tokens whose target belongs to the same document."""

from typing import Any

import jax
import jax.numpy as jnp

from kernels.cross_entropy.api import linear_cross_entropy
from model import transformer
from model.config import ModelConfig
from objectives.config import ObjectiveConfig


def loss(
    config: ModelConfig,
    params: transformer.Params,
    batch: Any,
    count: jax.Array | None = None,
    objective: ObjectiveConfig = ObjectiveConfig(),  # noqa: B008 (frozen)
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What is minimised, a token, and metrics: `loss`, the mean nats, `max_logit_LN`, the number of predicted tokens.

    `count` tokens are divided by, those of the batch itself or, where this is a part of one, of the whole. With a
    z-loss the metrics name it apart, so that `loss` compares with that of runs without.
    """
    output = transformer.apply(config, params, batch.tokens_BT, batch.segment_ids_BT, batch.positions_BT)
    out = _cross_entropy(
        config, params, output.hidden_BTD, batch.targets_BT, batch.weights_BT, z_loss=objective.z_loss
    )
    count = jnp.sum(batch.weights_BT) if count is None else count
    mean = out.loss / jnp.maximum(count, 1.0)
    metrics = {"loss": mean, "predicted_tokens": count, "max_logit_LN": output.max_logit_LN}
    if objective.z_loss:
        nats = jnp.sum(out.nats_BT * batch.weights_BT) / jnp.maximum(count, 1.0)
        metrics |= {"loss": nats, "z_loss": mean - nats}
    return mean, metrics


def token_nats(config: ModelConfig, params: transformer.Params, batch: Any) -> jax.Array:
    """Cross-entropy of every token in nats, zero where nothing is predicted; for evaluation."""
    output = transformer.apply(config, params, batch.tokens_BT, batch.segment_ids_BT, batch.positions_BT)
    weights_BT = jnp.asarray(batch.weights_BT)
    return _cross_entropy(config, params, output.hidden_BTD, batch.targets_BT, weights_BT).nats_BT * weights_BT


def _cross_entropy(config: ModelConfig, params: transformer.Params, hidden_BTD, targets_BT, weights_BT, **more):
    w_VD = transformer.head(config, params)
    options = {"soft_cap": config.final_soft_cap, "implementation": config.kernels.cross_entropy}
    return linear_cross_entropy(hidden_BTD, w_VD, targets_BT, weights_BT, **options, **more)
