"""Inputs for attention, and every implementation of it beside the exact one."""

import jax
import jax.numpy as jnp
import numpy as np

from cross_entropy_lab import quickly_compiled
from kernels.attention import reference
from kernels.attention.api import IMPLEMENTATIONS, attention


def inputs(B, T, N, K, H, dtype=jnp.float32, segments=False, seed=0):
    """Random (q, k, v), a cotangent for the output, and segment ids or None."""
    rng = np.random.default_rng(seed)
    q, k, v, dout = (rng.standard_normal((B, T, heads, H)) for heads in (N, K, K, N))
    ids = np.cumsum(rng.random((B, T)) < 4 / T, axis=1).astype(np.int32) if segments else None
    return [jnp.asarray(a, dtype) for a in (q, k, v, dout)], ids


def differentiated(attend):
    """((out, lse, max_logit), (dq, dk, dv)) of (q, k, v, dout); the cotangent of lse is made from that of out."""

    def both(q, k, v, dout):
        outputs, pull = jax.vjp(attend, q, k, v)
        return outputs, pull((dout, dout.mean(-1).astype(jnp.float32), jnp.zeros_like(outputs[2])))

    return both


def value_and_gradients(attend, *arrays):
    """Those of `attend`, compiled."""
    return quickly_compiled(differentiated(attend))(*arrays)


def check(implementation, B, T, N, K, H, *, segments=False, mixed=False, window=None, seed=0, stretch=None, **logits):
    """Forward, maxima and gradients in float32 equal those of the reference in float64, to 1e-5 of the largest.

    With `stretch`, (first, end), of the queries at these positions alone.
    """
    arrays, ids = inputs(B, T, N, K, H, segments=segments, seed=seed)
    ids = ids % 3 if mixed else ids  # so that the id of an earlier document comes again
    scale, soft_cap = logits.get("scale", H**-0.5), logits.get("soft_cap")

    def attend(*qkv):
        if stretch is None:
            options = {"segment_ids_BT": ids, "window": window, **logits}
            return tuple(attention(*qkv, **options, implementation=implementation))
        return IMPLEMENTATIONS[implementation](*qkv, ids, scale, soft_cap, window, first=jnp.int32(stretch[0]))

    def plain(*qkv):
        return reference.attention(*qkv, ids, scale, soft_cap, window, first=stretch[0] if stretch else 0)

    if stretch is not None:
        arrays[0], arrays[3] = (a[:, slice(*stretch)] for a in (arrays[0], arrays[3]))
    ours = value_and_gradients(attend, *arrays)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a), jnp.float64) for a in arrays]
        exact = value_and_gradients(plain, *wide)
    for got, want in zip(jax.tree.leaves(ours), jax.tree.leaves(exact)):
        assert got.dtype == jnp.float32
        assert got.shape == want.shape
        largest = max(1.0, np.abs(want).max())
        np.testing.assert_allclose(np.asarray(got), np.asarray(want), atol=1e-5 * largest, rtol=1e-5)
