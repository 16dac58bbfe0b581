"""Causal self attention: the public function and the choice of implementation.

Shapes: B batch, T query length, S key length (S == T), N query heads, K key/value heads, G = N / K query
heads per key/value head, H head size.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.attention import gpu, reference, tpu, xla
from kernels.attention.shards import over_devices
from kernels.dispatch import CONTEXT_AXES, choose, free_axes, mesh_axes

IMPLEMENTATIONS = {
    "reference": reference.attention,
    "xla": xla.attention,
    "tpu": tpu.attention,
    "gpu": gpu.attention,
    "tpu_interpret": functools.partial(tpu.attention, interpret=True),  # the TPU's kernel on any platform, slowly
    "gpu_interpret": functools.partial(gpu.attention, interpret=True),
}
KERNELS = {"tpu": tpu, "gpu": gpu}


class AttentionOutput(NamedTuple):
    """The mixed values, what they were divided by and, for QK-Clip, how large the logits grew."""

    out_BTNH: jax.Array  # dtype of the queries
    lse_BTN: jax.Array  # float32, log-sum-exp of a token's visible logits, after the soft cap
    # float32, largest scaled logit among visible pairs over the batch, before the soft cap; no gradient
    max_logit_N: jax.Array


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    segment_ids_BT: jax.Array | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    window: int | jax.Array | None = None,
    implementation: str = "auto",
) -> AttentionOutput:
    """Causal grouped-query self attention in which a token sees only its own segment.

    Query head n reads key/value head n // G. `scale` is a Python number, by default 1 / sqrt(H). With `soft_cap`, a
    Python number, logits become cap * tanh(logits / cap) (Gemma 2). With `window` a token sees that many tokens of
    the row, itself included; it may be a traced scalar, so that layers of one scan differ in it.
    Where the mesh in context has axes `replica`, `fsdp` (batch), `context` (tokens of a row) or `tensor` (heads) that
    divide B, T or K, each device computes with its part. `implementation` is a name in IMPLEMENTATIONS or auto, which
    picks by platform (`kernels/dispatch.py`).
    """
    _check_shapes(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT)
    _check_options(segment_ids_BT, soft_cap, window)
    scale = q_BTNH.shape[-1] ** -0.5 if scale is None else float(scale)
    context = mesh_axes(CONTEXT_AXES, q_BTNH.shape[1])
    refusals = _refusals(q_BTNH, k_BSKH, v_BSKH, scale, context)
    name = choose("attention", tuple(IMPLEMENTATIONS), implementation, refusals)
    attend = functools.partial(IMPLEMENTATIONS[name], scale=scale, soft_cap=soft_cap)
    if name in ("reference", "xla") and not context:  # XLA partitions them itself
        return AttentionOutput(*attend(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT, window=window))
    return AttentionOutput(*over_devices(attend, q_BTNH, k_BSKH, v_BSKH, segment_ids_BT, window))


def _check_shapes(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT) -> None:
    """Shapes that do not fit are refused here, where the message can still name them."""
    for name, array in (("q_BTNH", q_BTNH), ("k_BSKH", k_BSKH), ("v_BSKH", v_BSKH)):
        if array.ndim != 4 or 0 in array.shape:
            raise ValueError(f"attention: {name} {array.shape} should have four axes, none of them empty")
    B, T, N, H = q_BTNH.shape
    if k_BSKH.shape != v_BSKH.shape or k_BSKH.shape[:2] != (B, T) or k_BSKH.shape[3] != H:
        raise ValueError(f"attention: queries {q_BTNH.shape}, keys {k_BSKH.shape}, values {v_BSKH.shape} do not fit")
    if N % k_BSKH.shape[2]:
        raise ValueError(f"attention: {N} query heads are not a multiple of {k_BSKH.shape[2]} key/value heads")
    if segment_ids_BT is not None and segment_ids_BT.shape != (B, T):
        raise ValueError(f"attention: segment ids {segment_ids_BT.shape} should have shape {(B, T)}")


def _check_options(segment_ids_BT, soft_cap, window) -> None:
    if segment_ids_BT is not None and not jnp.issubdtype(segment_ids_BT.dtype, jnp.integer):
        raise ValueError(f"attention: segment ids should be integers, not {segment_ids_BT.dtype}")
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"attention: soft_cap={soft_cap} should be above 0; None leaves it out")
    if isinstance(window, int) and window < 1:
        raise ValueError(f"attention: window={window} should be 1 or more, for a token sees itself")


def _refusals(q_BTNH, k_BSKH, v_BSKH, scale, context) -> dict[str, str | None]:
    """What it is in the arguments, or in the device, that each platform's kernel cannot take."""
    dtypes = [str(a.dtype) for a in (q_BTNH, k_BSKH, v_BSKH)]
    if len(set(dtypes)) > 1 or dtypes[0] not in ("float32", "bfloat16"):
        given = ", ".join(dtypes)
        return dict.fromkeys(KERNELS, f"takes float32 or bfloat16, not queries, keys and values in {given}")
    if not scale > 0:
        return dict.fromkeys(KERNELS, f"takes a scale above 0, not {scale}")
    (B, T, *heads), sizes = q_BTNH.shape, free_axes()
    stretch = jax.ShapeDtypeStruct((B, T // math.prod(sizes[name] for name in context), *heads), q_BTNH.dtype)
    return {platform: kernel.refusal(stretch, k_BSKH) for platform, kernel in KERNELS.items()}
