"""Every implementation of the symmetric products and of the iteration on them, against float64."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from core.errors import UserError
from kernels import dispatch
from kernels.newton_schulz import gpu, reference, tpu
from kernels.newton_schulz.api import gram, newton_schulz, symmetric_polynomial
from kernels.newton_schulz.pairs import pairs
from lab import on_devices
from model.presets import PRESETS
from scaling.topology import CHIPS, compile_for_chip

IMPLEMENTATIONS = ["xla", "tpu_interpret", pytest.param("gpu_interpret", marks=pytest.mark.slow), "reference"]
STANDARD = ((3.4445, -4.7750, 2.0315),) * 5
CONVERGENT = ((2.0, -1.5, 0.5),) * 12
B, C = -4.7750, 2.0315


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Several blocks, slabs and steps in matrices of a few hundred rows."""
    with pytest.MonkeyPatch.context() as patch:
        for dtype in ("float32", "bfloat16"):
            patch.setitem(tpu.BLOCKS, (dtype, ""), tpu.Blocks(128, 64))
            patch.setitem(gpu.TILES, (dtype, ""), gpu.Tiles(32, 16, 4, 2))
        patch.setattr(tpu, "COLUMNS", ())
        yield


def normalised(shape, dtype=jnp.float32, seed=0):
    """Random matrices of Frobenius norm 1."""
    x = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(x / np.linalg.norm(x, axis=(-2, -1), keepdims=True), dtype)


def plain(x):
    """What one writes without this op: gram, polynomial of it and the iteration, rounded at every operation."""
    products = x @ x.mT, B * (a := x @ x.mT) + C * (a @ a)
    for a_, b, c in STANDARD:
        a = x @ x.mT
        x = a_ * x + (b * a + c * (a @ a)) @ x
    return *products, x


def ours(x, implementation):
    a = gram(x, implementation=implementation)
    polynomial = symmetric_polynomial(a, B, C, implementation=implementation)
    return a, polynomial, newton_schulz(x, STANDARD, implementation=implementation)


def exact(x):
    """In float64, from the rounded gram for the polynomial, as each op gets its input."""
    with jax.enable_x64(True):
        wide = jnp.asarray(np.asarray(x, np.float64))
        return tuple(map(np.asarray, (reference.symmetric_product(wide), reference.newton_schulz(wide, STANDARD))))


def distance(got, want):
    """Frobenius norm of the difference over that of what it should be."""
    return np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want)


def check(implementation, shape, dtype, seed=0):
    """No worse than plain products, symmetric to the bit, the same bits twice."""
    x = normalised(shape, dtype, seed)
    compiled = jax.jit(functools.partial(ours, implementation=implementation))
    got, again, usual = compiled(x), compiled(x), jax.jit(plain)(x)
    a, iterated = exact(x)
    for one, other in zip(got, again):
        assert one.dtype == x.dtype
        np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))
    for symmetric in got[:2]:
        assert (symmetric == symmetric.mT).all()
    wants = a, *(B * (w := np.asarray(g[0], np.float64)) + C * w @ w for g in (got, usual)), iterated
    noise = 4 * float(jnp.finfo(jnp.float32).eps)
    assert distance(got[0], wants[0]) <= 1.1 * distance(usual[0], wants[0]) + noise
    assert distance(got[1], wants[1]) <= 1.1 * distance(usual[1], wants[2]) + noise
    assert distance(got[2], wants[3]) <= 1.25 * distance(usual[2], wants[3]) + 10 * noise


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
class TestNewtonSchulz:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_many_blocks(self, implementation, dtype):
        check(implementation, (2, 270, 300), dtype)

    @hypothesis.settings(max_examples=2, deadline=None, derandomize=True)
    @hypothesis.given(
        L=st.integers(1, 3),
        R=st.integers(1, 140),
        more=st.integers(0, 150),
        dtype=st.sampled_from(["float32", "bfloat16"]),
        seed=st.integers(0, 99),
    )
    def test_any_shape(self, implementation, L, R, more, dtype, seed):
        check(implementation, (L, R, R + more), dtype, seed)

    @pytest.mark.parametrize(("dtype", "bound"), [("float32", 2e-5), ("bfloat16", 0.02)])
    def test_singular_values_go_where_the_polynomial_sends_them(self, implementation, dtype, bound):
        rng = np.random.default_rng(0)
        left, _ = np.linalg.qr(rng.standard_normal((40, 40)))
        right, _ = np.linalg.qr(rng.standard_normal((70, 70)))
        values = np.geomspace(0.01, 1.0, 40)
        x = jnp.asarray((left * values) @ right[:40], dtype)
        got = np.asarray(newton_schulz(x, STANDARD, implementation=implementation), np.float64)
        for a, b, c in STANDARD:
            values = a * values + b * values**3 + c * values**5
        found = np.linalg.svd(got, compute_uv=False)
        np.testing.assert_allclose(found, np.sort(values)[::-1], atol=bound)
        assert found.min() > 0.68 - bound
        assert found.max() < 1.14 + bound
        kept = np.diag(left.T @ got @ right[:40].T)  # singular vectors stay
        np.testing.assert_allclose(np.sort(kept), np.sort(values), atol=bound)

    def test_convergent_coefficients_give_the_orthogonal_factor(self, implementation):
        x = normalised((24, 60))
        left, _, right = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
        got = newton_schulz(x, CONVERGENT, implementation=implementation)
        np.testing.assert_allclose(got, left @ right, atol=2e-6)

    def test_stacks_of_stacks_and_tall_matrices(self, implementation):
        x = normalised((2, 3, 40, 20))
        got = newton_schulz(x, STANDARD, implementation=implementation)
        assert got.shape == x.shape
        flat = newton_schulz(x.mT.reshape(6, 20, 40), STANDARD, implementation=implementation)
        np.testing.assert_array_equal(got, flat.reshape(2, 3, 20, 40).mT)

    def test_has_no_gradient(self, implementation):
        x = normalised((4, 6))
        with pytest.raises(NotImplementedError, match="newton_schulz: it has no gradient"):
            jax.grad(lambda x: newton_schulz(x, STANDARD, implementation=implementation).sum())(x)
        with pytest.raises(NotImplementedError, match="gram: it has no gradient"):
            jax.jvp(lambda x: gram(x, implementation=implementation), (x,), (x,))


@pytest.mark.parametrize(
    ("implementation", "shape"), [("tpu_interpret", (1, 1100, 600)), ("gpu_interpret", (1, 300, 200))]
)
def test_blocks_as_they_are_on_the_device(implementation, shape, monkeypatch):
    monkeypatch.setitem(tpu.BLOCKS, ("bfloat16", ""), tpu.Blocks(1024, 128))
    monkeypatch.setitem(gpu.TILES, ("bfloat16", ""), gpu.Tiles(128, 64, 8, 3))
    monkeypatch.setattr(tpu, "COLUMNS", (512, 384, 256))
    x = normalised(shape, jnp.bfloat16)
    got = jax.jit(lambda x: gram(x, implementation=implementation))(x)
    assert (got == got.mT).all()
    assert distance(got, exact(x)[0]) < 0.003


def test_stacks_beyond_the_reach_of_offsets_go_a_matrix_at_a_time(monkeypatch):
    x = normalised((3, 40, 50))
    want = gram(x, implementation="gpu_interpret")
    monkeypatch.setattr(gpu, "MOST", 3 * 40 * 40)
    np.testing.assert_array_equal(gram(x, implementation="gpu_interpret"), want)


@pytest.mark.parametrize("implementation", ["xla", pytest.param("gpu_interpret", marks=pytest.mark.slow)])
def test_matrices_are_spread_over_the_mesh(implementation):
    """Four devices: what one gives to the bit, a quarter of the work each, however many matrices there are."""
    program = f"""
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from kernels.newton_schulz.api import newton_schulz

        def iterate(x):
            return newton_schulz(x, ((3.4445, -4.7750, 2.0315),) * 3, implementation={implementation!r})

        mesh = jax.make_mesh((2, 2), ("replica", "fsdp"), axis_types=(AxisType.Auto,) * 2)
        for L in (8, 3):
            x = jnp.asarray(np.random.default_rng(0).standard_normal((L, 16, 48)) / 30, jnp.float32)
            want = jax.jit(iterate)(x)
            with jax.set_mesh(mesh):
                rows = jax.device_put(x, NamedSharding(mesh, P(None, "fsdp")))  # as parameters lie
                compiled = jax.jit(iterate, out_shardings=rows.sharding).lower(rows).compile()
                got = compiled(rows)
            np.testing.assert_array_equal(np.asarray(got), np.asarray(want))
            assert f"f32[{{-(-L // 4)}}," in compiled.as_text()
            assert got.sharding.is_equivalent_to(rows.sharding, 3), got.sharding
    """
    on_devices(4, program)


@pytest.mark.parametrize("near", [1, 2, 8])
def test_every_pair_of_blocks_is_visited_once(near):
    rows, columns = pairs(7, near)
    assert sorted(zip(rows.tolist(), columns.tolist())) == [(i, j) for i in range(7) for j in range(i, 7)]


@pytest.mark.parametrize("R", [1, 128, 576, 1408, 2304, 4096, 11008])
@pytest.mark.parametrize("padded", [tpu.padded, gpu.padded])
def test_a_padded_matrix_is_not_padded_again(padded, R):
    rows, columns = padded(R, 2 * R, "bfloat16")
    assert padded(rows, columns, "bfloat16") == (rows, columns)
    assert padded(rows, rows, "bfloat16") == (rows, rows)


def test_a_tile_is_found_by_the_longest_name_of_the_device():
    assert gpu.setting({("float32", ""): 1, ("float32", "cp"): 2, ("float32", "c"): 3}, jnp.float32) == 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gram(jnp.ones(4)), r"gram: x \(4,\) should have shape \[..., rows, columns\]"),
        (lambda: gram(jnp.ones((0, 4))), r"gram: x \(0, 4\) .* not be empty"),
        (lambda: gram(jnp.ones((4, 4), jnp.float16)), "gram: x should be float32 or bfloat16, not float16"),
        (lambda: symmetric_polynomial(jnp.ones((4, 5)), 1, 2), r"symmetric_polynomial: a \(4, 5\) .* square"),
        (lambda: newton_schulz(jnp.ones((4, 5), jnp.int32), STANDARD), "newton_schulz: x should be .* not int32"),
        (lambda: newton_schulz(jnp.ones((4, 5)), STANDARD[0]), r"coefficients \(3,\) should have shape \(steps, 3\)"),
        (lambda: newton_schulz(jnp.ones((4, 5)), []), r"coefficients \(0,\) should have shape \(steps, 3\)"),
        (lambda: newton_schulz(jnp.ones((4, 5)), [(1.0, float("nan"), 0.0)]), "coefficients should be finite"),
        (lambda: gram(jnp.ones((4, 5)), implementation="cuda"), "gram: unknown implementation 'cuda'"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_kernel_of_another_platform_is_refused():
    with pytest.raises(UserError, match="'tpu' does not run on cpu"):
        gram(jnp.ones((4, 5)), implementation="tpu")


def test_other_gpus_get_the_blocked_one(caplog):
    """`auto` says why; the kernel asked for is refused in one line."""
    dispatch._say.cache_clear()
    device = AbstractDevice("AMD Instinct MI300X", None, "gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("fsdp",), abstract_device=device)):
        assert "pallas_call" not in str(jax.make_jaxpr(gram)(jnp.ones((4, 5))))
        with pytest.raises(UserError, match="gram: implementation 'gpu' is for NVIDIA GPUs, not AMD Instinct MI300X"):
            gram(jnp.ones((4, 5)), implementation="gpu")
    assert "gram: implementation 'xla' on AMD Instinct MI300X" in caplog.text


def test_the_reference_is_rounded_once():
    x = normalised((2, 40, 70), jnp.bfloat16)
    got = newton_schulz(x, STANDARD, implementation="reference")
    rounded = exact(x)[1].astype(jnp.bfloat16)
    assert (np.asarray(got) == rounded).mean() > 0.99  # float32 beside float64 may fall on the other side
    assert distance(got, exact(x)[1]) < 0.002


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gpu_kernels_lower_for_cuda(dtype):
    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    mesh = AbstractMesh((1,), ("fsdp",), axis_types=(AxisType.Auto,), abstract_device=device)

    def iterate(x):
        with jax.sharding.use_abstract_mesh(mesh):
            return newton_schulz(x, STANDARD)

    shape = jax.ShapeDtypeStruct((2, 576, 1500), dtype)
    text = jax.jit(iterate).trace(shape).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 2
    assert f"num_warps = {8 if dtype == 'bfloat16' else 4}" in text


def matrices(name):
    """The stacked matrices of a preset that Muon orthogonalises, by shape."""
    config = PRESETS[name]
    heads = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim)
    sizes = {(config.d_model, size) for size in (*heads, config.d_ff)} | {(config.d_ff, config.d_model)}
    return [(config.num_layers, *size) for size in sorted(sizes)]


def compile_all(chip, shapes, dtype):
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return compile_for_chip(chip, lambda arrays: [newton_schulz(x, STANDARD) for x in arrays], arrays)


def test_compiles_for_a_tpu():
    assert "newton_schulz_product" in compile_all("v5e", [(36, 2048, 11008)], "bfloat16").as_text()


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_compiles(name, chip):
    """Stack by stack: all of Llama 2 7B at once are more than one v5e holds."""
    for stack in matrices(name):
        compile_all(chip, [stack], "bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
def test_float32_compiles(chip):
    compile_all(chip, [(36, 2048, 11008), (30, 576, 1536)], "float32")
