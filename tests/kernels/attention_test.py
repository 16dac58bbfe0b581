"""Every implementation of attention against the plain one: values, maxima, gradients, what it may not see."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_lab import check, differentiated, inputs, value_and_gradients

from cross_entropy_lab import quickly_compiled
from kernels.attention import reference, tpu_blocks
from kernels.attention.api import IMPLEMENTATIONS as attention_names
from kernels.attention.api import attention
from lab import on_devices

# The GPU's kernels take seconds a test here; a few quick ones are in gpu_test.py.
IMPLEMENTATIONS = ["xla", "tpu_interpret", pytest.param("gpu_interpret", marks=pytest.mark.slow)]


def slowly(*cases):
    """Parameters that only `make test-slow` has: two seconds of compiling each, for every implementation."""
    return [pytest.param(*(one if isinstance(one, tuple) else (one,)), marks=pytest.mark.slow) for one in cases]


compiled = jax.jit(attention, static_argnames=("scale", "soft_cap", "implementation"))


@pytest.fixture
def small_blocks(monkeypatch):
    """Of the TPU's kernels, so that small inputs need several; queries and keys differ."""
    sizes = tpu_blocks.Sizes
    monkeypatch.setattr(tpu_blocks, "OTHERS", tpu_blocks.Kernels(sizes(128, 128), sizes(512, 128), sizes(128, 256)))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
class TestAttention:
    @pytest.mark.parametrize("T", [1, *slowly(2, 7), 64, 129])
    def test_lengths(self, implementation, T):
        check(implementation, 2, T, 4, 2, 32)

    @pytest.mark.parametrize(("N", "K"), [*slowly((1, 1), (6, 2)), (3, 3), (8, 1)])
    def test_grouped_heads(self, implementation, N, K):
        check(implementation, 2, 70, N, K, 32)

    @pytest.mark.parametrize("H", [*slowly(32, 64), 128])
    def test_head_sizes(self, implementation, H):
        check(implementation, 1, 140, 4, 2, H)

    @pytest.mark.parametrize("T", [7, 129])
    def test_packed_segments(self, implementation, T):
        check(implementation, 3, T, 4, 2, 32, segments=True)

    def test_scale(self, implementation):
        check(implementation, 2, 33, 4, 2, 32, scale=0.7)

    @pytest.mark.parametrize("soft_cap", [0.5, 50.0])
    def test_soft_cap(self, implementation, soft_cap):
        check(implementation, 2, 70, 4, 2, 32, soft_cap=soft_cap, scale=1.0, segments=True)

    @pytest.mark.parametrize("window", [1, 5, *slowly(64, 1000)])
    def test_window(self, implementation, window):
        check(implementation, 2, 140, 4, 2, 32, window=window, segments=True)

    def test_window_and_soft_cap_by_hand(self, implementation):
        """One head of size 1: what each token sees, spelled out in NumPy."""
        rng = np.random.default_rng(0)
        q, k, v = (rng.standard_normal((1, 6, 1, 1)) for _ in range(3))
        got = attention(*(jnp.asarray(a, jnp.float32) for a in (q, k, v)), soft_cap=2.0, window=3, scale=1.5,
                        implementation=implementation)  # fmt: skip
        for t in range(6):
            seen = slice(max(0, t - 2), t + 1)
            logits = 2.0 * np.tanh(1.5 * q[0, t, 0, 0] * k[0, seen, 0, 0] / 2.0)
            weights = np.exp(logits) / np.exp(logits).sum()
            np.testing.assert_allclose(got.out_BTNH[0, t, 0, 0], weights @ v[0, seen, 0, 0], rtol=1e-5)
        pairs = [1.5 * q[0, t, 0, 0] * k[0, s, 0, 0] for t in range(6) for s in range(max(0, t - 2), t + 1)]
        np.testing.assert_allclose(got.max_logit_N[0], max(pairs), rtol=1e-6)  # before the cap

    def test_layers_of_one_scan_differ_in_their_window(self, implementation):
        (q, k, v, _), ids = inputs(1, 40, 2, 1, 16, segments=True)

        def layer(_, window):
            out = attention(q, k, v, segment_ids_BT=ids, window=window, implementation=implementation)
            return None, out.out_BTNH

        windows = (3, 40, 1)
        got = jax.jit(lambda: jax.lax.scan(layer, None, jnp.asarray(windows))[1])()
        for one, window in zip(got, windows):
            want = reference.attention(q, k, v, ids, 16**-0.5, window=window)[0]
            np.testing.assert_allclose(one, want, atol=1e-6)

    def test_segment_ids_need_no_order(self, implementation):
        """A token sees every earlier token of its id, also behind a stretch of another."""
        (q, k, v, _), _ = inputs(1, 160, 2, 1, 32)
        ids = jnp.asarray(np.arange(160)[None] // 20 % 2)
        got = compiled(q, k, v, segment_ids_BT=ids, implementation=implementation).out_BTNH
        ours = np.asarray(ids[0] == ids[0, -1])  # the last token's mates, itself included
        alone = compiled(q[:, ours], k[:, ours], v[:, ours], implementation="reference").out_BTNH
        np.testing.assert_allclose(got[:, -1], alone[:, -1], atol=1e-5)

    def test_bfloat16(self, implementation):
        """bfloat16 inputs give bfloat16 results as near to the exact ones as the format allows."""
        arrays, ids = inputs(2, 130, 4, 2, 64, jnp.bfloat16, segments=True)
        ours = value_and_gradients(
            lambda *qkv: tuple(attention(*qkv, segment_ids_BT=ids, implementation=implementation)), *arrays
        )
        wide = [a.astype(jnp.float32) for a in arrays]
        exact = value_and_gradients(lambda *qkv: reference.attention(*qkv, ids, 64**-0.5), *wide)
        (out, lse, max_logit), gradients = ours
        assert max_logit.dtype == jnp.float32
        assert {a.dtype for a in (out, *gradients)} == {jnp.dtype(jnp.bfloat16)}
        np.testing.assert_allclose(max_logit, exact[0][2], rtol=1e-5)  # logits are never rounded
        np.testing.assert_allclose(lse, exact[0][1], rtol=1e-5, atol=1e-5)
        for got, want in zip((out, *gradients), (exact[0][0], *exact[1])):
            error = np.linalg.norm(got.astype(jnp.float32) - want) / np.linalg.norm(want)
            assert error < 0.006  # a rounding to 8 bits is off by 2^-9 = 0.002 at most

    @pytest.mark.parametrize(
        ("stretch", "options"),
        [
            ((0, 150), {}),  # the keys that nobody sees have gradient 0
            ((150, 300), {"window": 40}),
            ((137, 266), {"segments": True, "soft_cap": 3.0}),  # a window's and a block's ends all differ
            ((299, 300), {"segments": True, "mixed": True, "window": jnp.int32(200)}),
        ],
    )
    def test_a_stretch_of_the_queries(self, implementation, stretch, options):
        """Of a row of 300 tokens; what a stretch does not see is never visited, and its gradient still written."""
        check(implementation, 2, 300, 4, 2, 32, stretch=stretch, **options)

    def test_stretches_make_up_the_row(self, implementation):
        """Outputs, log-sum-exps and gradients of queries side by side, those of keys and values summed."""
        arrays, ids = inputs(2, 192, 4, 2, 16, segments=True)
        q, k, v, dout = arrays
        attend = functools.partial(attention_names[implementation], scale=16**-0.5, window=100)
        (out, lse, top), (dq, dk, dv) = value_and_gradients(lambda *qkv: attend(*qkv, ids), *arrays)
        run = quickly_compiled(
            lambda first, q, dout: differentiated(lambda *qkv: attend(*qkv, ids, first=first))(q, k, v, dout)
        )
        parts = [run(first, q[:, first : first + 64], dout[:, first : first + 64]) for first in (0, 64, 128)]
        (outs, lses, tops), (dqs, dks, dvs) = jax.tree.map(lambda *a: jnp.stack(a), *parts)
        for a, b in ((outs, out), (lses, lse), (dqs, dq)):
            np.testing.assert_allclose(jnp.concatenate(a, 1), b, atol=1e-5)
        for a, b in ((tops.max(0), top), (dks.sum(0), dk), (dvs.sum(0), dv)):
            np.testing.assert_allclose(a, b, atol=1e-5)

    def test_large_logits_stay_finite(self, implementation):
        """Logits of tens of thousands neither overflow nor lose the winner."""
        (q, k, v, dout), _ = inputs(1, 130, 2, 1, 32)
        (out, lse, max_logit), gradients = value_and_gradients(
            lambda *qkv: tuple(attention(*qkv, implementation=implementation)), q * 300, k * 300, v, dout
        )
        want = reference.attention(q * 300, k * 300, v, None, 32**-0.5)
        assert max_logit.min() > 10_000
        np.testing.assert_allclose(max_logit, want[2], rtol=1e-5)
        np.testing.assert_allclose(lse, want[1], rtol=1e-5)
        np.testing.assert_allclose(out, want[0], atol=1e-2)
        assert all(np.isfinite(a).all() for a in gradients)

    def test_causality_by_zero_gradient(self, implementation):
        """The output at a token has no gradient at all to later tokens or to other segments."""
        (q, k, v, dout), _ = inputs(1, 200, 4, 2, 32)
        at, start = 150, 60  # the segment of the token begins at `start`
        ids = jnp.asarray(np.arange(200)[None] >= start, jnp.int32)

        def read(q, k, v):
            out = attention(q, k, v, segment_ids_BT=ids, implementation=implementation).out_BTNH
            return jnp.sum(out[:, at] * dout[:, at])

        dq, dk, dv = jax.jit(jax.grad(read, (0, 1, 2)))(q, k, v)
        assert (dq[:, at] != 0).all()
        assert (jnp.delete(dq, at, 1) == 0).all()
        for gradient in (dk, dv):
            assert (gradient[:, start : at + 1] != 0).all()
            assert (gradient[:, :start] == 0).all()
            assert (gradient[:, at + 1 :] == 0).all()

    def test_hidden_values_change_nothing(self, implementation):
        """What comes later, or belongs to another segment, does not reach output or maximum in one bit."""
        (q, k, v, _), _ = inputs(1, 200, 4, 2, 32)
        later = 120
        ids = jnp.asarray(np.arange(200)[None] >= later, jnp.int32)
        attend = jax.jit(lambda *qkv: attention(*qkv, segment_ids_BT=ids, implementation=implementation))
        other = attend(q, k.at[:, later:].multiply(9.0), v.at[:, later:].multiply(9.0)).out_BTNH
        assert (attend(q, k, v).out_BTNH[:, :later] == other[:, :later]).all()

    def test_maximum_is_of_visible_logits(self, implementation):
        """A huge logit that no query may see does not count, a visible one does."""
        (q, k, v, _), _ = inputs(2, 150, 4, 2, 32)
        k = k.at[1, 149].set(50 * q[1, 10, :2])  # seen by the last query alone, aligned with query 10
        q = q.at[1, 149].set(0.0)
        got = compiled(q, k, v, implementation=implementation).max_logit_N
        assert got.max() < 10
        seen = compiled(q.at[1, 149, 3].set(k[1, 149, 1]), k, v, implementation=implementation).max_logit_N
        assert seen[3] > 1000
        np.testing.assert_array_equal(seen[:3], got[:3])

    def test_maximum_has_no_gradient(self, implementation):
        (q, k, v, _), _ = inputs(1, 20, 2, 1, 32)
        read = lambda *qkv: attention(*qkv, implementation=implementation).max_logit_N.sum()  # noqa: E731
        assert all((a == 0).all() for a in jax.grad(read, (0, 1, 2))(q, k, v))

    def test_same_bits_twice(self, implementation):
        arrays, ids = inputs(2, 300, 4, 2, 32, segments=True)
        attend = lambda *qkv: tuple(attention(*qkv, segment_ids_BT=ids, implementation=implementation))  # noqa: E731
        once, twice = (jax.tree.leaves(value_and_gradients(attend, *arrays)) for _ in range(2))
        for a, b in zip(once, twice):
            np.testing.assert_array_equal(a, b)

    def test_inside_scan_and_checkpoint(self, implementation):
        """The gradient through rematerialised layers of a scan is that of a loop over the reference."""
        (q, k, v, _), ids = inputs(2, 140, 4, 2, 32, segments=True)
        strengths = jnp.asarray([0.5, 1.0, 1.5])

        def layer(q, strength, implementation):
            out = attention(q * strength, k, v, segment_ids_BT=ids, implementation=implementation)
            return q + out.out_BTNH, out.max_logit_N

        def scanned(q):
            step = jax.checkpoint(lambda q, strength: layer(q, strength, implementation))
            q, maxima = jax.lax.scan(step, q, strengths)
            return jnp.sum(q**2), maxima

        def looped(q):
            maxima = []
            for strength in strengths:
                q, maximum = layer(q, strength, "reference")
                maxima.append(maximum)
            return jnp.sum(q**2), jnp.stack(maxima)

        got, got_maxima = jax.jit(jax.grad(scanned, has_aux=True))(q)
        want, want_maxima = jax.grad(looped, has_aux=True)(q)
        np.testing.assert_allclose(got, want, atol=5e-5, rtol=1e-5)
        np.testing.assert_allclose(got_maxima, want_maxima, rtol=1e-5)

    @hypothesis.settings(
        max_examples=5,
        deadline=None,
        derandomize=True,
        suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
    )
    @hypothesis.given(
        B=st.integers(1, 2),
        T=st.integers(1, 300),
        K=st.integers(1, 2),
        G=st.integers(1, 3),
        H=st.sampled_from([8, 16, 40]),
        segments=st.sampled_from([{}, {"segments": True}, {"segments": True, "mixed": True}]),
        window=st.sampled_from([None, 1, 100, np.int32(150)]),
        logits=st.sampled_from([{}, {"soft_cap": 3.0}, {"scale": 0.7, "soft_cap": 50.0}]),
        seed=st.integers(0, 99),
    )
    def test_any_shape_and_mask(self, implementation, B, T, K, G, H, segments, window, logits, seed):
        window = (
            window if window is None or isinstance(window, int) else jnp.asarray(window)
        )  # as layers of a scan have
        check(implementation, B, T, K * G, K, H, window=window, **segments, **logits, seed=seed)

    @hypothesis.settings(
        max_examples=3,
        deadline=None,
        derandomize=True,
        suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
    )
    @hypothesis.given(
        S=st.integers(1, 300),
        bounds=st.tuples(st.integers(0, 299), st.integers(1, 300)),
        K=st.integers(1, 2),
        segments=st.sampled_from([{}, {"segments": True}, {"segments": True, "mixed": True}]),
        window=st.sampled_from([None, 1, 100, np.int32(150)]),
        soft_cap=st.sampled_from([None, 3.0]),
    )
    def test_any_stretch(self, implementation, S, bounds, K, segments, window, soft_cap):
        first = min(bounds[0], S - 1)
        stretch = first, max(first + 1, min(first + bounds[1], S))
        window = jnp.asarray(window) if isinstance(window, np.integer) else window
        check(implementation, 1, S, 2 * K, K, 8, window=window, stretch=stretch, soft_cap=soft_cap, **segments)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_sharded_batch_and_heads_give_the_same(implementation):
    """Four devices, batch and heads split over them: results and gradients of one device, nothing gathered."""
    program = f"""
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from kernels.attention.api import attention

        mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=2 * (AxisType.Auto,))
        rows, heads = (NamedSharding(mesh, spec) for spec in (P("fsdp"), P("fsdp", None, "tensor")))
        rng = np.random.default_rng(0)
        q, k, v = (jnp.asarray(rng.standard_normal((4, 70, n, 32)), jnp.float32) for n in (4, 2, 2))
        ids = jnp.asarray(np.arange(70)[None] // np.arange(5, 9)[:, None])

        def step(q, k, v, ids, window, implementation):
            def loss(q, k, v):
                out = attention(q, k, v, segment_ids_BT=ids, window=window, implementation=implementation)
                return jnp.sum(jnp.sin(out.out_BTNH)) + jnp.sum(out.lse_BTN**2), out.max_logit_N
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)

        run = jax.jit(step, static_argnums=5)
        for window in (None, jnp.int32(30)):
            want = run(q, k, v, ids, window, "reference")
            split = [jax.device_put(a, heads) for a in (q, k, v)]
            compiled = run.lower(*split, jax.device_put(ids, rows), window, {implementation!r}).compile()
            got = compiled(*split, jax.device_put(ids, rows), window)
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
                np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-5)
            assert got[1][0].sharding.is_equivalent_to(heads, 4), got[1][0].sharding
            assert "all-gather" not in compiled.as_text()
    """
    on_devices(4, program)
