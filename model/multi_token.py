"""Modules that predict tokens beyond the next: one block each, behind the trunk, with the shared output layer.

parallel: module k predicts token k from the trunk's residual stream alone (Gloeckle et al. 2024, arXiv 2404.19737).
sequential: module k reads the stream that module k - 1 gave, and the embedding of the token that it was to predict
(DeepSeek-V3, arXiv 2412.19437, section 2.2). Both take the stream before a final norm and have one of their own.
They are stacked `[M - 1, ...]` and run one after another, so that the activations of one live at a time.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from kernels.linear.api import linear
from model.block import Block, attend_within
from model.config import ModelConfig
from model.layers import Norm, embed, normal
from model.position import Rotation, rotary_table
from model.sharding import constrain

# (what a module's output layer reads [B, T, D], what is the module's of `own`) to whatever the caller wants of it
Read = Callable[[jax.Array, Any], Any]


class Module(Block):
    """A block with a final norm and, where modules are sequential, what joins a stream with an embedding."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        D = config.d_model
        self.final_norm = Norm(config, D)
        if config.multi_token.kind == "sequential":
            self.hidden_norm, self.embedding_norm = Norm(config, D), Norm(config, D)
            self.projection = normal(rngs.params(), (2 * D, D), config.init_std)

    def join(self, x_BTD: jax.Array, token_BTD: jax.Array) -> jax.Array:
        """The stream before the block."""
        both_BTI = jnp.concatenate([self.hidden_norm(x_BTD), self.embedding_norm(token_BTD)], -1)
        w_ID = self.projection[...].astype(x_BTD.dtype)
        return linear(both_BTI.reshape(-1, both_BTI.shape[-1]), w_ID).reshape(x_BTD.shape)


class MultiTokenModules(nnx.Module):
    """Their parameters, under `layers` like those of the trunk, for optimisers and meshes treat them alike."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        stack = nnx.split_rngs(splits=config.multi_token.modules)(nnx.vmap(lambda rngs: Module(config, rngs)))
        self.layers = stack(rngs)


class Row(NamedTuple):
    """Where the tokens of rows stand."""

    segment_ids_BT: jax.Array
    positions_BT: jax.Array


@functools.cache
def graph(config: ModelConfig) -> nnx.GraphDef:
    """A module without its arrays."""
    return nnx.split(nnx.eval_shape(lambda: Module(config, nnx.Rngs(0))))[0]


def rotates(config: ModelConfig) -> bool:
    """Whether modules rotate positions: where any layer does."""
    return any(config.uses_rope)


def window_of_modules(config: ModelConfig, length: int) -> jax.Array | None:
    """How many tokens every module sees; None where it leaves out none of `length`."""
    return jnp.int32(config.sliding_window) if 0 < config.sliding_window < length else None


def one_after_another(
    config: ModelConfig,
    params: dict[str, Any],
    residual_BTD: jax.Array,
    tokens_MBT: jax.Array,
    row: Row,
    read: Read,
    own: Any,
) -> tuple[Any, jax.Array]:
    """What `read` makes of every module, and the largest attention logit of its heads [M, N], stacked.

    The backward pass computes each module again, and `read` with it.
    `tokens_MBT` are, for each module, the tokens at the offset before the one that it predicts; parallel modules do
    not look at them. Leaves of `own` are stacked likewise.
    """
    turn = Rotation(*rotary_table(row.positions_BT, config), jnp.array(rotates(config)))
    window = window_of_modules(config, residual_BTD.shape[1])
    attend = attend_within(config, row.segment_ids_BT, window)
    sequential = config.multi_token.kind == "sequential"

    def step(before_BTD, scanned):
        layer, tokens_BT, of_module = scanned
        module = nnx.merge(graph(config), layer)
        x_BTD = residual_BTD
        if sequential:
            x_BTD = module.join(before_BTD, embed(config, params["embedding"], tokens_BT))
        x_BTD, max_logit_N = module(constrain(x_BTD), turn, attend)
        return x_BTD if sequential else None, (read(module.final_norm(x_BTD), of_module), max_logit_N)

    step = jax.checkpoint(step, prevent_cse=False)
    start = residual_BTD if sequential else None
    return jax.lax.scan(step, start, (params["multi_token"]["layers"], tokens_MBT, own))[1]
