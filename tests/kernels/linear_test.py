import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.linear import cpu, reference
from kernels.linear.api import linear


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 3), (33, 16, 64), (64, 48, 16)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_value_and_gradients_are_those_of_the_product(shape, dtype):
    X, I, O = shape  # noqa: E741
    random = np.random.default_rng(0)
    x, w, dy = (random.normal(size=size) for size in ((X, I), (I, O), (X, O)))
    y, pullback = jax.vjp(linear, jnp.array(x, dtype), jnp.array(w, dtype))
    dx, dw = pullback(jnp.array(dy, dtype))
    bound = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
    for got, want in ((y, x @ w), (dx, dy @ w.T), (dw, x.T @ dy)):
        assert got.dtype == dtype
        np.testing.assert_allclose(np.array(got, np.float64), want, atol=bound * np.abs(want).max(), rtol=bound)


def test_the_cpu_form_transposes_the_narrow_operand_either_way():
    random = np.random.default_rng(0)
    for I, O in ((8, 32), (32, 8)):  # noqa: E741
        x, dy = random.normal(size=(50, I)), random.normal(size=(50, O))
        got, want = cpu.weight_gradient(jnp.array(x), jnp.array(dy)), reference.weight_gradient(x, dy)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_lowering_for_a_tpu_takes_the_plain_form():
    """The barrier is for CPUs alone."""
    x, w = jnp.ones((8, 4)), jnp.ones((4, 16))
    gradient = jax.jit(jax.grad(lambda w: linear(x, w).sum()))
    for_cpu = gradient.trace(w).lower(lowering_platforms=("cpu",)).as_text()
    for_tpu = gradient.trace(w).lower(lowering_platforms=("tpu",)).as_text()
    assert "optimization_barrier" in for_cpu
    assert "optimization_barrier" not in for_tpu
