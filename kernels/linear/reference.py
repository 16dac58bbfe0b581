"""The plain products."""

import jax
import jax.numpy as jnp


def linear(x_XI: jax.Array, w_IO: jax.Array, dtype: str | None = None) -> jax.Array:
    """The layer."""
    return jnp.einsum("XI,IO->XO", x_XI, w_IO, preferred_element_type=dtype)


def input_gradient(dy_XO: jax.Array, w_IO: jax.Array) -> jax.Array:
    """The gradient of x."""
    return jnp.einsum("XO,IO->XI", dy_XO, w_IO)


def weight_gradient(x_XI: jax.Array, dy_XO: jax.Array) -> jax.Array:
    """The gradient of w, a sum over all tokens."""
    return jnp.einsum("XI,XO->IO", x_XI, dy_XO)
