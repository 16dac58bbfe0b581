"""One layer of the transformer, and what the backward pass computes again of it."""

from typing import Any

import jax
from flax import nnx

from kernels.attention.api import attention
from model.attention import Attend, Attention, Heads
from model.config import ModelConfig
from model.layers import FeedForward, Norm
from model.position import Rotation

# What the forward pass keeps of a layer beside its input, by the names that model/ and kernels/ give.
ATTENTION = ("query", "key", "value", "attention_out", "attention_lse")
BRANCHES = (*ATTENTION, "gate", "up")
_policies = jax.checkpoint_policies
REMAT_POLICIES = {
    "full": None,
    "attention": _policies.save_only_these_names(*ATTENTION),
    "branches": _policies.save_only_these_names(*BRANCHES),
    "dots": _policies.dots_saveable,
    "dots_without_batch": _policies.dots_with_no_batch_dims_saveable,
}


class Block(nnx.Module):
    """One layer: attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D = config.d_model
        self.attention_norm = Norm(config, D)
        self.attention = Attention(config, rngs)
        self.feed_forward_norm = Norm(config, D)
        self.feed_forward = FeedForward(config, rngs)
        self.normalises_branches = config.norm_position == "pre_post"
        if self.normalises_branches:
            self.attention_post_norm, self.feed_forward_post_norm = Norm(config, D), Norm(config, D)

    def __call__(self, x_BTD, rotation: Rotation, attend: Attend) -> tuple[jax.Array, Any]:
        """The residual stream after the layer, and what `attend` gave beside the mixed values."""
        mixed_BTD, extra = self.attention(self.attention_norm(x_BTD), rotation, attend)
        x_BTD = x_BTD + (self.attention_post_norm(mixed_BTD) if self.normalises_branches else mixed_BTD)
        inner_BTD = self.feed_forward(self.feed_forward_norm(x_BTD))
        return x_BTD + (self.feed_forward_post_norm(inner_BTD) if self.normalises_branches else inner_BTD), extra

    def heads(self, x_BTD: jax.Array, rotation: Rotation) -> Heads:
        """What attention reads of the residual stream before the layer."""
        return self.attention.heads(self.attention_norm(x_BTD), rotation)


def attend_within(config: ModelConfig, segment_ids_BT: jax.Array, window: Any) -> Attend:
    """Attention over rows of documents; beside the mixed values it gives the largest logit of every head."""

    def attend(q_BTNH, k_BTKH, v_BTKH):
        masks = {"segment_ids_BT": segment_ids_BT, "window": window}
        logits = {"scale": config.attention_scale, "soft_cap": config.attention_soft_cap}
        kernel = config.kernels.attention
        out = attention(q_BTNH, k_BTKH, v_BTKH, **masks, **logits, implementation=kernel)
        return out.out_BTNH, out.max_logit_N

    return attend
