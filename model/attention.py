"""Grouped-query self attention, whichever way the pairs are computed: over a row, or over a cache."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from kernels.linear.api import linear
from kernels.rope.api import rotate
from model.config import ModelConfig
from model.layers import Norm, normal, zeros
from model.position import Rotation

# (q_BTNH, k_BTKH, v_BTKH) of the tokens at hand to (out_BTNH, whatever the caller wants back of this layer)
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


class Heads(NamedTuple):
    """Of the tokens at hand."""

    q_BTNH: jax.Array
    k_BTKH: jax.Array
    v_BTKH: jax.Array


class Attention(nnx.Module):
    """`N` query heads share `K` key/value heads (Ainslie et al. 2023)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D, N, K, H = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
        self.config = config
        self.query = normal(rngs.params(), (D, N, H), config.init_std)
        self.key = normal(rngs.params(), (D, K, H), config.init_std)
        self.value = normal(rngs.params(), (D, K, H), config.init_std)
        self.output = normal(rngs.params(), (N, H, D), config.init_std)
        if config.qkv_bias:
            self.query_bias, self.key_bias, self.value_bias = zeros(N, H), zeros(K, H), zeros(K, H)
        if config.output_bias:
            self.output_bias = zeros(D)
        if config.qk_norm:
            self.query_norm, self.key_norm = Norm(config, H, "rms"), Norm(config, H, "rms")

    def __call__(self, x_BTD: jax.Array, rotation: Rotation, attend: Attend) -> tuple[jax.Array, Any]:
        """The layer's output [B, T, D], and what `attend` gave beside the mixed values."""
        (B, T, D), config, dtype = x_BTD.shape, self.config, x_BTD.dtype
        mixed_BTNH, extra = attend(*self.heads(x_BTD, rotation))
        out_XD = linear(mixed_BTNH.reshape(B * T, -1), self.output[...].astype(dtype).reshape(-1, D))
        if config.output_bias:
            out_XD += self.output_bias[...].astype(dtype)
        return out_XD.reshape(B, T, D), extra

    def heads(self, x_BTD: jax.Array, rotation: Rotation) -> Heads:
        """Queries, keys and values, as they are attended with."""
        (B, T, D), config, dtype = x_BTD.shape, self.config, x_BTD.dtype
        x_XD = x_BTD.reshape(B * T, D)

        def project(name: str, dtype_out: str | None = None) -> jax.Array:
            y_XO = linear(x_XD, getattr(self, name)[...].astype(dtype).reshape(D, -1), dtype_out)
            if config.qkv_bias:
                y_XO += getattr(self, f"{name}_bias")[...].astype(y_XO.dtype).reshape(-1)
            return checkpoint_name(y_XO, name).reshape(B, T, -1, config.head_dim)

        if config.qk_norm:  # in float32 up to the rotation, so that queries and keys are rounded once
            q_BTNH = self.query_norm(project("query", "float32"))
            k_BTKH = self.key_norm(project("key", "float32"))
        else:
            q_BTNH, k_BTKH = project("query"), project("key")
        v_BTKH = project("value")
        turn = {"pairs": config.rope_pairs, "active": rotation.active, "dtype": dtype}
        turn["implementation"] = config.kernels.rope
        q_BTNH, k_BTKH = (rotate(a, rotation.cos_BTR, rotation.sin_BTR, **turn) for a in (q_BTNH, k_BTKH))
        return Heads(q_BTNH, k_BTKH, v_BTKH)
