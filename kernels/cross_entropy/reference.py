"""Cross entropy of a linear layer as the textbook has it: all logits at once, in float32."""

import jax
import jax.numpy as jnp


def linear_cross_entropy(x_BTD, w_VD, targets_BT, weights_BT, z_loss, soft_cap=None):
    """Returns (loss, nats_BT), through explicit logits."""
    dtype = jnp.promote_types(x_BTD.dtype, jnp.float32)  # float64 stays float64
    logits_BTV = jnp.einsum("BTD,VD->BTV", x_BTD.astype(dtype), w_VD.astype(dtype), precision="highest")
    if soft_cap is not None:
        logits_BTV = soft_cap * jnp.tanh(logits_BTV / soft_cap)
    lse_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    nats_BT = lse_BT - jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    loss = jnp.sum(weights_BT * (nats_BT + z_loss * lse_BT**2))
    return loss.astype(jnp.float32), nats_BT.astype(jnp.float32)
