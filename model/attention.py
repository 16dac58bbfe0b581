"""Grouped-query self attention."""

import jax
from flax import nnx

from kernels.attention.api import AttentionOutput, attention
from kernels.linear.api import linear
from model.config import ModelConfig
from model.layers import normal
from model.position import rotate


class Attention(nnx.Module):
    """Causal attention within each segment; `N` query heads share `K` key/value heads (Ainslie et al. 2023)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D, N, K, H = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
        self.query = normal(rngs.params(), (D, N, H), config.init_std)
        self.key = normal(rngs.params(), (D, K, H), config.init_std)
        self.value = normal(rngs.params(), (D, K, H), config.init_std)
        self.output = normal(rngs.params(), (N, H, D), config.init_std)

    def __call__(
        self, x_BTD: jax.Array, cos_BTR: jax.Array, sin_BTR: jax.Array, segment_ids_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the layer's output [B, T, D] and the largest logit of each head [N]."""
        (B, T, D), H, dtype = x_BTD.shape, self.query.shape[-1], x_BTD.dtype
        x_XD = x_BTD.reshape(B * T, D)

        def project(weight: nnx.Param) -> jax.Array:
            return linear(x_XD, weight[...].astype(dtype).reshape(D, -1)).reshape(B, T, -1, H)

        q_BTNH, k_BSKH, v_BSKH = project(self.query), project(self.key), project(self.value)
        q_BTNH, k_BSKH = rotate(q_BTNH, cos_BTR, sin_BTR), rotate(k_BSKH, cos_BTR, sin_BTR)
        mixed: AttentionOutput = attention(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT=segment_ids_BT)
        out_XD = linear(mixed.out_BTNH.reshape(B * T, -1), self.output[...].astype(dtype).reshape(-1, D))
        return out_XD.reshape(B, T, D), mixed.max_logit_N
