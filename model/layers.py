"""Normalisation and the feed-forward layer."""

import jax
import jax.numpy as jnp
from flax import nnx

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
        gate_BTF = jnp.einsum("BTD,DF->BTF", x_BTD, self.gate[...].astype(dtype))
        up_BTF = jnp.einsum("BTD,DF->BTF", x_BTD, self.up[...].astype(dtype))
        return jnp.einsum("BTF,FD->BTD", jax.nn.silu(gate_BTF) * up_BTF, self.down[...].astype(dtype))
