"""Attention of new tokens over a cache of keys and values, for decoding: no gradient, no maximum.

The cache has S slots a row and slot s holds position s, so a query at position p sees slots 0 to p.
"""

import jax
import jax.numpy as jnp


def cached_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    positions_BT: jax.Array,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    window: int | jax.Array | None = None,
) -> jax.Array:
    """The mixed values [B, T, N, H] of queries at `positions_BT`; scale, soft cap and window as in `attention`."""
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H) * (H**-0.5 if scale is None else scale)
    logits_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    if soft_cap is not None:
        logits_BKGTS = soft_cap * jnp.tanh(logits_BKGTS / soft_cap)
    distance_BTS = positions_BT[:, :, None] - jnp.arange(S)
    visible_BTS = distance_BTS >= 0
    if window is not None:
        visible_BTS = visible_BTS & (distance_BTS < window)
    probs_BKGTS = jax.nn.softmax(jnp.where(visible_BTS[:, None, None], logits_BKGTS, -jnp.inf), axis=-1)
    out_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", probs_BKGTS.astype(v_BSKH.dtype), v_BSKH)
    return out_BTKGH.reshape(B, T, N, H)
