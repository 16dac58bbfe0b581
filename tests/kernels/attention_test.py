"""Every implementation of attention against the plain one: values, maxima, gradients, what it may not see."""

import functools
import logging
import os
import subprocess
import sys
import textwrap
import typing

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from core.errors import UserError
from cross_entropy_lab import quickly_compiled
from kernels.attention import reference, tpu_blocks
from kernels.attention.api import IMPLEMENTATIONS as attention_names
from kernels.attention.api import attention
from kernels.attention.cached import cached_attention
from kernels.cross_entropy.api import IMPLEMENTATIONS as loss_names
from kernels.rope.api import IMPLEMENTATIONS as rope_names
from model.config import Kernels

# The GPU's kernels take seconds a test here; a few quick ones are in gpu_test.py.
IMPLEMENTATIONS = ["xla", "tpu_interpret", pytest.param("gpu_interpret", marks=pytest.mark.slow)]
compiled = jax.jit(attention, static_argnames=("scale", "soft_cap", "implementation"))


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
        return attention_names[implementation](*qkv, ids, scale, soft_cap, window, first=jnp.int32(stretch[0]))

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


@pytest.fixture
def small_blocks(monkeypatch):
    """Of the TPU's kernels, so that small inputs need several; queries and keys differ."""
    sizes = tpu_blocks.Sizes
    monkeypatch.setattr(tpu_blocks, "OTHERS", tpu_blocks.Kernels(sizes(128, 128), sizes(512, 128), sizes(128, 256)))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
class TestAttention:
    @pytest.mark.parametrize("T", [1, 2, 7, 64, 129])
    def test_lengths(self, implementation, T):
        check(implementation, 2, T, 4, 2, 32)

    @pytest.mark.parametrize(("N", "K"), [(1, 1), (3, 3), (6, 2), (8, 1)])
    def test_grouped_heads(self, implementation, N, K):
        check(implementation, 2, 70, N, K, 32)

    @pytest.mark.parametrize("H", [32, 64, 128])
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

    @pytest.mark.parametrize("window", [1, 5, 64, 1000])
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
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_unknown_implementation_names_the_choices():
    (q, k, v, _), _ = inputs(1, 4, 2, 1, 8)
    with pytest.raises(ValueError, match=r"'flash'.*auto, gpu, gpu_interpret, reference, tpu, tpu_interpret, xla"):
        attention(q, k, v, implementation="flash")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"segment_ids_BT": jnp.zeros((1, 4))}, "segment ids should be integers, not float32"),
        ({"soft_cap": 0.0}, "soft_cap=0.0 should be above 0"),
        ({"window": 0}, "window=0 should be 1 or more"),
    ],
)
def test_options_without_sense(wrong, message):
    (q, k, v, _), _ = inputs(1, 4, 2, 1, 8)
    with pytest.raises(ValueError, match=message):
        attention(q, k, v, **wrong)
    with pytest.raises(ValueError, match=r"q_BTNH \(1, 4, 2\) should have four axes"):
        attention(q[..., 0], k, v)


@pytest.mark.parametrize(
    ("q", "k", "ids"),
    [
        ((1, 4, 3, 8), (1, 4, 2, 8), (1, 4)),
        ((1, 4, 2, 8), (1, 5, 2, 8), (1, 4)),
        ((1, 4, 2, 8), (1, 4, 2, 8), (1, 5)),
    ],
)
def test_shapes_that_do_not_fit(q, k, ids):
    with pytest.raises(ValueError, match="attention"):
        attention(jnp.zeros(q), jnp.zeros(k), jnp.zeros(k), segment_ids_BT=jnp.zeros(ids, int))


def test_a_kernel_of_another_platform_is_refused_in_one_line():
    (q, k, v, _), _ = inputs(1, 4, 2, 1, 8)
    others = "auto, gpu_interpret, reference, tpu_interpret, xla"
    with pytest.raises(UserError, match=f"'tpu' does not run on cpu; choose from {others}"):
        attention(q, k, v, implementation="tpu")


def test_what_a_kernel_cannot_take(caplog):
    """Asked for it is refused; picked by platform, the blocked one runs and the log says so, once."""
    (q, k, v, _), _ = inputs(1, 4, 2, 1, 8, jnp.float16)
    with pytest.raises(
        UserError, match="'tpu_interpret' takes float32 or bfloat16, not queries, keys and values in float16"
    ):
        attention(q, k, v, implementation="tpu_interpret")
    chip = AbstractMesh((1,), ("fsdp",), abstract_device=AbstractDevice("TPU v5 lite", 1, "tpu"))
    with caplog.at_level(logging.WARNING), jax.sharding.use_abstract_mesh(chip):
        for _ in range(2):
            assert jax.eval_shape(attention, q, k, v).out_BTNH.dtype == jnp.float16
    (record,) = caplog.records
    assert "implementation 'xla' on TPU v5 lite" in record.getMessage()
    assert "takes float32 or bfloat16, not queries, keys and values in float16" in record.getMessage()


def test_every_implementation_that_the_config_admits_is_there():
    hints = typing.get_type_hints(Kernels)
    for op, names in {"attention": attention_names, "cross_entropy": loss_names, "rope": rope_names}.items():
        assert set(typing.get_args(hints[op])) == {"auto", *names}


def test_choice_is_logged_once(caplog):
    (q, k, v, _), _ = inputs(1, 4, 2, 1, 8)
    with caplog.at_level(logging.INFO):
        attention(q, k, v)
        attention(q, k, v)
    assert [r.getMessage() for r in caplog.records if "attention" in r.getMessage()] == [
        "attention: implementation 'xla', picked for cpu"
    ]


@pytest.mark.parametrize("options", [{}, {"soft_cap": 2.0, "scale": 0.7}, {"window": 5}, {"window": jnp.int32(30)}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_token_over_a_cache_gives_what_it_gives_in_its_row(options, dtype):
    """The last token of rows of different lengths; slots behind it hold what an earlier row left there."""
    (q, k, v, _), _ = inputs(3, 40, 6, 2, 16)
    q, k, v = (a.astype(dtype) for a in (q, k, v))
    positions = np.array([0, 17, 39])
    got = cached_attention(
        q[np.arange(3), positions],
        k.transpose(0, 2, 3, 1),
        v.transpose(0, 2, 1, 3),
        jnp.asarray(positions),
        **options,
    )
    scale = options.get("scale", 16**-0.5)
    whole = reference.attention(q, k, v, None, scale, options.get("soft_cap"), options.get("window"))[0]
    assert got.dtype == dtype
    bound = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
    want = whole[np.arange(3), positions].astype(jnp.float32)
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=bound, rtol=bound)
