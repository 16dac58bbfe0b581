"""The transformer: Flax NNX inside, plain functions of plain dicts outside.

Layers are stacked `[L, ...]` and scanned, so that compile time does not grow with depth; what differs between them
(RoPE or none, a sliding window) is data of the scan.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.block import REMAT_POLICIES, Block, attend_within
from model.config import ModelConfig
from model.layers import Norm, normal
from model.layers import embed as embed_tokens
from model.multi_token import MultiTokenModules
from model.position import Rotation, rotary_table
from model.sharding import constrain, gathered

Params = dict[str, Any]


class Output(NamedTuple):
    """What the trunk computed; the head belongs to the loss, which never writes all logits."""

    hidden_BTD: jax.Array  # after the final norm
    max_logit_LN: jax.Array  # largest attention logit of every layer and head, before a soft cap
    residual_BTD: jax.Array  # before the final norm, which `multi_token` reads


class Transformer(nnx.Module):
    """Embedding, scanned blocks, final norm; `head` only where the embedding is not the output layer too.

    `multi_token` holds the modules that predict further tokens, where there are any; `__call__` leaves them out.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.embedding = normal(rngs.params(), (config.vocab_size, config.d_model), config.init_std)
        stack = nnx.split_rngs(splits=config.num_layers)(nnx.vmap(lambda rngs: Block(config, rngs)))
        self.layers = stack(rngs)
        self.final_norm = Norm(config, config.d_model)
        if not config.tied_head:
            self.head = normal(rngs.params(), (config.vocab_size, config.d_model), config.init_std)
        if config.multi_token.modules:  # drawn last, so that the trunk is as without them
            self.multi_token = MultiTokenModules(config, rngs)

    def __call__(self, tokens_BT, segment_ids_BT, positions_BT) -> Output:
        """Hidden states of every token; a token sees earlier ones of its own segment."""
        config, T = self.config, tokens_BT.shape[1]
        cos_BTR, sin_BTR = rotary_table(positions_BT, config)
        graph, layers = nnx.split(self.layers)

        def layer(x_BTD, scanned):
            params, uses_rope, window = scanned
            attend = attend_within(config, segment_ids_BT, window)
            return nnx.merge(graph, params)(constrain(x_BTD), Rotation(cos_BTR, sin_BTR, uses_rope), attend)

        if config.remat != "none":
            layer = jax.checkpoint(layer, prevent_cse=False, policy=REMAT_POLICIES[config.remat])
        per_layer = (layers, jnp.array(config.uses_rope), window_of_layers(config, T))
        x_BTD, max_logit_LN = jax.lax.scan(
            layer, constrain(embed_tokens(config, self.embedding[...], tokens_BT)), per_layer
        )
        return Output(self.final_norm(x_BTD), max_logit_LN, x_BTD)


def window_of_layers(config: ModelConfig, length: int) -> np.ndarray | None:
    """How many tokens each layer sees [L]; None where no layer leaves out any of `length`."""
    window_L = np.array([window or length for window in config.windows], np.int32)
    return window_L if window_L.min() < length else None


@functools.cache
def graph(config: ModelConfig) -> nnx.GraphDef:
    """The module without its arrays; `nnx.merge` puts parameters in."""
    return nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))[0]


def init(config: ModelConfig, seed: int) -> Params:
    """Fresh parameters as nested dicts of arrays."""
    return nnx.to_pure_dict(nnx.split(Transformer(config, nnx.Rngs(seed)))[1])


def abstract(config: ModelConfig) -> Params:
    """Shapes and dtypes of the parameters, without their arrays."""
    return jax.eval_shape(lambda: init(config, 0))


def apply(config: ModelConfig, params: Params, tokens_BT, segment_ids_BT, positions_BT) -> Output:
    """The trunk as a pure function of its parameters."""
    return nnx.merge(graph(config), params)(tokens_BT, segment_ids_BT, positions_BT)


def embed(config: ModelConfig, params: Params, tokens_BT: jax.Array) -> jax.Array:
    """The residual stream before the first layer [B, T, D]; needs no layers among `params`."""
    return embed_tokens(config, params["embedding"], tokens_BT)


def final_norm(config: ModelConfig, params: Params, x_BTD: jax.Array) -> jax.Array:
    """What the head reads, from the residual stream after the last layer; needs no layers among `params`."""
    module = nnx.split(nnx.eval_shape(lambda: Norm(config, config.d_model)))[0]
    return nnx.merge(module, params["final_norm"])(x_BTD)


def head(config: ModelConfig, params: Params) -> jax.Array:
    """The output layer `w_VD` in the dtype of the computation."""
    return gathered(params["embedding" if config.tied_head else "head"].astype(config.dtype))


def logits(config: ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """Next-token logits [..., V] in float32, for the positions asked."""
    out = jnp.einsum("...D,VD->...V", hidden, head(config, params), preferred_element_type=jnp.float32)
    return final_cap(config, out)


def final_cap(config: ModelConfig, logits: jax.Array) -> jax.Array:
    """Logits from the products of the head: within `final_soft_cap`, where there is one."""
    cap = config.final_soft_cap
    return logits if cap is None else cap * jnp.tanh(logits / cap)
