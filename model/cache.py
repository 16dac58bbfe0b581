"""Layers over a cache of keys and values: what decoding is made of.

Layers are unstacked, so that no layer's weights are copied out of their stack at every token, as XLA:CPU would in a
scan, at twice the time a token.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from kernels.attention.api import attention
from kernels.attention.cached import cached_attention
from model import multi_token, transformer
from model.attention import Attend
from model.block import Block
from model.config import ModelConfig
from model.position import Rotation, rotary_table


class Cache(NamedTuple):
    """Keys and values of one layer; slot s holds position s."""

    k_BKHS: jax.Array
    v_BKSH: jax.Array


class Layer(NamedTuple):
    """One layer of the trunk, or one module of `multi_token`."""

    params: Any
    uses_rope: jax.Array
    window: jax.Array | None  # how many tokens a token sees; None is all


class Weights(NamedTuple):
    """A model as decoding reads it: matrices in the dtype of the computation, layers one by one."""

    outer: dict[str, Any]  # the head as [D, V], the final norm, and an embedding that is not the head too
    layers: list[Layer]
    modules: list[Layer]


def unstack(config: ModelConfig, params: transformer.Params, context: int, modules: int) -> Weights:
    """A copy of the parameters for caches of so many slots, and of so many modules."""
    windows = transformer.window_of_layers(config, context)
    windows = [None] * config.num_layers if windows is None else [jnp.asarray(window) for window in windows]
    layers = _unstack(config, params["layers"], config.uses_rope, windows)
    # [D, V]: XLA:CPU multiplies a few rows by [V, D] at half the speed. A tied embedding is held once, so too.
    outer = {"head_DV": transformer.head(config, params).T, "final_norm": params["final_norm"]}
    if not config.tied_head:
        outer["embedding"] = params["embedding"].astype(config.dtype)
    if not modules:
        return Weights(outer, layers, [])
    uses_rope, window = multi_token.rotates(config), multi_token.window_of_modules(config, context)
    stack = params["multi_token"]["layers"]
    return Weights(outer, layers, _unstack(config, stack, [uses_rope] * modules, [window] * modules))


def _unstack(config: ModelConfig, stack: Any, uses_rope: Any, windows: Any) -> list[Layer]:
    """As many as there are windows."""

    def cast(path, array):
        """Norms and biases stay in float32, as in training."""
        vector = path[-1].key == "scale" or path[-1].key.endswith("bias")
        return array if vector else array.astype(config.dtype)

    layers = []
    for i, (turns, window) in enumerate(zip(uses_rope, windows)):
        own = jax.tree_util.tree_map_with_path(lambda path, a, i=i: cast(path, a[i]), stack)
        layers.append(Layer(own, jnp.asarray(turns), window))
    return layers


def embed(config: ModelConfig, outer: dict[str, Any], tokens_BT: jax.Array) -> jax.Array:
    """The residual stream before the first layer [B, T, D]."""
    if not config.tied_head:
        return transformer.embed(config, outer, tokens_BT)
    columns = {"embedding": outer["head_DV"][:, tokens_BT.reshape(-1)].T}
    return transformer.embed(config, columns, jnp.arange(tokens_BT.size).reshape(tokens_BT.shape))


def extend(
    config: ModelConfig, weights: Weights, caches: list[Cache], tokens_BT: jax.Array, positions_BT: jax.Array
) -> tuple[jax.Array, list[Cache]]:
    """The trunk's last residual stream [B, T, D] at further tokens of every row, and the caches with them.

    Slots from the first of `positions_BT` on may hold anything; what lies beyond the cache is not kept.
    """
    table, x_BTD, grown = rotary_table(positions_BT, config), embed(config, weights.outer, tokens_BT), []
    for layer, cache in zip(weights.layers, caches):
        attend = over(config, cache, positions_BT, layer.window)
        x_BTD, cache = nnx.merge(block(config), layer.params)(x_BTD, Rotation(*table, layer.uses_rope), attend)
        grown.append(cache)
    return x_BTD, grown


def over(config: ModelConfig, cache: Cache, positions_BT: jax.Array, window: jax.Array | None) -> Attend:
    """Attention over a cache that takes up the tokens at hand; beside the mixed values it gives the cache."""

    def attend(q_BTNH, k_BTKH, v_BTKH):
        rows_B1 = jnp.arange(len(positions_BT))[:, None]
        k_BKHS = cache.k_BKHS.at[rows_B1, :, :, positions_BT].set(k_BTKH, mode="drop")
        v_BKSH = cache.v_BKSH.at[rows_B1, :, positions_BT].set(v_BTKH, mode="drop")
        options = {"window": window, "scale": config.attention_scale, "soft_cap": config.attention_soft_cap}
        return cached_attention(q_BTNH, k_BKHS, v_BKSH, positions_BT, **options), Cache(k_BKHS, v_BKSH)

    return attend


def filling(config: ModelConfig, context: int, window: jax.Array | None) -> Attend:
    """Attention of rows from their beginning; beside the mixed values it gives a cache that holds them."""

    def attend(q_BTNH, k_BTKH, v_BTKH):
        options = {"window": window, "scale": config.attention_scale, "soft_cap": config.attention_soft_cap}
        out = attention(q_BTNH, k_BTKH, v_BTKH, **options, implementation=config.kernels.attention)
        rest = ((0, 0), (0, context - k_BTKH.shape[1]), (0, 0), (0, 0))
        k_BSKH, v_BSKH = jnp.pad(k_BTKH, rest), jnp.pad(v_BTKH, rest)
        return out.out_BTNH, Cache(k_BSKH.transpose(0, 2, 3, 1), v_BSKH.transpose(0, 2, 1, 3))

    return attend


def logits(config: ModelConfig, outer: dict[str, Any], x_BTD: jax.Array) -> jax.Array:
    """Of the next token [B, T, V], from the trunk's last residual stream."""
    return to_vocabulary(config, outer, transformer.final_norm(config, outer, x_BTD))


def to_vocabulary(config: ModelConfig, outer: dict[str, Any], hidden_BTD: jax.Array) -> jax.Array:
    """The output layer. Written as one product of two matrices: of the einsum XLA:CPU makes a loop over columns."""
    B, T, D = hidden_BTD.shape
    logits_XV = jnp.dot(hidden_BTD.reshape(B * T, D), outer["head_DV"], preferred_element_type=jnp.float32)
    return transformer.final_cap(config, logits_XV).reshape(B, T, -1)


@functools.cache
def block(config: ModelConfig) -> nnx.GraphDef:
    """A layer without its arrays."""
    return nnx.split(nnx.eval_shape(lambda: Block(config, nnx.Rngs(0))))[0]
