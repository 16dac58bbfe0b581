"""Attention of a few new tokens a row over a cache of keys and values, for decoding: no gradient, no maximum.

The cache has S slots a row and slot s holds position s, so a query at position p sees slots 0 to p. Keys lie as
[H, S] and values as [S, H], as the two products read them: with [B, S, K, H] XLA:CPU writes out the transpose of the
whole cache at every token (8 rows of 2048 slots: 5.1 ms a layer instead of 1.3).
"""

import jax
import jax.numpy as jnp


def cached_attention(
    q_BTNH: jax.Array,
    k_BKHS: jax.Array,
    v_BKSH: jax.Array,
    positions_BT: jax.Array,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    window: int | jax.Array | None = None,
) -> jax.Array:
    """The mixed values [B, T, N, H] of queries at `positions_BT`; scale, soft cap and window as in `attention`."""
    B, T, N, H = q_BTNH.shape
    K, S = v_BKSH.shape[1:3]
    q_BKXH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 1, 3, 4).reshape(B, K, -1, H)  # X: T, then G
    q_BKXH = q_BKXH * (H**-0.5 if scale is None else scale)
    logits_BKXS = jnp.einsum("BKXH,BKHS->BKXS", q_BKXH, k_BKHS, preferred_element_type=jnp.float32)
    if soft_cap is not None:
        logits_BKXS = soft_cap * jnp.tanh(logits_BKXS / soft_cap)
    distance_BTS = positions_BT[:, :, None] - jnp.arange(S)
    visible_BTS = distance_BTS >= 0
    if window is not None:
        visible_BTS = visible_BTS & (distance_BTS < window)
    visible_BXS = jnp.repeat(visible_BTS, N // K, axis=1)
    probs_BKXS = jax.nn.softmax(jnp.where(visible_BXS[:, None], logits_BKXS, -jnp.inf), axis=-1)
    mixed_BKXH = jnp.einsum("BKXS,BKSH->BKXH", probs_BKXS.astype(v_BKSH.dtype), v_BKSH)
    return mixed_BKXH.reshape(B, K, T, N // K, H).transpose(0, 2, 1, 3, 4).reshape(B, T, N, H)
