"""Decoding with a cache of keys and values: prompts of different lengths at once, then a token a step.

One layer is one jitted function that all layers share, so that compiling takes as long as one layer, and no layer's
weights are copied out of their stack at every token; XLA:CPU would do both in a scan, at twice the time a token.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, NamedSharding

from core.errors import UserError
from kernels.attention.api import attention
from kernels.attention.cached import cached_attention
from model import transformer
from model.config import ModelConfig
from model.position import Rotation, rotary_table


class Cache(NamedTuple):
    """Keys and values of one layer; slot s holds position s."""

    k_BKHS: jax.Array
    v_BKSH: jax.Array


class Decoder:
    """A model ready to decode, its layers unstacked, for rows of up to `context` tokens.

    It holds its own copy of the parameters in the dtype of the computation.
    """

    def __init__(self, config: ModelConfig, params: transformer.Params, context: int):
        self.config, self.context = config, context
        sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
        self.mesh = sharding.mesh.abstract_mesh if isinstance(sharding, NamedSharding) else AbstractMesh((), ())
        windows = transformer.window_of_layers(config, context)
        self.layers = []
        for i, uses_rope in enumerate(config.uses_rope):
            own = jax.tree_util.tree_map_with_path(lambda path, a, i=i: _cast(path, a[i], config), params["layers"])
            window = None if windows is None else jnp.asarray(windows[i])
            self.layers.append((own, jnp.asarray(uses_rope), window))
        # [D, V]: XLA:CPU multiplies a few rows by [V, D] at half the speed. A tied embedding is held once, so too.
        self.outer = {"head_DV": transformer.head(config, params).T, "final_norm": params["final_norm"]}
        if not config.tied_head:
            self.outer["embedding"] = params["embedding"].astype(config.dtype)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[jax.Array, list[Cache]]:
        """Logits [B, V] after the last token of each prompt, and the caches that hold them.

        Prompts are padded to a power of two, so that few lengths are compiled.
        """
        lengths = [len(prompt) for prompt in prompts]
        if not min(lengths):
            raise UserError("a prompt is empty; a model needs a token to begin with")
        if max(lengths) > self.context:
            raise UserError(
                f"a prompt of {max(lengths):,} tokens is longer than the cache of {self.context:,}; shorten it, or "
                "raise eval.context"
            )
        T = min(self.context, max(16, 1 << (max(lengths) - 1).bit_length()))
        tokens_BT = np.zeros((len(prompts), T), np.int32)
        for row, prompt in zip(tokens_BT, prompts):
            row[: len(prompt)] = prompt
        run = _compiled(self.config, self.context)
        x_BTD, cos_BTR, sin_BTR = run.embed(self.outer, tokens_BT, np.arange(T)[None].repeat(len(prompts), 0))
        caches = []
        for params, uses_rope, window in self.layers:
            with jax.sharding.use_abstract_mesh(self.mesh):  # where kernels look for what they run on
                x_BTD, cache = run.fill(params, x_BTD, cos_BTR, sin_BTR, uses_rope, window)
            caches.append(cache)
        x_B1D = jnp.take_along_axis(x_BTD, np.array(lengths)[:, None, None] - 1, axis=1)
        return run.logits(self.outer, x_B1D), caches

    def step(self, caches: list[Cache], tokens_B: jax.Array, positions_B: np.ndarray) -> jax.Array:
        """Logits [B, V] after one more token a row; `caches` are replaced in place."""
        run = _compiled(self.config, self.context)
        positions_B = np.minimum(positions_B, self.context - 1)
        x_B1D, cos_B1R, sin_B1R = run.embed(self.outer, tokens_B[:, None], positions_B[:, None])
        for i, (params, uses_rope, window) in enumerate(self.layers):
            rotation = cos_B1R, sin_B1R, uses_rope
            with jax.sharding.use_abstract_mesh(self.mesh):
                x_B1D, caches[i] = run.extend(params, x_B1D, *rotation, window, caches[i], positions_B)
        return run.logits(self.outer, x_B1D)


def _cast(path: tuple[Any, ...], array: jax.Array, config: ModelConfig) -> jax.Array:
    """Matrices in the dtype of the computation; norms and biases stay in float32, as in training."""
    vector = path[-1].key == "scale" or path[-1].key.endswith("bias")
    return array if vector else array.astype(config.dtype)


class _Compiled(NamedTuple):
    """The jitted parts of a model; each compiles once a shape."""

    embed: Any
    fill: Any
    extend: Any
    logits: Any


@functools.cache
def _compiled(config: ModelConfig, context: int) -> _Compiled:
    block = nnx.split(nnx.eval_shape(lambda: transformer.Transformer(config, nnx.Rngs(0)).layers))[0]
    logits = {"scale": config.attention_scale, "soft_cap": config.attention_soft_cap}

    @jax.jit
    def embed(outer, tokens_BT, positions_BT):
        found, rows = outer, tokens_BT
        if config.tied_head:
            found = {"embedding": outer["head_DV"][:, tokens_BT.reshape(-1)].T}
            rows = jnp.arange(tokens_BT.size).reshape(tokens_BT.shape)
        return transformer.embed(config, found, rows), *rotary_table(positions_BT, config)

    @jax.jit
    def fill(params, x_BTD, cos_BTR, sin_BTR, uses_rope, window):
        def attend(q_BTNH, k_BTKH, v_BTKH):
            kernel = config.kernels.attention
            out_BTNH = attention(q_BTNH, k_BTKH, v_BTKH, window=window, **logits, implementation=kernel).out_BTNH
            rest = ((0, 0), (0, context - k_BTKH.shape[1]), (0, 0), (0, 0))
            k_BSKH, v_BSKH = jnp.pad(k_BTKH, rest), jnp.pad(v_BTKH, rest)
            return out_BTNH, Cache(k_BSKH.transpose(0, 2, 3, 1), v_BSKH.transpose(0, 2, 1, 3))

        return nnx.merge(block, params)(x_BTD, Rotation(cos_BTR, sin_BTR, uses_rope), attend)

    @functools.partial(jax.jit, donate_argnames="cache")
    def extend(params, x_B1D, cos_B1R, sin_B1R, uses_rope, window, cache, positions_B):
        def attend(q_B1NH, k_B1KH, v_B1KH):
            rows_B = jnp.arange(len(positions_B))
            k_BKHS = cache.k_BKHS.at[rows_B, :, :, positions_B].set(k_B1KH[:, 0])
            v_BKSH = cache.v_BKSH.at[rows_B, :, positions_B].set(v_B1KH[:, 0])
            out_BNH = cached_attention(q_B1NH[:, 0], k_BKHS, v_BKSH, positions_B, window=window, **logits)
            return out_BNH[:, None], Cache(k_BKHS, v_BKSH)

        return nnx.merge(block, params)(x_B1D, Rotation(cos_B1R, sin_B1R, uses_rope), attend)

    @jax.jit
    def to_logits(outer, x_B1D):
        hidden_BD = transformer.final_norm(config, outer, x_B1D)[:, 0]
        return transformer.final_cap(config, jnp.dot(hidden_BD, outer["head_DV"], preferred_element_type=jnp.float32))

    return _Compiled(embed, fill, extend, to_logits)
