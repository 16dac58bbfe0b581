"""Causal self attention in blocks of queries: no block computes keys beyond its own end.

The blocks are unrolled, each with its own key length, so nearly half of the logits are never computed. The G
query heads of a key/value head lie as rows of one matrix, [G t, H] x [H, s], and keys are never repeated.
Written for XLA:CPU, in float32 throughout: what counts there is that no matrix product has to transpose or
copy an operand of the size of the logits, and that a block's logits stay near the caches.

Where queries are a stretch of a row that begins at a traced position, every block reads all keys, with a mask.

Suffixes: t queries of one block, s the keys it may see, X = G t rows of one key/value head.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kernels.attention.residuals import named
from kernels.attention.schedule import own_ids

BLOCK = 64  # least queries per block; on 2 cores 32 compiles twice as long for 0-10%, 128 loses 5-15%
BLOCKS = 16  # most blocks, which bounds compile time: longer sequences have larger blocks
HIDDEN = -1e30  # added to logits that may not be seen: exp() of them is exactly 0

_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
_barrier = jax.lax.optimization_barrier


def attention(q_BTNH, k_BSKH, v_BSKH, segment_ids_BS, scale, soft_cap=None, window=None, *, first=0):
    """Attention with a blocked forward and a blocked backward pass; returns (out_BTNH, lse_BTN, max_logit_N)."""
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    wide = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    q_BTKGH = (q_BTNH.astype(wide) * scale).reshape(B, T, K, N // K, H)
    k_BKSH, v_BKSH = (a.astype(wide).transpose(0, 2, 1, 3) for a in (k_BSKH, v_BSKH))
    q_BKGTH = q_BTKGH.transpose(0, 2, 3, 1, 4)
    begin = None if isinstance(first, int) and first == 0 else first
    out_BKGTH, lse_BKGT, max_logit_N = _attend(q_BKGTH, k_BKSH, v_BKSH, segment_ids_BS, window, begin, soft_cap)
    out_BTNH = out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H).astype(q_BTNH.dtype)
    return out_BTNH, lse_BKGT.reshape(B, N, T).swapaxes(1, 2), max_logit_N


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attend(q_BKGTH, k_BKSH, v_BKSH, segment_ids_BS, window, begin, soft_cap):
    return _forward(q_BKGTH, k_BKSH, v_BKSH, segment_ids_BS, window, begin, soft_cap)[0]


def _blocks(T, S, begin):
    """(first query, end of queries, end of the keys that they may see) of each block of T queries."""
    size = max(BLOCK, -(-T // (BLOCKS * BLOCK)) * BLOCK)
    bounds = [(first, min(first + size, T)) for first in range(0, T, size)]
    return [(first, end, end if begin is None else S) for first, end in bounds]


def _rows(a_BKGTH, first, end):
    """Queries first..end of all heads of a key/value head as the rows of one matrix."""
    B, K, G, _, H = a_BKGTH.shape
    return a_BKGTH[:, :, :, first:end].reshape(B, K, G * (end - first), H)


def _bias(segment_ids_BS, window, begin, first, end, keys):
    """[B or 1, t, s]: 0 where a query of first..end may see a key of 0..keys, else HIDDEN."""
    distance_ts = np.arange(first, end)[:, None] - np.arange(keys)
    if begin is not None:
        distance_ts, first = begin + distance_ts, begin + first
    visible_Bts = (distance_ts >= 0)[None]
    if segment_ids_BS is not None:
        segment_ids_Bt = own_ids(segment_ids_BS, first, len(distance_ts))
        visible_Bts = visible_Bts & (segment_ids_Bt[:, :, None] == segment_ids_BS[:, None, :keys])
    if window is not None:
        visible_Bts = visible_Bts & (distance_ts < window)
    return jnp.where(visible_Bts, jnp.float32(0), jnp.float32(HIDDEN))


def _cap(logits, soft_cap):
    return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)


def _forward(q_BKGTH, k_BKSH, v_BKSH, segment_ids_BS, window, begin, soft_cap):
    """((out_BKGTH, lse_BKGT, max_logit_N), residuals); the queries are scaled already."""
    B, K, G, T, H = q_BKGTH.shape
    outs, lses, maxima = [], [], []
    for first, end, keys in _blocks(T, k_BKSH.shape[2], begin):
        t = end - first
        logits_BKXs = _einsum("BKXH,BKsH->BKXs", _rows(q_BKGTH, first, end), k_BKSH[:, :, :keys])
        logits_BKGts = logits_BKXs.reshape(B, K, G, t, keys)
        bias_BKGts = _bias(segment_ids_BS, window, begin, first, end, keys)[:, None, None]
        # Without the barrier XLA reduces all logits a second time for the maximum over the batch.
        max_BKGt1 = _barrier((logits_BKGts + bias_BKGts).max(-1, keepdims=True))
        capped_BKGt1 = _cap(max_BKGt1, soft_cap)  # the cap is monotone
        weights_BKGts = jnp.exp(_cap(logits_BKGts, soft_cap) + bias_BKGts - capped_BKGt1)
        sum_BKGt1 = weights_BKGts.sum(-1, keepdims=True)
        mixed_BKXH = _einsum("BKXs,BKsH->BKXH", weights_BKGts.reshape(B, K, G * t, keys), v_BKSH[:, :, :keys])
        outs.append(mixed_BKXH.reshape(B, K, G, t, H) / sum_BKGt1)
        lses.append((capped_BKGt1 + jnp.log(sum_BKGt1))[..., 0])
        maxima.append(max_BKGt1.max((0, 3, 4)))
    out_BKGTH, lse_BKGT = jnp.concatenate(outs, 3), jnp.concatenate(lses, 3)
    max_logit_N = jnp.stack(maxima).max(0).reshape(K * G)
    out_BKGTH, lse_BKGT = named(out_BKGTH, lse_BKGT)
    masks = segment_ids_BS, window, begin
    return (out_BKGTH, lse_BKGT, max_logit_N), (q_BKGTH, k_BKSH, v_BKSH, masks, out_BKGTH, lse_BKGT)


def _backward(soft_cap, residuals, cotangents):
    """Gradients of queries, keys and values, from one block of queries at a time; the maximum has none.

    Logits are computed transposed, [s, X]: then the three products with the probabilities read them as they
    lie, if the gradient of the queries is computed transposed too, [H, s] x [s, X].
    """
    q_BKGTH, k_BKSH, v_BKSH, masks, out_BKGTH, lse_BKGT = residuals
    dout_BKGTH, dlse_BKGT, _ = cotangents
    B, K, G, T, H = q_BKGTH.shape
    dot_BKGT = (dout_BKGTH * out_BKGTH).sum(-1) - dlse_BKGT
    k_BKHS = _barrier(k_BKSH.swapaxes(2, 3))  # the barriers keep XLA from folding the transposes away
    dqs, dk_BKSH, dv_BKSH = [], jnp.zeros_like(k_BKSH), jnp.zeros_like(v_BKSH)
    for first, end, keys in _blocks(T, k_BKSH.shape[2], masks[2]):
        q_BKXH, dout_BKXH = _rows(q_BKGTH, first, end), _rows(dout_BKGTH, first, end)
        lse_BK1Gt, dot_BK1Gt = (a[:, :, None, :, first:end] for a in (lse_BKGT, dot_BKGT))
        bias_BKsGt = _bias(*masks, first, end, keys).swapaxes(1, 2)[:, None, :, None]

        logits_BKsX = _einsum("BKsH,BKXH->BKsX", k_BKSH[:, :, :keys], q_BKXH)
        logits_BKsGt = _cap(logits_BKsX.reshape(B, K, keys, G, end - first), soft_cap)
        probs_BKsGt = jnp.exp(logits_BKsGt + bias_BKsGt - lse_BK1Gt)
        dprobs_BKsX = _einsum("BKsH,BKXH->BKsX", v_BKSH[:, :, :keys], dout_BKXH)
        dlogits_BKsGt = probs_BKsGt * (dprobs_BKsX.reshape(logits_BKsGt.shape) - dot_BK1Gt)
        if soft_cap is not None:  # d tanh(x) = 1 - tanh(x)^2
            dlogits_BKsGt *= 1 - jnp.square(logits_BKsGt / soft_cap)

        probs_BKsX, dlogits_BKsX = (a.reshape(dprobs_BKsX.shape) for a in (probs_BKsGt, dlogits_BKsGt))
        dq_BKHX = _barrier(_einsum("BKHs,BKsX->BKHX", k_BKHS[..., :keys], dlogits_BKsX))
        dqs.append(dq_BKHX.reshape(B, K, H, G, end - first))
        dk_BKSH = dk_BKSH.at[:, :, :keys].add(_einsum("BKsX,BKXH->BKsH", dlogits_BKsX, q_BKXH))
        dv_BKSH = dv_BKSH.at[:, :, :keys].add(_einsum("BKsX,BKXH->BKsH", probs_BKsX, dout_BKXH))
    return jnp.concatenate(dqs, -1).transpose(0, 1, 3, 4, 2), dk_BKSH, dv_BKSH, None, None, None


_attend.defvjp(_forward, _backward)
