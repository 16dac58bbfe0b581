"""Cross entropy of a linear output layer: the public function and the choice of implementation.

Shapes: B batch, T length, D model, V vocabulary. The logits [B, T, V] are the largest array of a small
model's step, so the layer and its loss are one op.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.cross_entropy import reference, xla
from kernels.dispatch import choose

IMPLEMENTATIONS = {"reference": reference.linear_cross_entropy, "xla": xla.linear_cross_entropy}


class CrossEntropyOutput(NamedTuple):
    """The summed loss, differentiable in x and w, and the per-token cross entropy for reports."""

    loss: jax.Array  # float32 scalar: sum over tokens of weight * (nats + z_loss * log-sum-exp^2)
    nats_BT: jax.Array  # float32, no gradient, not weighted


def linear_cross_entropy(
    x_BTD: jax.Array,
    w_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    implementation: str = "auto",
) -> CrossEntropyOutput:
    """Weighted sum over tokens of the cross entropy of softmax(x w^T), without gradient to weights.

    Targets must lie in [0, V): one outside it gives its token a wrong loss, so give padding any valid id and
    weight 0. `z_loss` is a Python number, the factor of the squared log-sum-exp (PaLM, section 5).
    With `soft_cap`, a Python number, logits become cap * tanh(logits / cap) (Gemma 2).
    `implementation` is a name in IMPLEMENTATIONS or auto, which picks by platform (`kernels/dispatch.py`).
    """
    _check_shapes(x_BTD, w_VD, targets_BT, weights_BT)
    weights_BT = jax.lax.stop_gradient(weights_BT.astype(jnp.float32))
    compute = IMPLEMENTATIONS[choose("linear_cross_entropy", tuple(IMPLEMENTATIONS), implementation, {})]
    loss, nats_BT = compute(x_BTD, w_VD, targets_BT, weights_BT, float(z_loss), soft_cap)
    return CrossEntropyOutput(loss, jax.lax.stop_gradient(nats_BT))


def _check_shapes(x_BTD, w_VD, targets_BT, weights_BT) -> None:
    """Shapes that do not fit are refused here, where the message can still name them."""
    if x_BTD.shape[-1] != w_VD.shape[-1]:
        raise ValueError(f"linear_cross_entropy: inputs {x_BTD.shape} do not fit the output layer {w_VD.shape}")
    if targets_BT.shape != x_BTD.shape[:2] or weights_BT.shape != x_BTD.shape[:2]:
        raise ValueError(
            f"linear_cross_entropy: targets {targets_BT.shape} and weights {weights_BT.shape}"
            f" should have shape {x_BTD.shape[:2]}"
        )
