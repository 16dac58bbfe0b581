"""Divergences of a linear output layer against their formulas in float64: values and both gradients."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.cross_entropy import xla
from kernels.cross_entropy.divergence import DIVERGENCES, linear_divergence
from kernels.cross_entropy.problem import Head, capped
from lab import on_devices

B, T, D, E, V = 2, 23, 16, 12, 97


@pytest.fixture(autouse=True, scope="module")
def _small_chunks():
    """Chunks of 5 tokens, and a shorter last one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xla, "CHUNK_LOGITS", 5 * B * V)
        yield


def inputs(seed=0, dtype=np.float32):
    """Student, output layer, weights, teacher, its output layer; logits of some size."""
    random = np.random.default_rng(seed)
    x_BTD, w_VD, y_BTE, u_VE = (random.normal(0, 1, shape) for shape in ((B, T, D), (V, D), (B, T, E), (V, E)))
    weights_BT = random.uniform(0, 2, (B, T)) * (random.random((B, T)) < 0.8)
    cast = [jnp.asarray(a, jnp.float32).astype(dtype) for a in (x_BTD, w_VD, y_BTE, u_VE)]
    return cast[0], cast[1], jnp.asarray(weights_BT, jnp.float32), cast[2], cast[3]


def ours(kind, caps, x_BTD, w_VD, weights_BT, y_BTE, u_VE):
    return linear_divergence(kind, x_BTD, w_VD, weights_BT, Head(y_BTE, u_VE, caps[1]), caps[0])


def formula(kind, caps, x_BTD, w_VD, weights_BT, y_BTE, u_VE):
    log_p, log_q = (
        jax.nn.log_softmax(capped(jnp.einsum("BTX,VX->BTV", a, b), cap))
        for a, b, cap in ((x_BTD, w_VD, caps[0]), (y_BTE, u_VE, caps[1]))
    )
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    log_m = jnp.log((p + q) / 2)
    apart_BTV = p * (log_p - log_q) if kind == "reverse_kl" else (p * (log_p - log_m) + q * (log_q - log_m)) / 2
    return jnp.sum(apart_BTV.sum(-1) * weights_BT)


def both(function, kind, caps, given):
    """The value, and the gradients of everything."""
    return jax.jit(jax.value_and_grad(functools.partial(function, kind, caps), argnums=(0, 1, 2, 3, 4)))(*given)


def in_float64(kind, caps, given):
    with jax.enable_x64(True):
        value, gradients = both(formula, kind, caps, [jnp.asarray(a, jnp.float64) for a in given])
    return np.asarray(value), [np.asarray(a) for a in gradients]


@pytest.mark.parametrize("caps", [(None, None), (3.0, 5.0)], ids=["plain", "capped"])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_values_and_gradients_are_those_of_the_formula(kind, caps):
    value, gradients = both(ours, kind, caps, inputs())
    expected, right = in_float64(kind, caps, inputs())
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    for own, other in zip(gradients[:2], right):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-5 * np.abs(other).max())
    assert all((np.asarray(own) == 0).all() for own in gradients[2:])  # of weights and teacher there are none


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_bfloat16_rounds_gradients_alone(kind):
    """Logits and sums are never rounded: beside float64 of the same numbers."""
    given = inputs(dtype=jnp.bfloat16)
    value, gradients = both(ours, kind, (None, None), given)
    expected, right = in_float64(kind, (None, None), given)
    assert float(value) == pytest.approx(float(expected), rel=1e-4)
    for own, other in zip(gradients[:2], right):
        assert own.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(own), other, rtol=0, atol=1e-2 * np.abs(other).max())


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_from_itself_it_is_nothing(kind):
    x_BTD, w_VD, weights_BT, _, _ = inputs()
    value, gradients = both(ours, kind, (None, None), (x_BTD, w_VD, weights_BT, x_BTD, w_VD))
    assert abs(float(value)) < 1e-4
    assert max(float(jnp.abs(own).max()) for own in gradients) < 1e-5


PROGRAM = """
    import sys
    import jax, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    sys.path.insert(0, {tests!r})
    import divergence_test as t

    t.B, t.T, t.V = 4, 24, 96
    t.xla.CHUNK_LOGITS = 5 * 4 * 96
    given = t.inputs()
    for kind in t.DIVERGENCES:
        alone = t.both(t.ours, kind, (3.0, None), given)
        for axes, tokens, vocabulary in (
            ({{"fsdp": 2, "tensor": 2}}, P("fsdp"), "tensor"),
            ({{"replica": 2, "context": 2}}, P("replica", "context"), None),
        ):
            mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * 2)
            rows, layer = (NamedSharding(mesh, spec) for spec in (tokens, P(vocabulary)))
            placed = [jax.device_put(a, to) for a, to in zip(given, (rows, layer, rows, rows, layer))]
            with jax.set_mesh(mesh):
                found = t.both(t.ours, kind, (3.0, None), placed)
            for own, other in zip(jax.tree.leaves(found), jax.tree.leaves(alone)):
                np.testing.assert_allclose(np.asarray(own), np.asarray(other), rtol=1e-5, atol=2e-5)
            print("as one device:", kind, axes)
"""


def test_on_four_devices_it_is_the_same():
    assert on_devices(4, PROGRAM.format(tests=str(Path(__file__).parent))).count("as one device:") == 4
