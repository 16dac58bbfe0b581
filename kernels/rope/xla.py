"""The rotation by halves, which XLA fuses on CPUs and GPUs; what XLA:TPU makes of it is told in `tpu.py`."""

import jax.numpy as jnp


def rotate(x_BTNH, cos_BTR, sin_BTR, pairs, active, dtype):
    """Both features of a pair from both, in float32."""
    if active is not None:
        cos_BTR, sin_BTR = jnp.where(active, cos_BTR, 1.0), jnp.where(active, sin_BTR, 0.0)
    x = x_BTNH.astype(jnp.float32)
    cos, sin = cos_BTR[:, :, None], sin_BTR[:, :, None]
    if pairs == "interleaved":
        first, second = x[..., 0::2], x[..., 1::2]
        rotated = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1).reshape(x.shape)
    else:
        first, second = jnp.split(x, 2, axis=-1)
        rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(dtype)
