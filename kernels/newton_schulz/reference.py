"""Newton-Schulz as it is written down: plain products in float32, or in float64 where the input is."""

import jax.numpy as jnp


def symmetric_product(x_LRC, factors_2=None):
    """x x^T; with factors (b, c), b x + c x x^T."""
    wide_LRC = x_LRC.astype(jnp.promote_types(x_LRC.dtype, jnp.float32))
    out_LRR = jnp.einsum("LRC,LSC->LRS", wide_LRC, wide_LRC, precision="highest")
    if factors_2 is not None:
        out_LRR = factors_2[0] * wide_LRC + factors_2[1] * out_LRR
    return out_LRR.astype(x_LRC.dtype)


def newton_schulz(x_LRC, coefficients_S3):
    """The iteration, never rounded between its steps."""
    wide_LRC = x_LRC.astype(jnp.promote_types(x_LRC.dtype, jnp.float32))
    for a, b, c in coefficients_S3:
        gram_LRR = symmetric_product(wide_LRC)
        polynomial_LRR = symmetric_product(gram_LRR, (b, c))
        wide_LRC = a * wide_LRC + jnp.einsum("LRS,LSC->LRC", polynomial_LRR, wide_LRC, precision="highest")
    return wide_LRC.astype(x_LRC.dtype)
