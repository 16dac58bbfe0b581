"""Rotary positions, half-split: feature i pairs with feature i + H/2 (Su et al. 2021, as Llama and SmolLM3)."""

import jax
import jax.numpy as jnp
import numpy as np


def rotary_table(positions_BT: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of every position's angles, each [B, T, H/2] in float32."""
    frequency = np.float32(theta) ** (-np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    angle = positions_BT[:, :, None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BTNH: jax.Array, cos_BTR: jax.Array, sin_BTR: jax.Array) -> jax.Array:
    """Rotates each pair of features by its angle; R = H/2. Computes in float32, returns the dtype of x."""
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_BTR[:, :, None], sin_BTR[:, :, None]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTNH.dtype)
