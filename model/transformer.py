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

from model.attention import Heads
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
    streams: dict[int, jax.Array]  # the residual stream [B, T, D] after as many layers, where it was asked for


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

    def __call__(self, tokens_BT, segment_ids_BT, positions_BT, after: tuple[int, ...] = ()) -> Output:
        """Hidden states of every token; a token sees earlier ones of its own segment.

        `after` are the numbers of layers after which the residual stream is kept, 0 for before the first.
        """
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
        x_BTD = constrain(embed_tokens(config, self.embedding[...], tokens_BT))
        if not after:
            x_BTD, max_logit_LN = jax.lax.scan(layer, x_BTD, per_layer)
            return Output(self.final_norm(x_BTD), max_logit_LN, x_BTD, {})

        def keeping(carry, scanned):
            (x_BTD, kept_KBTD), (of_layer, place) = carry, scanned
            x_BTD, max_logit_N = layer(x_BTD, of_layer)
            return (x_BTD, jax.lax.dynamic_update_index_in_dim(kept_KBTD, x_BTD, place, 0)), max_logit_N

        # Where each layer's stream is put, in one array for all layers; the last place is for those not asked for.
        place_L = np.full(config.num_layers + 1, len(after), np.int32)
        place_L[list(after)] = np.arange(len(after))
        kept_KBTD = jnp.zeros((len(after) + 1, *x_BTD.shape), x_BTD.dtype).at[place_L[0]].set(x_BTD)
        (x_BTD, kept_KBTD), max_logit_LN = jax.lax.scan(keeping, (x_BTD, kept_KBTD), (per_layer, place_L[1:]))
        return Output(self.final_norm(x_BTD), max_logit_LN, x_BTD, dict(zip(after, kept_KBTD)))


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


def apply(config: ModelConfig, params: Params, tokens_BT, segment_ids_BT, positions_BT, after=()) -> Output:
    """The trunk as a pure function of its parameters."""
    return nnx.merge(graph(config), params)(tokens_BT, segment_ids_BT, positions_BT, after)


def heads(config: ModelConfig, params: Params, layer: int, x_BTD: jax.Array, positions_BT: jax.Array) -> Heads:
    """Queries, keys and values of one layer, counted from 1, computed again from the residual stream before it."""
    block = nnx.split(nnx.eval_shape(lambda: Block(config, nnx.Rngs(0))))[0]
    own = jax.tree.map(lambda leaf: leaf[layer - 1], params["layers"])
    turn = Rotation(*rotary_table(positions_BT, config), jnp.array(config.uses_rope[layer - 1]))
    return nnx.merge(block, own).heads(x_BTD, turn)


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
