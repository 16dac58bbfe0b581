"""Next-token prediction: the mean cross-entropy of tokens whose target belongs to the same document."""

from typing import Any

import jax
import jax.numpy as jnp

from kernels.cross_entropy.api import linear_cross_entropy
from model import transformer
from model.config import ModelConfig


def loss(
    config: ModelConfig, params: transformer.Params, batch: Any, count: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean nats a token, and metrics: `max_logit_LN` and the number of predicted tokens.

    `count` tokens are divided by, those of the batch itself or, where this is a part of one, of the whole.
    """
    output = transformer.apply(config, params, batch.tokens_BT, batch.segment_ids_BT, batch.positions_BT)
    total = _cross_entropy(config, params, output.hidden_BTD, batch.targets_BT, batch.weights_BT).loss
    count = jnp.sum(batch.weights_BT) if count is None else count
    mean = total / jnp.maximum(count, 1.0)
    return mean, {"loss": mean, "predicted_tokens": count, "max_logit_LN": output.max_logit_LN}


def token_nats(config: ModelConfig, params: transformer.Params, batch: Any) -> jax.Array:
    """Cross-entropy of every token in nats, zero where nothing is predicted; for evaluation."""
    output = transformer.apply(config, params, batch.tokens_BT, batch.segment_ids_BT, batch.positions_BT)
    weights_BT = jnp.asarray(batch.weights_BT)
    return _cross_entropy(config, params, output.hidden_BTD, batch.targets_BT, weights_BT).nats_BT * weights_BT


def _cross_entropy(config: ModelConfig, params: transformer.Params, hidden_BTD, targets_BT, weights_BT):
    w_VD = transformer.head(config, params)
    options = {"soft_cap": config.final_soft_cap, "implementation": config.kernels.cross_entropy}
    return linear_cross_entropy(hidden_BTD, w_VD, targets_BT, weights_BT, **options)
