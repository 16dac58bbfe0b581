"""The rotation as a product of complex numbers, one for each pair of features."""

import jax
import jax.numpy as jnp


def rotate(x_BTNH, cos_BTR, sin_BTR, pairs, active, dtype):
    """Every pair (a, b) as a + ib, times cos + i sin."""
    B, T, N, H = x_BTNH.shape
    x = x_BTNH.astype(jnp.promote_types(x_BTNH.dtype, jnp.float32))  # float64 stays float64
    split, axis = ((2, H // 2), -2) if pairs == "half_split" else ((H // 2, 2), -1)
    first, second = jnp.moveaxis(x.reshape(B, T, N, *split), axis, 0)
    cos, sin = (a.astype(x.dtype)[:, :, None] for a in (cos_BTR, sin_BTR))
    turned = jax.lax.complex(first, second) * jax.lax.complex(cos, sin)
    rotated = jnp.stack([turned.real, turned.imag], axis).reshape(x.shape)
    return (rotated if active is None else jnp.where(active, rotated, x)).astype(dtype)
