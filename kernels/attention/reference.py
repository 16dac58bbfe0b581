"""Causal self attention as the textbook has it: every logit at once, in float32."""

import jax
import jax.numpy as jnp

from kernels.attention.schedule import own_ids


def attention(q_BTNH, k_BSKH, v_BSKH, segment_ids_BS, scale, soft_cap=None, window=None, *, first=0):
    """Softmax attention through explicit logits; returns (out_BTNH, lse_BTN, max_logit_N).

    Queries may be a stretch of the row, from position `first` on, which may be traced.
    """
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    dtype = jnp.promote_types(q_BTNH.dtype, jnp.float32)  # float64 stays float64
    q_BTKGH = q_BTNH.astype(dtype).reshape(B, T, K, N // K, H)
    k_BSKH, v_BSKH_wide = k_BSKH.astype(dtype), v_BSKH.astype(dtype)

    logits_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, precision="highest") * scale
    distance_TS = first + jnp.arange(T)[:, None] - jnp.arange(S)
    visible_BTS = (distance_TS >= 0)[None]
    if segment_ids_BS is not None:
        segment_ids_BT = own_ids(segment_ids_BS, first, T)
        visible_BTS = visible_BTS & (segment_ids_BT[:, :, None] == segment_ids_BS[:, None, :])
    if window is not None:
        visible_BTS = visible_BTS & (distance_TS < window)
    visible_BKGTS = visible_BTS[:, None, None]
    max_logit_N = jax.lax.stop_gradient(jnp.where(visible_BKGTS, logits_BKGTS, -jnp.inf)).max((0, 3, 4)).reshape(N)
    if soft_cap is not None:
        logits_BKGTS = soft_cap * jnp.tanh(logits_BKGTS / soft_cap)
    logits_BKGTS = jnp.where(visible_BKGTS, logits_BKGTS, -jnp.inf)
    lse_BKGT1 = jax.nn.logsumexp(logits_BKGTS, axis=-1, keepdims=True)
    probs_BKGTS = jnp.exp(logits_BKGTS - lse_BKGT1)

    out_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", probs_BKGTS, v_BSKH_wide, precision="highest")
    lse_BTN = lse_BKGT1.reshape(B, N, T).swapaxes(1, 2).astype(jnp.float32)
    return out_BTKGH.reshape(B, T, N, H).astype(q_BTNH.dtype), lse_BTN, max_logit_N.astype(jnp.float32)
