"""Every implementation of the linear cross entropy against the plain one: loss, nats and both gradients."""

import os
import subprocess
import sys
import textwrap

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.cross_entropy import reference, xla
from kernels.cross_entropy.api import linear_cross_entropy

IMPLEMENTATIONS = ["xla"]  # later back ends join here


def inputs(B, T, D, V, dtype=jnp.float32, seed=0):
    """(x, w, targets, weights) with some tokens at weight 0 and logits of about unit size."""
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((B, T, D)), rng.standard_normal((V, D)) * D**-0.5
    weights = rng.random((B, T)) * (rng.random((B, T)) < 0.8)
    targets = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)
    return jnp.asarray(x, dtype), jnp.asarray(w, dtype), targets, jnp.asarray(weights, jnp.float32)


def value_and_gradients(compute, x, w, targets, weights):
    """((loss, nats), (dx, dw)) of a multiple of the loss, jitted."""

    def scaled(x, w):
        loss, nats = compute(x, w, targets, weights)
        return 0.25 * loss, nats  # a cotangent other than 1

    return jax.jit(jax.value_and_grad(scaled, (0, 1), has_aux=True))(x, w)


def ours(implementation, z_loss=0.0, soft_cap=None):
    options = {"z_loss": z_loss, "soft_cap": soft_cap, "implementation": implementation}
    return lambda *args: tuple(linear_cross_entropy(*args, **options))


def exactly(x, w, targets, weights, z_loss=0.0, soft_cap=None):
    """The reference in float64."""
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a, np.float64)) for a in (x, w)]
        compute = lambda *args: reference.linear_cross_entropy(*args, z_loss, soft_cap)  # noqa: E731
        exact = value_and_gradients(compute, *wide, targets, jnp.asarray(np.asarray(weights, np.float64)))
        return jax.tree.map(np.asarray, exact)


def check(implementation, B, T, D, V, *, z_loss=0.0, soft_cap=None, seed=0):
    """Loss, nats and gradients in float32 equal those of the reference in float64, to 1e-5."""
    args = inputs(B, T, D, V, seed=seed)
    got = value_and_gradients(ours(implementation, z_loss, soft_cap), *args)
    want = exactly(*args, z_loss, soft_cap)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        assert a.dtype == jnp.float32
        assert a.shape == b.shape
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5, rtol=1e-5)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of few tokens, so that small inputs need several of them and a shorter last one."""
    monkeypatch.setattr(xla, "CHUNK_LOGITS", 2048)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
class TestLinearCrossEntropy:
    @pytest.mark.usefixtures("small_chunks")
    @pytest.mark.parametrize("T", [1, 2, 7, 129])
    @pytest.mark.parametrize("z_loss", [0.0, 1e-2])
    def test_lengths(self, implementation, T, z_loss):
        check(implementation, 2, T, 16, 97, z_loss=z_loss)

    @pytest.mark.usefixtures("small_chunks")
    @pytest.mark.parametrize("soft_cap", [0.5, 30.0])
    def test_soft_cap(self, implementation, soft_cap):
        check(implementation, 2, 37, 16, 97, soft_cap=soft_cap, z_loss=1e-2)

    @pytest.mark.usefixtures("small_chunks")
    @pytest.mark.parametrize("V", [2, 64, 1000, 4097])
    def test_vocabularies(self, implementation, V):
        check(implementation, 2, 5, 24, V)

    def test_one_chunk(self, implementation):
        check(implementation, 4, 33, 32, 515, z_loss=1e-3)

    @pytest.mark.usefixtures("small_chunks")
    def test_bfloat16(self, implementation):
        """bfloat16 inputs give bfloat16 gradients; logits, loss and nats are never rounded."""
        args = inputs(2, 65, 64, 300, jnp.bfloat16)
        (loss, nats), (dx, dw) = value_and_gradients(ours(implementation), *args)
        (want_loss, want_nats), gradients = exactly(*args)
        assert loss.dtype == nats.dtype == jnp.float32
        assert dx.dtype == dw.dtype == jnp.bfloat16
        np.testing.assert_allclose(loss, want_loss, rtol=1e-5)
        np.testing.assert_allclose(nats, want_nats, rtol=1e-5, atol=1e-5)
        for got, want in zip((dx, dw), gradients):
            error = np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want)
            assert error < 0.006  # a rounding to 8 bits is off by 2^-9 = 0.002 at most

    @pytest.mark.usefixtures("small_chunks")
    def test_loss_alone_equals_the_differentiated_one(self, implementation):
        args = inputs(2, 65, 32, 300)
        alone = jax.jit(ours(implementation, 1e-3))(*args)
        (loss, nats), _ = value_and_gradients(ours(implementation, 1e-3), *args)
        np.testing.assert_allclose(0.25 * alone[0], loss, rtol=1e-6)
        np.testing.assert_allclose(alone[1], nats, rtol=1e-5, atol=1e-6)

    def test_nats_ignore_the_weights(self, implementation):
        """Tokens of weight 0 still have their nats, and no gradient."""
        x, w, targets, _ = inputs(1, 9, 16, 50)
        weights = jnp.zeros((1, 9)).at[0, 4].set(1.0)
        (loss, nats), (dx, _) = value_and_gradients(ours(implementation), x, w, targets, weights)
        np.testing.assert_allclose(loss, 0.25 * nats[0, 4], rtol=1e-6)
        assert (nats > 0).all()
        assert (dx[0, 4] != 0).all()
        assert (jnp.delete(dx, 4, 1) == 0).all()

    def test_only_the_loss_has_a_gradient(self, implementation):
        x, w, targets, weights = inputs(1, 9, 16, 50)
        nats = lambda x, w: ours(implementation)(x, w, targets, weights)[1].sum()  # noqa: E731
        assert all((a == 0).all() for a in jax.grad(nats, (0, 1))(x, w))

        loss = lambda weights: ours(implementation)(x, w, targets, weights)[0]  # noqa: E731
        assert (jax.grad(loss)(weights) == 0).all()

    def test_large_logits_stay_finite(self, implementation):
        """Logits of thousands neither overflow nor turn a right answer into a loss."""
        w = jnp.eye(8) * 4000.0
        x, targets = jnp.eye(8)[None], jnp.arange(8)[None].at[0, 7].set(0)
        (_, nats), gradients = value_and_gradients(ours(implementation), x, w, targets, jnp.ones((1, 8)))
        np.testing.assert_array_equal(nats, [[0, 0, 0, 0, 0, 0, 0, 4000]])
        assert all(np.isfinite(a).all() for a in gradients)

    @pytest.mark.usefixtures("small_chunks")
    def test_same_bits_twice(self, implementation):
        args = inputs(2, 129, 32, 300)
        once, twice = (jax.tree.leaves(value_and_gradients(ours(implementation), *args)) for _ in range(2))
        for a, b in zip(once, twice):
            np.testing.assert_array_equal(a, b)

    @pytest.mark.usefixtures("small_chunks")
    def test_inside_a_scan(self, implementation):
        """Accumulating gradients over a scan of microbatches is the gradient of the whole."""
        x, w, targets, weights = inputs(6, 20, 16, 300)

        def accumulate(dw, microbatch):
            loss = lambda w: ours(implementation)(microbatch[0], w, *microbatch[1:])[0]  # noqa: E731
            return dw + jax.grad(loss)(w), None

        micro = [a.reshape(3, 2, *a.shape[1:]) for a in (x, targets, weights)]
        dw, _ = jax.jit(lambda dw: jax.lax.scan(accumulate, dw, micro))(jnp.zeros_like(w))
        _, (_, want) = exactly(x, w, targets, weights)
        np.testing.assert_allclose(0.25 * dw, want, atol=1e-5, rtol=1e-5)

    @pytest.mark.usefixtures("small_chunks")
    @hypothesis.settings(
        max_examples=4,
        deadline=None,
        derandomize=True,
        suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
    )
    @hypothesis.given(
        B=st.integers(1, 4),
        T=st.integers(1, 40),
        D=st.integers(1, 40),
        V=st.integers(2, 700),
        z_loss=st.sampled_from([0.0, 1e-2]),
        seed=st.integers(0, 99),
    )
    def test_any_shape(self, implementation, B, T, D, V, z_loss, seed):
        check(implementation, B, T, D, V, z_loss=z_loss, seed=seed)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_array_of_all_logits(implementation):
    """The largest buffer of forward and backward is far below [B, T, V]."""
    x, w, targets, weights = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in inputs(2, 4, 16, 8))
    B, T, D, V = 8, 512, 16, 8192
    x, w = x.update(shape=(B, T, D)), w.update(shape=(V, D))
    targets, weights = targets.update(shape=(B, T)), weights.update(shape=(B, T))
    step = jax.jit(jax.grad(lambda x, w, *rest: ours(implementation)(x, w, *rest)[0], (0, 1)))
    memory = step.lower(x, w, targets, weights).compile().memory_analysis()
    assert memory.temp_size_in_bytes < B * T * V * 4 / 2


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_sharded_batch_gives_the_same(implementation):
    """Four devices, the batch split over them: loss, nats and gradients of one device; x is not gathered."""
    program = f"""
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec
        from kernels.cross_entropy import xla
        from kernels.cross_entropy.api import linear_cross_entropy

        xla.CHUNK_LOGITS = 8 * 16 * 300  # chunks of 16, 16, 16 and 12 tokens
        mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
        split, whole = (NamedSharding(mesh, PartitionSpec(*names)) for names in (("data",), ()))
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.standard_normal((8, 60, 32)), jnp.float32)
        w = jnp.asarray(rng.standard_normal((300, 32)), jnp.float32)
        targets = jnp.asarray(rng.integers(0, 300, (8, 60)))
        weights = jnp.asarray(rng.random((8, 60)), jnp.float32)

        def step(x, w, targets, weights, implementation):
            def loss(x, w):
                return tuple(linear_cross_entropy(
                    x, w, targets, weights, z_loss=1e-3, implementation=implementation))
            return jax.value_and_grad(loss, (0, 1), has_aux=True)(x, w)

        want = jax.jit(step, static_argnums=4)(x, w, targets, weights, "reference")
        shardings = [split, whole, split, split]
        sharded = [jax.device_put(a, to) for a, to in zip((x, w, targets, weights), shardings)]
        compiled = jax.jit(step, static_argnums=4).lower(*sharded, {implementation!r}).compile()
        got = compiled(*sharded)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=2e-5)
        assert got[1][0].sharding.is_equivalent_to(split, 3), got[1][0].sharding
        assert "all-gather" not in compiled.as_text()
    """
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_unknown_implementation_names_the_choices():
    with pytest.raises(ValueError, match=r"'liger'.*reference, xla"):
        linear_cross_entropy(*inputs(1, 2, 4, 8), implementation="liger")


def test_shapes_that_do_not_fit():
    x, w, targets, weights = inputs(2, 3, 4, 8)
    with pytest.raises(ValueError, match="output layer"):
        linear_cross_entropy(x, w.T, targets, weights)
    with pytest.raises(ValueError, match="targets"):
        linear_cross_entropy(x, w, targets[:, :2], weights)
