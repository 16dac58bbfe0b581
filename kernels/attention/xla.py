"""Causal self attention in blocks of queries: no block computes keys beyond its own end.

The blocks are unrolled, each with its own key length, so the masked half is never computed. The G query heads
of a key/value head lie as rows of one matrix, [G t, H] x [H, s], and keys are never repeated.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 128  # queries per block
MASKED = -1e30  # finite, so that no row needs care; exp() of it is exactly 0


def attention(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT, scale):
    """Attention with a blocked forward and a blocked backward pass; returns (out_BTNH, max_logit_N)."""
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BKGTH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    out_BKGTH, max_logit_N = _attend(q_BKGTH, k_BKSH, v_BKSH, segment_ids_BT, scale)
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H), max_logit_N


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_BKGTH, k_BKSH, v_BKSH, segment_ids_BT, scale):
    return _forward(q_BKGTH, k_BKSH, v_BKSH, segment_ids_BT, scale)[0]


def _blocks(T):
    """(first, end) of each block of queries."""
    return [(first, min(first + BLOCK, T)) for first in range(0, T, BLOCK)]


def _logits(q_BKGtH, k_BKsH, segment_ids_BT, scale, first, end):
    """Scaled logits of queries first..end against keys 0..end, MASKED where a query may not look."""
    logits_BKGts = (
        jnp.einsum("BKGtH,BKsH->BKGts", q_BKGtH, k_BKsH, preferred_element_type=jnp.float32) * scale
    )
    visible_Bts = (np.arange(first, end)[:, None] >= np.arange(end)[None, :])[None]
    if segment_ids_BT is not None:
        visible_Bts = visible_Bts & (segment_ids_BT[:, first:end, None] == segment_ids_BT[:, None, :end])
    return jnp.where(visible_Bts[:, None, None], logits_BKGts, MASKED)


def _forward(q_BKGTH, k_BKSH, v_BKSH, segment_ids_BT, scale):
    """((out_BKGTH, max_logit_N), residuals)."""
    outs, lses, maxima = [], [], []
    for first, end in _blocks(q_BKGTH.shape[3]):
        q_BKGtH, k_BKsH, v_BKsH = q_BKGTH[:, :, :, first:end], k_BKSH[:, :, :end], v_BKSH[:, :, :end]
        logits_BKGts = _logits(q_BKGtH, k_BKsH, segment_ids_BT, scale, first, end)
        max_BKGt1 = logits_BKGts.max(-1, keepdims=True)
        weights_BKGts = jnp.exp(logits_BKGts - max_BKGt1)
        sum_BKGt1 = weights_BKGts.sum(-1, keepdims=True)
        mixed_BKGtH = jnp.einsum(
            "BKGts,BKsH->BKGtH",
            weights_BKGts.astype(v_BKSH.dtype),
            v_BKsH,
            preferred_element_type=jnp.float32,
        )
        outs.append((mixed_BKGtH / sum_BKGt1).astype(q_BKGTH.dtype))
        lses.append(max_BKGt1 + jnp.log(sum_BKGt1))
        maxima.append(max_BKGt1.max((0, 3, 4)))
    out_BKGTH, lse_BKGT1 = jnp.concatenate(outs, 3), jnp.concatenate(lses, 3)
    max_logit_N = jnp.stack(maxima).max(0).reshape(-1)
    return (out_BKGTH, max_logit_N), (q_BKGTH, k_BKSH, v_BKSH, segment_ids_BT, out_BKGTH, lse_BKGT1)


def _backward(scale, residuals, cotangents):
    """Gradients of queries, keys and values, one block of queries at a time; the maximum has none."""
    q_BKGTH, k_BKSH, v_BKSH, segment_ids_BT, out_BKGTH, lse_BKGT1 = residuals
    dout_BKGTH = cotangents[0]
    wide = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    dot_BKGT1 = wide("BKGTH,BKGTH->BKGT", dout_BKGTH, out_BKGTH)[..., None]
    dqs = []
    dk_BKSH, dv_BKSH = jnp.zeros(k_BKSH.shape, jnp.float32), jnp.zeros(v_BKSH.shape, jnp.float32)
    for first, end in _blocks(q_BKGTH.shape[3]):
        q_BKGtH, dout_BKGtH = q_BKGTH[:, :, :, first:end], dout_BKGTH[:, :, :, first:end]
        k_BKsH, v_BKsH = k_BKSH[:, :, :end], v_BKSH[:, :, :end]
        logits_BKGts = _logits(q_BKGtH, k_BKsH, segment_ids_BT, scale, first, end)
        probs_BKGts = jnp.exp(logits_BKGts - lse_BKGT1[:, :, :, first:end])
        dprobs_BKGts = wide("BKGtH,BKsH->BKGts", dout_BKGtH, v_BKsH)
        dlogits_BKGts = probs_BKGts * (dprobs_BKGts - dot_BKGT1[:, :, :, first:end]) * scale
        probs_BKGts, dlogits_BKGts = probs_BKGts.astype(q_BKGTH.dtype), dlogits_BKGts.astype(q_BKGTH.dtype)
        dqs.append(wide("BKGts,BKsH->BKGtH", dlogits_BKGts, k_BKsH).astype(q_BKGTH.dtype))
        dk_BKSH = dk_BKSH.at[:, :, :end].add(wide("BKGts,BKGtH->BKsH", dlogits_BKGts, q_BKGtH))
        dv_BKSH = dv_BKSH.at[:, :, :end].add(wide("BKGts,BKGtH->BKsH", probs_BKGts, dout_BKGtH))
    return jnp.concatenate(dqs, 3), dk_BKSH.astype(k_BKSH.dtype), dv_BKSH.astype(v_BKSH.dtype), None


_attend.defvjp(_forward, _backward)
