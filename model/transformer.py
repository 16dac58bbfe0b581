"""The transformer: Flax NNX inside, plain functions of plain dicts outside.

Layers are stacked `[L, ...]` and scanned, so that compile time does not grow with depth; what differs between them
(RoPE or none) is data of the scan.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention import Attention
from model.config import ModelConfig
from model.layers import RMSNorm, SwiGLU, normal
from model.position import rotary_table

Params = dict[str, Any]


class Output(NamedTuple):
    """What the trunk computed; the head belongs to the loss, which never writes all logits."""

    hidden_BTD: jax.Array  # after the final norm
    max_logit_LN: jax.Array  # largest attention logit of every layer and head


class Block(nnx.Module):
    """One layer: attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config)
        self.attention = Attention(config, rngs)
        self.feed_forward_norm = RMSNorm(config)
        self.feed_forward = SwiGLU(config, rngs)

    def __call__(self, x_BTD, cos_BTR, sin_BTR, segment_ids_BT) -> tuple[jax.Array, jax.Array]:
        """The residual stream after the layer, and the largest attention logit of each head [N]."""
        mixed_BTD, max_logit_N = self.attention(self.attention_norm(x_BTD), cos_BTR, sin_BTR, segment_ids_BT)
        x_BTD = x_BTD + mixed_BTD
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD)), max_logit_N


class Transformer(nnx.Module):
    """Embedding, scanned blocks, final norm. The embedding is also the output head."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.embedding = normal(rngs.params(), (config.vocab_size, config.d_model), config.init_std)
        stack = nnx.split_rngs(splits=config.num_layers)(nnx.vmap(lambda rngs: Block(config, rngs)))
        self.layers = stack(rngs)
        self.final_norm = RMSNorm(config)

    def __call__(self, tokens_BT, segment_ids_BT, positions_BT) -> Output:
        """Hidden states of every token; a token sees earlier ones of its own segment."""
        config = self.config
        x_BTD = self.embedding[...].astype(config.dtype)[tokens_BT]
        cos_BTR, sin_BTR = rotary_table(positions_BT, config.head_dim, config.rope_theta)
        graph, layers = nnx.split(self.layers)

        def layer(x_BTD, scanned):
            params, uses_rope = scanned
            cos, sin = jnp.where(uses_rope, cos_BTR, 1.0), jnp.where(uses_rope, sin_BTR, 0.0)
            return nnx.merge(graph, params)(x_BTD, cos, sin, segment_ids_BT)

        if config.remat == "full":
            layer = jax.checkpoint(layer, prevent_cse=False)
        x_BTD, max_logit_LN = jax.lax.scan(layer, x_BTD, (layers, jnp.array(config.uses_rope)))
        return Output(self.final_norm(x_BTD), max_logit_LN)


@functools.cache
def _graph(config: ModelConfig) -> nnx.GraphDef:
    return nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))[0]


def init(config: ModelConfig, seed: int) -> Params:
    """Fresh parameters as nested dicts of arrays."""
    return nnx.to_pure_dict(nnx.split(Transformer(config, nnx.Rngs(seed)))[1])


def apply(config: ModelConfig, params: Params, tokens_BT, segment_ids_BT, positions_BT) -> Output:
    """The trunk as a pure function of its parameters."""
    return nnx.merge(_graph(config), params)(tokens_BT, segment_ids_BT, positions_BT)


def head(config: ModelConfig, params: Params) -> jax.Array:
    """The output layer `w_VD` in the dtype of the computation; tied to the embedding."""
    return params["embedding"].astype(config.dtype)


def logits(config: ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """Next-token logits [..., V] in float32, for the positions asked."""
    return jnp.einsum("...D,VD->...V", hidden, head(config, params), preferred_element_type=jnp.float32)
