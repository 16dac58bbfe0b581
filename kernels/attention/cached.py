"""Attention of one new token a row over a cache of keys and values, for decoding: no gradient, no maximum.

The cache has S slots a row and slot s holds position s, so a query at position p sees slots 0 to p. Keys lie as
[H, S] and values as [S, H], as the two products read them: with [B, S, K, H] XLA:CPU writes out the transpose of the
whole cache at every token (8 rows of 2048 slots: 5.1 ms a layer instead of 1.3).
"""

import jax
import jax.numpy as jnp


def cached_attention(
    q_BNH: jax.Array,
    k_BKHS: jax.Array,
    v_BKSH: jax.Array,
    positions_B: jax.Array,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    window: int | jax.Array | None = None,
) -> jax.Array:
    """The mixed values [B, N, H] of queries at `positions_B`; scale, soft cap and window as in `attention`."""
    B, N, H = q_BNH.shape
    K, S = v_BKSH.shape[1:3]
    q_BKGH = q_BNH.reshape(B, K, N // K, H) * (H**-0.5 if scale is None else scale)
    logits_BKGS = jnp.einsum("BKGH,BKHS->BKGS", q_BKGH, k_BKHS, preferred_element_type=jnp.float32)
    if soft_cap is not None:
        logits_BKGS = soft_cap * jnp.tanh(logits_BKGS / soft_cap)
    distance_BS = positions_B[:, None] - jnp.arange(S)
    visible_BS = distance_BS >= 0
    if window is not None:
        visible_BS = visible_BS & (distance_BS < window)
    probs_BKGS = jax.nn.softmax(jnp.where(visible_BS[:, None, None], logits_BKGS, -jnp.inf), axis=-1)
    return jnp.einsum("BKGS,BKSH->BKGH", probs_BKGS.astype(v_BKSH.dtype), v_BKSH).reshape(B, N, H)
