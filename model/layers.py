"""Normalisation and the feed-forward layer."""

import jax
import jax.numpy as jnp
from flax import nnx

from kernels.linear.api import linear
from model.config import ModelConfig


def normal(key: jax.Array, shape: tuple[int, ...], std: float) -> nnx.Param:
    """A float32 weight drawn from N(0, std^2)."""
    return nnx.Param(std * jax.random.normal(key, shape, jnp.float32))


class RMSNorm(nnx.Module):
    """x / rms(x) * scale, in float32 (Zhang and Sennrich 2019)."""

    def __init__(self, config: ModelConfig):
        self.scale = nnx.Param(jnp.ones((config.d_model,), jnp.float32))
        self.epsilon = config.norm_epsilon

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Normalises the last axis; returns the dtype of x."""
        x = x_BTD.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return (x * jax.lax.rsqrt(mean_square + self.epsilon) * self.scale[...]).astype(x_BTD.dtype)


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D, F = config.d_model, config.d_ff
        self.gate = normal(rngs.params(), (D, F), config.init_std)
        self.up = normal(rngs.params(), (D, F), config.init_std)
        self.down = normal(rngs.params(), (F, D), config.init_std)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] to [B, T, D]."""
        dtype = x_BTD.dtype
        x_XD = x_BTD.reshape(-1, x_BTD.shape[-1])
        gate_XF = linear(x_XD, self.gate[...].astype(dtype))
        up_XF = linear(x_XD, self.up[...].astype(dtype))
        return linear(jax.nn.silu(gate_XF) * up_XF, self.down[...].astype(dtype)).reshape(x_BTD.shape)
