"""Rotary positions applied to queries or keys: the public function and the choice of implementation.

Shapes: B batch, T length, N heads (of queries, or of keys), H head size, R = H / 2 pairs of features.
"""

import functools

import jax
import jax.numpy as jnp

from kernels.dispatch import choose
from kernels.rope import reference, tpu, xla

IMPLEMENTATIONS = {
    "reference": reference.rotate,
    "xla": xla.rotate,
    "gpu": xla.rotate,  # which XLA:GPU fuses into one pass: there is nothing for a kernel to save
    "tpu": tpu.rotate,
    "tpu_interpret": functools.partial(tpu.rotate, interpret=True),  # the TPU's kernel on any platform, slowly
}
PAIRS = ("half_split", "interleaved")


def rotate(
    x_BTNH: jax.Array,
    cos_BTR: jax.Array,
    sin_BTR: jax.Array,
    *,
    pairs: str = "half_split",
    active: jax.Array | None = None,
    dtype: jax.typing.DTypeLike | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Rotates each pair of features by its angle: r with r + R or, `interleaved`, 2r with 2r + 1.

    `active` is a boolean scalar, so that layers of one scan may differ in it: False leaves x as it is. Computes in
    float32 and rounds once, to `dtype` or, without, that of x. Cosine and sine get no gradient. `implementation` is a
    name in IMPLEMENTATIONS or auto, which picks by platform (`kernels/dispatch.py`).
    """
    _check(x_BTNH, cos_BTR, sin_BTR, pairs)
    dtype = x_BTNH.dtype if dtype is None else jnp.dtype(dtype)
    refused = [str(d) for d in (x_BTNH.dtype, dtype) if d not in (jnp.float32, jnp.bfloat16)]
    refusals = {"tpu": f"takes float32 or bfloat16, not {refused[0]}" if refused else None}
    turn = IMPLEMENTATIONS[choose("rope", tuple(IMPLEMENTATIONS), implementation, refusals)]
    cos_BTR, sin_BTR = jax.lax.stop_gradient((cos_BTR, sin_BTR))
    return turn(x_BTNH, cos_BTR, sin_BTR, pairs, active, dtype)


def _check(x_BTNH, cos_BTR, sin_BTR, pairs) -> None:
    """What does not fit is refused here, where the message can still name it."""
    B, T, _, H = x_BTNH.shape
    if H % 2:
        raise ValueError(f"rope: the head size of x {x_BTNH.shape} is odd, so its features make no pairs")
    if cos_BTR.shape != sin_BTR.shape or cos_BTR.shape != (B, T, H // 2):
        wanted = (B, T, H // 2)
        raise ValueError(f"rope: cosine {cos_BTR.shape} and sine {sin_BTR.shape} should have shape {wanted}")
    if pairs not in PAIRS:
        raise ValueError(f"rope: unknown pairs {pairs!r}; choose from {', '.join(PAIRS)}")
