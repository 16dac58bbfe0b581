"""Every implementation of the rotation against the plain one: values, gradients, layers that leave it out."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from kernels.rope import reference
from kernels.rope.api import PAIRS, rotate

IMPLEMENTATIONS = ["xla", "tpu_interpret"]  # later back ends join here
UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-8}  # rounding, relative


def inputs(B, T, N, H, dtype, seed=0):
    """Random x, a cotangent, cosine and sine."""
    rng = np.random.default_rng(seed)
    x, dy = (jnp.asarray(rng.standard_normal((B, T, N, H)), dtype) for _ in range(2))
    angle = rng.uniform(-100, 100, (B, T, H // 2))
    return x, dy, jnp.asarray(np.cos(angle), jnp.float32), jnp.asarray(np.sin(angle), jnp.float32)


def value_and_gradient(turn):
    """(x, dy) to (y, dx) of `turn`, jitted."""

    @jax.jit
    def both(x, dy):
        y, pull = jax.vjp(turn, x)
        return y, *pull(dy)

    return both


def check(implementation, B, T, N, H, *, dtype="float32", pairs="half_split", active=None, dtype_out=None, seed=0):
    """Value and gradient are those of the reference in float64, rounded once; the same bits twice."""
    x, dy, cos, sin = inputs(B, T, N, H, dtype, seed)
    dtype_out = dtype_out or dtype
    options = {"pairs": pairs, "active": active, "dtype": dtype_out, "implementation": implementation}
    compute = value_and_gradient(lambda x: rotate(x, cos, sin, **options))
    ours, again = (compute(x, dy.astype(dtype_out)) for _ in range(2))
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a), jnp.float64) for a in (x, dy.astype(dtype_out), cos, sin)]
        plain = functools.partial(reference.rotate, cos_BTR=wide[2], sin_BTR=wide[3], pairs=pairs, active=active)
        exact = value_and_gradient(lambda x: plain(x, dtype=jnp.float64))(*wide[:2])
    largest = 1.5 * max(float(abs(a).max()) for a in (x.astype("float32"), dy.astype("float32")))
    for got, want, same, expected in zip(ours, exact, again, (dtype_out, dtype), strict=True):
        assert got.dtype == expected
        bound = largest * (4 * UNIT["float32"] + (UNIT["bfloat16"] if expected == "bfloat16" else 0))
        np.testing.assert_allclose(np.asarray(got, np.float64), np.asarray(want), atol=bound, rtol=0)
        np.testing.assert_array_equal(np.asarray(got), np.asarray(same))


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
class TestRotate:
    @pytest.mark.parametrize("pairs", PAIRS)
    @pytest.mark.parametrize(("N", "H"), [(3, 64), (2, 80), (2, 128), (1, 256)])
    def test_head_sizes(self, implementation, pairs, N, H):
        check(implementation, 2, 20, N, H, pairs=pairs)

    @pytest.mark.parametrize("T", [1, 16, 33])
    def test_lengths_in_bfloat16(self, implementation, T):
        check(implementation, 2, T, 3, 64, dtype="bfloat16")

    @pytest.mark.parametrize("active", [True, False])
    def test_a_layer_may_leave_it_out(self, implementation, active):
        check(implementation, 1, 5, 2, 128, dtype="bfloat16", active=jnp.array(active))
        if not active:
            x, _, cos, sin = inputs(1, 5, 2, 128, "bfloat16")
            y = rotate(x, cos, sin, active=jnp.array(False), implementation=implementation)
            np.testing.assert_array_equal(np.asarray(y), np.asarray(x))

    def test_rounds_once_to_a_narrower_dtype(self, implementation):
        check(implementation, 1, 9, 2, 64, dtype="float32", dtype_out="bfloat16")

    @hypothesis.settings(max_examples=4, deadline=None)
    @hypothesis.given(
        B=st.integers(1, 2), T=st.integers(1, 24), N=st.integers(1, 3), R=st.integers(1, 70),
        pairs=st.sampled_from(PAIRS), dtype=st.sampled_from(["float32", "bfloat16"]), seed=st.integers(0, 9),
    )  # fmt: skip
    def test_drawn_shapes(self, implementation, B, T, N, R, pairs, dtype, seed):
        check(implementation, B, T, N, 2 * R, pairs=pairs, dtype=dtype, seed=seed)


def test_blocks_of_a_row_are_cut_anywhere(monkeypatch):
    """A row of several blocks, the last one short."""
    monkeypatch.setattr("kernels.rope.tpu.BLOCK_BYTES", 1)
    check("tpu_interpret", 1, 75, 2, 128, dtype="bfloat16")


@pytest.mark.parametrize(
    ("shape", "angles", "options", "message"),
    [
        ((1, 4, 2, 7), (1, 4, 3), {}, r"rope: the head size of x \(1, 4, 2, 7\) is odd"),
        ((1, 4, 2, 8), (1, 5, 4), {}, r"cosine \(1, 5, 4\) and sine \(1, 5, 4\) should have shape \(1, 4, 4\)"),
        ((1, 4, 2, 8), (1, 4, 4), {"pairs": "thirds"}, "unknown pairs 'thirds'; choose from half_split, interleaved"),
        ((1, 4, 2, 8), (1, 4, 4), {"implementation": "gpt"}, "rope: unknown implementation 'gpt'"),
    ],
)
def test_what_does_not_fit_is_named(shape, angles, options, message):
    with pytest.raises(ValueError, match=message):
        rotate(jnp.zeros(shape), jnp.zeros(angles), jnp.zeros(angles), **options)


def test_a_kernel_of_another_platform_is_refused_in_one_line():
    with pytest.raises(UserError, match="rope: implementation 'tpu' does not run on cpu"):
        rotate(jnp.zeros((1, 4, 2, 8)), jnp.zeros((1, 4, 4)), jnp.zeros((1, 4, 4)), implementation="tpu")
