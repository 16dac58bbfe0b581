"""Cross entropy of a linear layer as the textbook has it: all logits at once, in float32."""

import jax
import jax.numpy as jnp

from kernels.cross_entropy.problem import Arrays, Output, Settings, TopK, capped, mass, token_loss


def linear_cross_entropy(settings: Settings, arrays: Arrays) -> Output:
    """Through explicit logits of student and teacher."""
    logits_BTV = _logits(arrays.x_BTD, arrays.w_VD, settings.soft_cap)
    lse_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    target_BT = jnp.take_along_axis(logits_BTV, arrays.targets_BT[..., None], axis=-1)[..., 0]
    nats_BT, hit_BT = lse_BT - target_BT, target_BT >= logits_BTV.max(-1)
    teacher_nats_BT = None
    if arrays.teacher is not None:
        teacher = jax.lax.stop_gradient(arrays.teacher)
        if isinstance(teacher, TopK):
            aim_BT = jnp.sum(teacher.probs_BTk * jnp.take_along_axis(logits_BTV, teacher.ids_BTk, axis=-1), -1)
        else:
            teacher_BTV = jax.nn.softmax(_logits(teacher.x_BTE, teacher.w_VE, settings.teacher_cap))
            aim_BT = jnp.sum(teacher_BTV * logits_BTV, -1)
        teacher_nats_BT = mass(teacher) * lse_BT - aim_BT
    loss = token_loss(settings, arrays, lse_BT, nats_BT, teacher_nats_BT)
    loss, nats_BT, teacher_nats_BT = jax.tree.map(lambda a: a.astype(jnp.float32), (loss, nats_BT, teacher_nats_BT))
    return Output(loss, nats_BT, hit_BT, teacher_nats_BT)


def _logits(x_BTD, w_VD, soft_cap):
    dtype = jnp.promote_types(x_BTD.dtype, jnp.float32)  # float64 stays float64
    logits_BTV = jnp.einsum("BTD,VD->BTV", x_BTD.astype(dtype), w_VD.astype(dtype), precision="highest")
    return capped(logits_BTV, soft_cap)
