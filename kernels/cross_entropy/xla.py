"""Cross entropy of a linear layer in chunks along T: no array of shape [B, T, V] exists.

The loss is a sum, so its gradients are known up to the scalar cotangent as soon as a chunk's logits are: the
forward rule computes them in the same pass (as Liger-Kernel does, arXiv:2410.10989), three matrix products in
all, and the backward rule only scales them. Each chunk holds all of B, which keeps a sharded batch axis
sharded.
"""

import functools

import jax
import jax.numpy as jnp

CHUNK_LOGITS = 2**21  # logits of a chunk: 8 MiB in float32


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def linear_cross_entropy(x_BTD, w_VD, targets_BT, weights_BT, z_loss):
    """Returns (loss, nats_BT); computes the loss alone when nothing is differentiated."""

    def chunk(loss, inputs):
        x_BtD, targets_Bt, weights_Bt = inputs
        _, nats_Bt, lse_Bt = _softmax(x_BtD, w_VD, targets_Bt)
        return loss + jnp.sum(weights_Bt * (nats_Bt + z_loss * lse_Bt**2)), nats_Bt

    return _scan(chunk, jnp.float32(0), (x_BTD, targets_BT, weights_BT), w_VD.shape[0])


def _softmax(x_BtD, w_VD, targets_Bt):
    """(logits_BtV, nats_Bt, lse_Bt) of one chunk, in float32."""
    logits_BtV = jnp.einsum("BtD,VD->BtV", x_BtD, w_VD, preferred_element_type=jnp.float32)
    max_Bt = logits_BtV.max(-1)
    lse_Bt = max_Bt + jnp.log(jnp.exp(logits_BtV - max_Bt[..., None]).sum(-1))
    target_logits_Bt = jnp.take_along_axis(logits_BtV, targets_Bt[..., None], axis=-1)[..., 0]
    return logits_BtV, lse_Bt - target_logits_Bt, lse_Bt


def _scan(chunk, carry, inputs, V):
    """Scans `chunk` over slices of T and joins what it returns along T; the last slice may be shorter."""
    B, T = inputs[0].shape[:2]
    t = max(1, min(T, CHUNK_LOGITS // (B * V)))
    outs = None
    if T // t:

        def at(carry, index):
            return chunk(
                carry, jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, index * t, t, 1), inputs)
            )

        carry, outs = jax.lax.scan(at, carry, jnp.arange(T // t))
        outs = jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1).reshape(B, -1, *a.shape[3:]), outs)
    if T % t:
        carry, rest = chunk(carry, jax.tree.map(lambda a: a[:, T - T % t :], inputs))
        outs = jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), outs, rest)
    return carry, outs


def _forward(x_BTD, w_VD, targets_BT, weights_BT, z_loss):
    """((loss, nats_BT), (dx_BTD, dw_VD)) with both gradients for a cotangent of 1."""

    def chunk(carry, inputs):
        loss, dw_VD = carry
        x_BtD, targets_Bt, weights_Bt = inputs
        logits_BtV, nats_Bt, lse_Bt = _softmax(x_BtD, w_VD, targets_Bt)
        loss += jnp.sum(weights_Bt * (nats_Bt + z_loss * lse_Bt**2))
        slope_Bt1 = (weights_Bt * (1 + 2 * z_loss * lse_Bt))[..., None]
        hit_BtV = jnp.arange(w_VD.shape[0]) == targets_Bt[..., None]
        dlogits_BtV = slope_Bt1 * jnp.exp(logits_BtV - lse_Bt[..., None]) - hit_BtV * weights_Bt[..., None]
        dlogits_BtV = dlogits_BtV.astype(x_BTD.dtype)
        dx_BtD = jnp.einsum("BtV,VD->BtD", dlogits_BtV, w_VD, preferred_element_type=jnp.float32)
        dw_VD += jnp.einsum("BtV,BtD->VD", dlogits_BtV, x_BtD, preferred_element_type=jnp.float32)
        return (loss, dw_VD), (nats_Bt, dx_BtD.astype(x_BTD.dtype))

    start = jnp.float32(0), jnp.zeros(w_VD.shape, jnp.float32)
    (loss, dw_VD), (nats_BT, dx_BTD) = _scan(chunk, start, (x_BTD, targets_BT, weights_BT), w_VD.shape[0])
    return (loss, nats_BT), (dx_BTD, dw_VD.astype(w_VD.dtype))


def _backward(z_loss, residuals, cotangents):
    """Scales the gradients that the forward rule left."""
    del z_loss
    dx_BTD, dw_VD = residuals
    dloss = cotangents[0]
    return (dx_BTD * dloss).astype(dx_BTD.dtype), (dw_VD * dloss).astype(dw_VD.dtype), None, None


linear_cross_entropy.defvjp(_forward, _backward)
