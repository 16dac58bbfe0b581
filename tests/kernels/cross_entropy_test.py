"""Every implementation of the linear cross entropy against the plain one: loss, nats and both gradients."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from core.errors import UserError
from cross_entropy_lab import TEACHER_CAP, Case, compiled, error, inputs, ours, quickly_compiled, results, truth
from kernels import dispatch, tpu_chips
from kernels.cross_entropy import gpu, tpu, xla
from kernels.cross_entropy.api import linear_cross_entropy
from kernels.cross_entropy.problem import Head, TopK

IMPLEMENTATIONS = ["xla", "tpu_interpret", "gpu_interpret"]
TEACHERS = [None, "top-k", "head"]
# Shapes that several tests share, so that they share what is compiled: few tokens, and several blocks of everything.
FEW, NAMED, WHOLE = Case(2, 1, 16, 97), *(Case(2, 37, 16, 300, 1e-2, 3.0, teacher) for teacher in TEACHERS[1:])


@pytest.fixture(autouse=True, scope="module")
def _small_blocks():
    """Blocks of few tokens and logits, so that small inputs need several of them and a shorter last one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xla, "CHUNK_LOGITS", 2048)
        patch.setattr(tpu, "TOKENS", (32,))
        patch.setattr(tpu, "VOCABULARY", (64,))
        patch.setattr(gpu, "BLOCK_LOGITS", 2**14)
        patch.setattr(gpu, "COLUMNS", 64)
        yield


def check(implementation, case):
    """Loss, nats and gradients in float32 equal those of the reference in float64, to 1e-5."""
    got, want = results(implementation, case), truth(case)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        assert a.dtype == jnp.float32
        assert a.shape == b.shape
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
class TestLinearCrossEntropy:
    @pytest.mark.parametrize(
        "case",
        [
            FEW,
            Case(2, 129, 16, 97, z_loss=1e-2),
            Case(2, 5, 24, 2, z_loss=1e-2, soft_cap=0.5),
            Case(1, 7, 24, 4097, soft_cap=30.0),
            NAMED,
            WHOLE,
            Case(1, 3, 16, 64, teacher="top-k"),
        ],
        ids=lambda case: "-".join(str(part) for part in case[:7]),
    )
    def test_case(self, implementation, case):
        check(implementation, case)

    @hypothesis.settings(max_examples=2, deadline=None, derandomize=True)
    @hypothesis.given(
        sizes=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40), st.integers(2, 700)),
        z_loss=st.sampled_from([0.0, 1e-2]),
        soft_cap=st.sampled_from([None, 5.0]),
        teacher=st.sampled_from(TEACHERS),
        seed=st.integers(0, 99),
    )
    def test_any_shape(self, implementation, sizes, z_loss, soft_cap, teacher, seed):
        check(implementation, Case(*sizes, z_loss, soft_cap, teacher, seed))

    def test_bfloat16(self, implementation):
        """bfloat16 inputs give bfloat16 gradients; logits, loss and nats are never rounded."""
        case = Case(2, 65, 64, 300, teacher="top-k", dtype="bfloat16")
        (loss, (nats, theirs)), gradients = results(implementation, case)
        (want_loss, (want_nats, want_theirs)), want = truth(case)
        assert loss.dtype == nats.dtype == jnp.float32
        np.testing.assert_allclose(loss, want_loss, rtol=1e-5)
        np.testing.assert_allclose(nats, want_nats, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(theirs, want_theirs, rtol=1e-5, atol=1e-5)
        for a, b in zip(gradients, want):
            assert a.dtype == jnp.bfloat16
            assert error(a, b) < 0.004  # a rounding to 8 bits is off by 2^-9 = 0.002 at most

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_errors_are_not_above_those_of_the_usual_way(self, implementation, dtype):
        case = Case(2, 65, 64, 300, teacher="top-k", dtype=dtype)
        every = (jax.tree.leaves(a) for a in (results(implementation, case), results("plain", case), truth(case)))
        for got, usual, want in zip(*every):
            assert error(got, want) <= max(1.05 * error(usual, want), 1.2e-7)  # one float32 beside it

    def test_loss_alone_equals_the_differentiated_one(self, implementation):
        alone = quickly_compiled(functools.partial(ours, implementation, WHOLE))(*inputs(WHOLE))
        (loss, rest), _ = results(implementation, WHOLE)
        np.testing.assert_allclose(0.25 * alone[0], loss, rtol=1e-6)
        for a, b in zip(alone[1:], rest):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    def test_a_hit_is_a_target_that_no_token_is_likelier_than(self, implementation):
        """Every third target is the likeliest, every third the second."""
        x, w, targets, weights, _ = inputs(NAMED)
        ranked = np.argsort(-np.einsum("btd,vd->btv", x, w))
        targets = targets.at[:, ::3].set(ranked[:, ::3, 0]).at[:, 1::3].set(ranked[:, 1::3, 1])
        compute = functools.partial(linear_cross_entropy, implementation=implementation)
        hits = quickly_compiled(compute)(x, w, targets, weights).hit_BT
        assert hits.dtype == bool
        np.testing.assert_array_equal(hits, targets == ranked[..., 0])
        assert hits[:, ::3].all()

    def test_nats_ignore_the_weights(self, implementation):
        """Tokens of weight 0 still have their nats, and no gradient."""
        x, w, targets, _, _ = inputs(FEW)
        weights = jnp.asarray([[0.0], [1.0]])
        (loss, (nats, _)), (dx, _) = compiled(implementation, FEW)(x, w, targets, weights, None)
        np.testing.assert_allclose(loss, 0.25 * nats[1, 0], rtol=1e-6)
        assert (nats > 0).all()
        assert (dx[1] != 0).all()
        assert (dx[0] == 0).all()

    def test_ids_outside_the_vocabulary_cost_nothing_where_they_weigh_nothing(self, implementation):
        """Padding of any id, and places of a teacher that are not used, change no bit of loss or gradients."""
        x, w, targets, weights, (ids, probs) = inputs(NAMED)
        strange = jnp.asarray(np.random.default_rng(0).choice([-100, -1, 300, 2**31 - 1, -(2**31)], ids.shape))
        weights, probs = weights.at[:, 7:20].set(0.0), probs.at[..., 0].set(0.0)
        assert (probs == 0).mean() > 0.3
        compute = compiled(implementation, NAMED)
        (loss, nats), gradients = compute(x, w, targets, weights, TopK(ids, probs))
        targets = jnp.where(weights == 0, strange[..., 0], targets)
        (got, theirs), moved = compute(x, w, targets, weights, TopK(jnp.where(probs == 0, strange, ids), probs))
        np.testing.assert_array_equal(got, loss)
        np.testing.assert_array_equal(jnp.where(weights == 0, 0, theirs[0]), jnp.where(weights == 0, 0, nats[0]))
        np.testing.assert_allclose(theirs[1], nats[1], rtol=1e-6)
        assert np.isfinite(theirs[0]).all()
        for a, b in zip(moved, gradients):
            np.testing.assert_array_equal(a, b)

    def test_only_the_loss_has_a_gradient(self, implementation):
        """And only in x and w: not in weights, share or teacher."""
        case = Case(1, 9, 16, 50, teacher="head")
        x, w, targets, weights, teacher = inputs(case)

        def both(x, w, weights, share, teacher):
            options = {"teacher": Head(*teacher), "teacher_share": share, "implementation": implementation}
            out = linear_cross_entropy(x, w, targets, weights, **options)
            return out.loss, out.nats_BT.sum() + out.teacher_nats_BT.sum()

        differentiate = quickly_compiled(jax.jacrev(both, (0, 1, 2, 3, 4)))
        of_loss, of_nats = differentiate(x, w, weights, 0.3, tuple(teacher[:2]))
        assert all((a == 0).all() for a in jax.tree.leaves(of_nats))
        assert all((a == 0).all() for a in jax.tree.leaves(of_loss[2:]))
        assert all((a != 0).any() for a in of_loss[:2])

    def test_large_logits_stay_finite(self, implementation):
        """Logits of thousands neither overflow nor turn a right answer into a loss."""
        x, w = jnp.eye(16)[jnp.asarray([[3], [5]])], jnp.eye(97, 16) * 4000.0
        targets = jnp.asarray([[3], [0]], jnp.int32)
        (_, (nats, _)), gradients = compiled(implementation, FEW)(x, w, targets, jnp.ones((2, 1)), None)
        np.testing.assert_array_equal(nats, [[0], [4000]])
        assert all(np.isfinite(a).all() for a in gradients)

    @pytest.mark.parametrize("case", [NAMED, WHOLE], ids=TEACHERS[1:])
    def test_same_bits_twice(self, implementation, case):
        once, twice = (jax.tree.leaves(results(implementation, case)) for _ in range(2))
        for a, b in zip(once, twice):
            np.testing.assert_array_equal(a, b)

    def test_inside_a_scan(self, implementation):
        """Accumulating gradients over a scan of microbatches is the gradient of the whole."""
        case = Case(2, 129, 16, 97, z_loss=1e-2)  # as above
        x, w, targets, weights, _ = inputs(case)

        def accumulate(dw, micro):
            return dw + jax.grad(lambda w: ours(implementation, case, micro[0], w, *micro[1:])[0])(w), None

        micro = [a[:, None] for a in (x, targets, weights)]
        dw, _ = quickly_compiled(lambda dw: jax.lax.scan(accumulate, dw, micro))(jnp.zeros_like(w))
        np.testing.assert_allclose(0.25 * dw, truth(case)[1][1], atol=1e-5, rtol=1e-5)


def test_a_teacher_that_names_all_is_a_whole_teacher():
    """And one that gives all to the target is no teacher. The reference is asked, to which others are held."""
    case = Case(1, 9, 16, 50, teacher="head", share=1.0)
    *args, teacher = inputs(case)
    compute = quickly_compiled(functools.partial(ours, "reference", case))
    loss, nats, of_whole = compute(*args, teacher)
    logits = TEACHER_CAP * jnp.tanh(jnp.einsum("BTE,VE->BTV", teacher.x_BTE, teacher.w_VE) / TEACHER_CAP)
    named = TopK(jnp.broadcast_to(jnp.arange(50), (1, 9, 50)), jax.nn.softmax(logits))
    of_named = compute(*args, named)
    np.testing.assert_allclose(of_named[0], loss, rtol=1e-5)
    np.testing.assert_allclose(of_named[2], of_whole, rtol=1e-5)
    np.testing.assert_allclose(compute(*args, TopK(args[2][..., None], jnp.ones((1, 9, 1))))[2], nats, rtol=1e-5)


def test_two_cores_give_what_one_gives(monkeypatch):
    """Where a device is two cores, each takes half of the vocabulary and has a gradient of x of its own."""
    monkeypatch.setattr(tpu, "chip", lambda: tpu_chips.TPUS["TPU v5p"])
    got = compiled.__wrapped__("tpu_interpret", WHOLE)(*inputs(WHOLE))  # 5 blocks, so one core has a block less
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(truth(WHOLE))):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("teacher", ["top-k", "head"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_array_of_all_logits(implementation, teacher):
    """The largest buffer of forward and backward is far below [B, T, V]."""
    case = Case(8, 512, 16, 8192, teacher=teacher)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), jax.eval_shape(lambda: inputs(case)))
    memory = compiled(implementation, case).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < case.B * case.T * case.V * 4 / 10


def test_unknown_implementation_names_the_choices():
    with pytest.raises(ValueError, match=r"'liger'.*gpu, gpu_interpret, reference, tpu, tpu_interpret, xla"):
        linear_cross_entropy(*inputs(Case(1, 2, 4, 8))[:4], implementation="liger")


def refused(match, kind=ValueError, implementation=None, **changes):
    names = ("x_BTD", "w_VD", "targets_BT", "weights_BT")
    args = dict(zip(names, inputs(Case(2, 3, 4, 8)))) | changes
    arrays = [args.pop(name) for name in names]
    with pytest.raises(kind, match=match):
        linear_cross_entropy(*arrays, implementation=implementation, **args)


def test_shapes_that_do_not_fit_are_named():
    refused("w_VD", w_VD=jnp.ones((4, 8)))
    refused("x_BTD", x_BTD=jnp.ones((3, 4)))
    refused("targets_BT", targets_BT=jnp.ones((2, 2), jnp.int32))
    refused("weights_BT", weights_BT=jnp.ones((2, 3, 1)))
    refused("targets_BT.*integer", targets_BT=jnp.ones((2, 3)))
    refused("x_BTD.*floating", x_BTD=jnp.ones((2, 3, 4), jnp.int32))
    ids, probs = jnp.zeros((2, 3, 5), jnp.int32), jnp.ones((2, 3, 5))
    refused("ids_BTk", teacher=TopK(ids[0], probs[0]))
    refused("ids_BTk.*integer", teacher=TopK(probs, probs))
    refused("probs_BTk", teacher=TopK(ids, probs[..., :4]))
    refused("teacher.x_BTE", teacher=Head(jnp.ones((2, 4, 6)), jnp.ones((8, 6))))
    refused("teacher.w_VE", teacher=Head(jnp.ones((2, 3, 6)), jnp.ones((9, 6))))
    refused("TopK or a Head, not dict", teacher={"ids": ids})


def test_empty_arrays_are_named():
    for shape in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        tokens = {name: jnp.zeros(shape[:2], kind) for name, kind in (("targets_BT", int), ("weights_BT", float))}
        layer = jnp.ones((8, shape[2]))
        refused(rf"x_BTD \({shape[0]}, .* should not be empty", x_BTD=jnp.ones(shape), w_VD=layer, **tokens)
    refused(r"w_VD \(0, 4\) should not be empty", w_VD=jnp.ones((0, 4)))
    no_places = TopK(jnp.zeros((2, 3, 0), jnp.int32), jnp.zeros((2, 3, 0)))
    refused(r"teacher.ids_BTk \(2, 3, 0\) should not be empty", teacher=no_places)
    refused(r"teacher.x_BTE .* should not be empty", teacher=Head(jnp.ones((2, 3, 0)), jnp.ones((8, 0))))


def test_narrow_ids_reach_a_wide_vocabulary():
    """int8 holds no id of 300 and uint32 no -100, which comes as a large one."""
    x, w, _, weights, _ = inputs(Case(1, 3, 4, 300))
    compute = functools.partial(linear_cross_entropy, x, w, implementation="reference")
    want = compute(jnp.asarray([[0, 1, 120]]), weights).nats_BT
    np.testing.assert_array_equal(compute(jnp.asarray([[-100, 1, 120]], jnp.int8), weights).nats_BT, want)
    last = compute(jnp.asarray([[299, 1, 120]]), weights).nats_BT
    np.testing.assert_array_equal(compute(jnp.asarray([[2**32 - 100, 1, 120]], jnp.uint32), weights).nats_BT, last)


def test_other_gpus_get_the_blocked_one(caplog):
    """`auto` says why; the kernel asked for is refused in one line."""
    dispatch._say.cache_clear()
    device = AbstractDevice("AMD Instinct MI300X", None, "gpu")
    arrays = inputs(Case(1, 3, 4, 8))[:4]
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("fsdp",), abstract_device=device)):
        assert "pallas_call" not in str(jax.make_jaxpr(linear_cross_entropy)(*arrays))
        with pytest.raises(UserError, match="'gpu' is for NVIDIA GPUs, not AMD Instinct MI300X; auto picks another"):
            linear_cross_entropy(*arrays, implementation="gpu")
    assert "'xla' on AMD Instinct MI300X" in caplog.text
    assert "a kernel, which is for NVIDIA GPUs" in caplog.text


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
def test_dtypes_that_a_kernel_cannot_take_are_named(implementation):
    half = {"x_BTD": jnp.ones((2, 3, 4), "float16"), "w_VD": jnp.ones((8, 4), "float16")}
    refused("float32 or bfloat16, not x_BTD in float16; auto", UserError, implementation, **half)
    refused("one dtype, not bfloat16 and float32", UserError, implementation, x_BTD=jnp.ones((2, 3, 4), "bfloat16"))
    teacher = Head(jnp.ones((2, 3, 6), "float16"), jnp.ones((8, 6), "float16"))
    refused("teacher.x_BTE in float16", UserError, implementation, teacher=teacher)
    assert np.isfinite(linear_cross_entropy(*half.values(), *inputs(Case(2, 3, 4, 8))[2:4]).loss)  # xla takes them
