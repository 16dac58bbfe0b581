"""The symmetric products for any platform: halves of halves, of which the fourth quarter is the second's mirror."""

import jax.numpy as jnp

SMALL = 96  # rows of a part that is computed whole; see docs/benchmarks/newton_schulz.md
DEEP = 2  # halvings at most


def symmetric_product(x_LRC, factors_2=None):
    """x x^T; with factors (b, c), b x + c x x^T of symmetric x."""
    out_LRR = _halves(x_LRC, DEEP)
    if factors_2 is not None:
        out_LRR = factors_2[0] * x_LRC.astype(jnp.float32) + factors_2[1] * out_LRR
    return out_LRR.astype(x_LRC.dtype)


def _halves(x_LRC, depth: int):
    """x x^T in float32."""
    R = x_LRC.shape[1]
    if depth == 0 or R < 2 * SMALL:
        whole_LRR = _product(x_LRC, x_LRC)
        # Not `where`: with a transposed branch it crashes XLA:CPU from 1000 rows on (jaxlib 0.10.2).
        return jnp.tril(whole_LRR) + jnp.tril(whole_LRR, -1).swapaxes(1, 2)
    upper_LRC, lower_LRC = x_LRC[:, : R // 2], x_LRC[:, R // 2 :]
    corner_LRR = _product(upper_LRC, lower_LRC)
    above_LRR = jnp.concatenate([_halves(upper_LRC, depth - 1), corner_LRR], 2)
    below_LRR = jnp.concatenate([corner_LRR.swapaxes(1, 2), _halves(lower_LRC, depth - 1)], 2)
    return jnp.concatenate([above_LRR, below_LRR], 1)


def _product(a_LRC, b_LSC):
    precision = "highest" if a_LRC.dtype == jnp.float32 else None
    return jnp.einsum("LRC,LSC->LRS", a_LRC, b_LSC, precision=precision, preferred_element_type=jnp.float32)
