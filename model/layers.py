"""The embedding, norms and feed-forward layers."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from kernels.dispatch import target
from kernels.linear.api import linear
from model.config import ModelConfig
from model.sharding import gathered, look_up


def normal(key: jax.Array, shape: tuple[int, ...], std: float) -> nnx.Param:
    """A float32 weight drawn from N(0, std^2)."""
    return nnx.Param(std * jax.random.normal(key, shape, jnp.float32))


def zeros(*shape: int) -> nnx.Param:
    """A float32 bias."""
    return nnx.Param(jnp.zeros(shape, jnp.float32))


def embed(config: ModelConfig, embedding_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    """The residual stream before the first layer [B, T, D]."""
    x_BTD = look_up(gathered(embedding_VD.astype(config.dtype)), tokens_BT)
    return x_BTD if config.embedding_scale == 1 else x_BTD * jnp.asarray(config.embedding_scale, x_BTD.dtype)


class Norm(nnx.Module):
    """Normalises the last axis in float32; returns the dtype of x.

    RMSNorm is x / rms(x) * scale (Zhang and Sennrich 2019); LayerNorm subtracts the mean first and adds a bias.
    """

    def __init__(self, config: ModelConfig, size: int, kind: str | None = None):
        self.kind = kind or config.norm
        self.epsilon, self.plus_one = config.norm_epsilon, config.norm_plus_one
        self.scale = zeros(size) if self.plus_one else nnx.Param(jnp.ones((size,), jnp.float32))
        if self.kind == "layer":
            self.bias = zeros(size)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Of any shape."""
        dtype, x = x.dtype, x.astype(jnp.float32)
        if self.kind == "layer":
            x -= jnp.mean(x, axis=-1, keepdims=True)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        scale = 1 + self.scale[...] if self.plus_one else self.scale[...]
        x = x * jax.lax.rsqrt(mean_square + self.epsilon) * scale
        return (x + self.bias[...] if self.kind == "layer" else x).astype(dtype)


def silu(x: jax.Array) -> jax.Array:
    """x * sigmoid(x); on a TPU by the hyperbolic tangent, one operation, where a sigmoid takes an exp and a division.

    Fused into the products around it, by the compiler's estimates for a v5e: 71 instead of 109 ms of SmolLM3's step
    in the gradient of `down`, 79 instead of 90 in that of its input.
    """
    if target().platform != "tpu":
        return jax.nn.silu(x)
    return x * (0.5 * jnp.tanh(0.5 * x) + 0.5)


class FeedForward(nnx.Module):
    """down(act(gate(x)) * up(x)), or without a gate down(relu(up(x))^2) (Shazeer 2020; So et al. 2021)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D, F = config.d_model, config.d_ff
        self.kind, self.biased = config.feed_forward, config.feed_forward_bias
        self.gated = self.kind != "relu2"
        if self.gated:
            self.gate = normal(rngs.params(), (D, F), config.init_std)
        self.up = normal(rngs.params(), (D, F), config.init_std)
        self.down = normal(rngs.params(), (F, D), config.init_std)
        if self.biased:
            self.up_bias, self.down_bias = zeros(F), zeros(D)
            if self.gated:
                self.gate_bias = zeros(F)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] to [B, T, D]."""
        x_XD = x_BTD.reshape(-1, x_BTD.shape[-1])
        up_XF = self._project(x_XD, "up")
        if self.kind == "relu2":
            inner_XF = jnp.square(jax.nn.relu(up_XF))
        else:
            act = silu if self.kind == "swiglu" else jax.nn.gelu  # by its tanh approximation
            gate_XF = self._project(x_XD, "gate").astype(jnp.float32)
            inner_XF = (act(gate_XF) * up_XF.astype(jnp.float32)).astype(up_XF.dtype)  # rounded once
        return self._project(inner_XF, "down").reshape(x_BTD.shape)

    def _project(self, x_XI: jax.Array, name: str) -> jax.Array:
        y_XO = linear(x_XI, getattr(self, name)[...].astype(x_XI.dtype))
        y_XO = y_XO + getattr(self, f"{name}_bias")[...].astype(y_XO.dtype) if self.biased else y_XO
        return checkpoint_name(y_XO, name)
