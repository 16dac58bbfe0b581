"""The weight gradient for XLA:CPU, which needs one operand transposed: the narrower one, by hand.

The barrier keeps XLA from simplifying the transpose away and then transposing the operand of its own choice.
"""

import jax


def weight_gradient(x_XI: jax.Array, dy_XO: jax.Array) -> jax.Array:
    """The gradient of w, a sum over all tokens."""
    if x_XI.shape[1] <= dy_XO.shape[1]:
        return jax.lax.optimization_barrier(x_XI.T) @ dy_XO
    return (jax.lax.optimization_barrier(dy_XO.T) @ x_XI).T
