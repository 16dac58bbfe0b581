"""The symmetric products for any platform: halves of halves, of which the fourth quarter is the second's mirror.

One matrix after the other: parts of a stack do not lie together, which cost a tenth to a third of the time on CPUs.
"""

import jax
import jax.numpy as jnp

SMALL = 96  # rows of a part that is computed whole; see docs/benchmarks/newton_schulz.md
DEEP = 2  # halvings at most


def symmetric_product(x_LRC, factors_2=None):
    """x x^T; with factors (b, c), b x + c x x^T of symmetric x."""

    def one(x_RC):
        out_RR = _halves(x_RC, DEEP)
        if factors_2 is not None:
            out_RR = factors_2[0] * x_RC.astype(jnp.float32) + factors_2[1] * out_RR
        return out_RR.astype(x_RC.dtype)

    return jax.lax.map(one, x_LRC)


def _halves(x_RC, depth: int):
    """x x^T in float32."""
    R = x_RC.shape[0]
    if depth == 0 or R < 2 * SMALL:
        whole_RR = _product(x_RC, x_RC)
        # Not `where`: with a transposed branch it crashes XLA:CPU from 1000 rows on (jaxlib 0.10.2).
        return jnp.tril(whole_RR) + jnp.tril(whole_RR, -1).T
    upper_RC, lower_RC = x_RC[: R // 2], x_RC[R // 2 :]
    corner_RR = _product(upper_RC, lower_RC)
    above_RR = jnp.concatenate([_halves(upper_RC, depth - 1), corner_RR], 1)
    below_RR = jnp.concatenate([corner_RR.T, _halves(lower_RC, depth - 1)], 1)
    return jnp.concatenate([above_RR, below_RR])


def _product(a_RC, b_SC):
    precision = "highest" if a_RC.dtype == jnp.float32 else None
    return jnp.einsum("RC,SC->RS", a_RC, b_SC, precision=precision, preferred_element_type=jnp.float32)
