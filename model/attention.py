"""Grouped-query self attention."""

import jax
import jax.numpy as jnp
from flax import nnx

from kernels.attention.api import AttentionOutput, attention
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
        dtype = x_BTD.dtype
        q_BTNH = jnp.einsum("BTD,DNH->BTNH", x_BTD, self.query[...].astype(dtype))
        k_BSKH = jnp.einsum("BSD,DKH->BSKH", x_BTD, self.key[...].astype(dtype))
        v_BSKH = jnp.einsum("BSD,DKH->BSKH", x_BTD, self.value[...].astype(dtype))
        q_BTNH, k_BSKH = rotate(q_BTNH, cos_BTR, sin_BTR), rotate(k_BSKH, cos_BTR, sin_BTR)
        mixed: AttentionOutput = attention(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT=segment_ids_BT)
        return jnp.einsum("BTNH,NHD->BTD", mixed.out_BTNH, self.output[...].astype(dtype)), mixed.max_logit_N
