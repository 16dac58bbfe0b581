"""Cross entropy of a linear layer in chunks along T: no array of shape [B, T, V] exists.

The loss is a sum, so its gradients are known up to the scalar cotangent as soon as a chunk's logits are: the
forward rule computes them in the same pass (as Liger-Kernel does, arXiv:2410.10989), three matrix products in
all, and the backward rule only scales them. Each chunk holds all of B, which keeps a sharded batch axis
sharded.
"""

import functools

import jax
import jax.numpy as jnp

CHUNK_LOGITS = 2**21  # 8 MiB in float32; 2**20 is as fast on 2 cores, 2**19 and 2**22 lose 5-15%

_barrier = jax.lax.optimization_barrier


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def linear_cross_entropy(x_BTD, w_VD, targets_BT, weights_BT, z_loss, soft_cap=None):
    """Returns (loss, nats_BT); computes the loss alone when nothing is differentiated."""

    def chunk(loss, inputs):
        x_BtD, targets_Bt, weights_Bt = inputs
        _, _, nats_Bt, lse_Bt, _ = _softmax(x_BtD, w_VD, targets_Bt, soft_cap)
        return loss + jnp.sum(weights_Bt * (nats_Bt + z_loss * lse_Bt**2)), nats_Bt

    return _scan(chunk, jnp.float32(0), (x_BTD, targets_BT, weights_BT), w_VD.shape[0])


def _softmax(x_BtD, w_VD, targets_Bt, soft_cap):
    """(exps_BtV, sum_Bt, nats_Bt, lse_Bt, logits_BtV) of one chunk, in float32; the softmax is exps_BtV / sum_Bt."""
    logits_BtV = jnp.einsum("BtD,VD->BtV", x_BtD, w_VD, preferred_element_type=jnp.float32)
    if soft_cap is not None:
        logits_BtV = soft_cap * jnp.tanh(logits_BtV / soft_cap)
    max_Bt = logits_BtV.max(-1)
    exps_BtV = _barrier(jnp.exp(logits_BtV - max_Bt[..., None]))  # without it XLA computes each exp() twice
    sum_Bt = exps_BtV.sum(-1)
    lse_Bt = max_Bt + jnp.log(sum_Bt)
    target_logits_Bt = jnp.take_along_axis(logits_BtV, targets_Bt[..., None], axis=-1)[..., 0]
    return exps_BtV, sum_Bt, lse_Bt - target_logits_Bt, lse_Bt, logits_BtV


def _scan(chunk, carry, inputs, V):
    """Scans `chunk` over slices of T and joins what it returns along T; the last slice may be shorter."""
    B, T = inputs[0].shape[:2]
    t = max(1, min(T, CHUNK_LOGITS // (B * V)))
    outs = None
    if T // t:

        def at(carry, index):
            return chunk(carry, jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, index * t, t, 1), inputs))

        carry, outs = jax.lax.scan(at, carry, jnp.arange(T // t))
        outs = jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1).reshape(B, -1, *a.shape[3:]), outs)
    if T % t:
        carry, rest = chunk(carry, jax.tree.map(lambda a: a[:, T - T % t :], inputs))
        outs = jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), outs, rest)
    return carry, outs


def _forward(x_BTD, w_VD, targets_BT, weights_BT, z_loss, soft_cap):
    """((loss, nats_BT), (dx_BTD, dw_VD)) with both gradients for a cotangent of 1."""
    V, D = w_VD.shape

    def chunk(carry, inputs):
        loss, dw_DV = carry
        x_BtD, targets_Bt, weights_Bt = inputs
        exps_BtV, sum_Bt, nats_Bt, lse_Bt, logits_BtV = _softmax(x_BtD, w_VD, targets_Bt, soft_cap)
        loss += jnp.sum(weights_Bt * (nats_Bt + z_loss * lse_Bt**2))

        slope_Bt = weights_Bt * (1 + 2 * z_loss * lse_Bt) / sum_Bt
        hit_BtV = jnp.arange(V) == targets_Bt[..., None]
        dlogits_BtV = exps_BtV * slope_Bt[..., None] - hit_BtV * weights_Bt[..., None]
        if soft_cap is not None:  # d tanh(x) = 1 - tanh(x)^2
            dlogits_BtV *= 1 - jnp.square(logits_BtV / soft_cap)
        dlogits_BtV = dlogits_BtV.astype(x_BTD.dtype)
        dx_BtD = jnp.einsum("BtV,VD->BtD", dlogits_BtV, w_VD, preferred_element_type=jnp.float32)
        # As [D, Bt] x [Bt, V] with the small operand transposed by hand: [V, Bt] x [Bt, D] would transpose
        # all of dlogits, and the whole op then takes 1.25 times as long.
        x_DX, dlogits_XV = _barrier(x_BtD.reshape(-1, D).T), dlogits_BtV.reshape(-1, V)
        dw_DV += jnp.einsum("DX,XV->DV", x_DX, dlogits_XV, preferred_element_type=jnp.float32)
        return (loss, dw_DV), (nats_Bt, dx_BtD.astype(x_BTD.dtype))

    start = jnp.float32(0), jnp.zeros((D, V), jnp.float32)
    (loss, dw_DV), (nats_BT, dx_BTD) = _scan(chunk, start, (x_BTD, targets_BT, weights_BT), V)
    return (loss, nats_BT), (dx_BTD, dw_DV.T.astype(w_VD.dtype))


def _backward(z_loss, soft_cap, residuals, cotangents):
    """Scales the gradients that the forward rule left."""
    del z_loss, soft_cap
    dx_BTD, dw_VD = residuals
    dloss = cotangents[0]
    return (dx_BTD * dloss).astype(dx_BTD.dtype), (dw_VD * dloss).astype(dw_VD.dtype), None, None


linear_cross_entropy.defvjp(_forward, _backward)
