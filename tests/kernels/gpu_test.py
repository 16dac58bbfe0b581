"""The GPU's kernels without a GPU: step by step in less time than the shared tests take, and lowered for CUDA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from core.errors import UserError
from kernels.attention import gpu, reference
from kernels.attention.api import attention
from kernels.attention.gpu_kernels import Tile
from kernels.attention.schedule import Blocks
from model.presets import PRESETS
from scaling.cuda import CHIPS, compile_for_gpu

SMALL = gpu.Tiles(Tile(32, 16, 4, 1), Tile(16, 32, 4, 1), Tile(16, 16, 4, 1))
DEVICE = AbstractDevice("NVIDIA H200", None, platform="gpu")
H200 = AbstractMesh((1,), ("fsdp",), (AxisType.Auto,), abstract_device=DEVICE)


def gradients(attend):
    """((out, lse, max_logit), (dq, dk, dv)) of `attend`, a jitted function of (q, k, v, dout, dlse)."""

    @jax.jit
    def both(q, k, v, dout, dlse):
        outputs, pull = jax.vjp(attend, q, k, v)
        return outputs, pull((dout, dlse.astype(outputs[1].dtype), jnp.zeros_like(outputs[2])))

    return both


@pytest.mark.parametrize(
    ("T", "H", "dtype", "options"),
    [
        (70, 40, "float32", {"window": jnp.int32(20)}),
        (100, 32, "bfloat16", {"soft_cap": 30.0}),
        (100, 32, "float32", {"window": 20, "stretch": (37, 70)}),
    ],
)
def test_kernels_step_by_step(T, H, dtype, options):
    """Values, log-sum-exps, maxima and gradients are the exact ones, and the same bits twice."""
    B, N, K = 2, 4, 2
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.standard_normal((B, T, heads, H)), dtype) for heads in (N, K, K, N)]
    arrays.append(jnp.asarray(rng.standard_normal((B, T, N)), jnp.float32))
    begin, end = options.get("stretch", (0, T))
    arrays = [a if i in (1, 2) else a[:, begin:end] for i, a in enumerate(arrays)]
    ids = jnp.asarray(np.arange(T) // np.array([[23], [40]]))
    masks = ids, H**-0.5, options.get("soft_cap"), options.get("window")
    run = gradients(lambda *qkv: gpu.attention(*qkv, *masks, first=jnp.int32(begin), interpret=True, tiles=SMALL))
    ours, again = run(*arrays), run(*arrays)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a), jnp.float64) for a in arrays]
        exact = gradients(lambda *qkv: reference.attention(*qkv, *masks, first=begin))(*wide)
    for got, twice, want in zip(*(jax.tree.leaves(outputs) for outputs in (ours, again, exact))):
        np.testing.assert_array_equal(got, twice)
        error = np.linalg.norm(np.asarray(got, float) - np.asarray(want)) / np.linalg.norm(want)
        assert error < (0.006 if got.dtype == jnp.bfloat16 else 2e-6)


@pytest.mark.parametrize("ids", [None, [[0] * 20 + [1] * 44], [[0, 1] * 32], [[3] * 8 + [1] * 30 + [3] * 26]])
@pytest.mark.parametrize("window", [None, 1, 20])
@pytest.mark.parametrize("first", [None, 0, 21])
@pytest.mark.parametrize("by_key", [False, True])
def test_spans_hold_all_that_is_seen_and_only_whole_blocks_go_without_a_mask(ids, window, by_key, first):
    blocks = Blocks(16, 8, 4 if first is None else 2, 8)
    ids = None if ids is None else jnp.asarray(ids)
    spans = gpu._spans(blocks, ids, window, by_key, None if first is None else jnp.int32(first))[0]
    distance = np.arange(64)[:, None] - np.arange(64)
    seen = (distance >= 0) & (distance < (window or 64))
    if ids is not None:
        seen &= np.asarray(ids[0][:, None] == ids[0])
    pairs = seen[first or 0 :][: 16 * blocks.I].reshape(blocks.I, 16, 8, 8).swapaxes(1, 2)
    some, every = pairs.any((2, 3)), pairs.all((2, 3))
    for own, (begin, whole_first, whole_end, end) in enumerate(spans):
        some_own, every_own = (a[:, own] if by_key else a[own] for a in (some, every))
        if not some_own.any():  # keys that no query of a stretch sees
            assert end == begin or (ids is not None and (np.diff(ids[0]) < 0).any())
            continue
        assert begin <= whole_first <= whole_end <= end
        assert not some_own[:begin].any() and not some_own[end:].any()  # noqa: PT018
        assert every_own[whole_first:whole_end].all()
        if ids is None or (np.diff(ids[0]) >= 0).all():
            assert some_own[begin] and some_own[end - 1]  # noqa: PT018
            assert every_own.sum() == whole_end - whole_first


def program(T, N, K, H, dtype="bfloat16", packed=True, **options):
    """(function, shapes) of forward and all gradients."""

    def step(q, k, v, dout, ids):
        attend = lambda *qkv: tuple(attention(*qkv, segment_ids_BT=ids, **options))  # noqa: E731
        outputs, pull = jax.vjp(attend, q, k, v)
        return outputs, pull((dout, jnp.zeros_like(outputs[1]), jnp.zeros_like(outputs[2])))

    arrays = [jax.ShapeDtypeStruct((1, T, heads, H), dtype) for heads in (N, K, K, N)]
    return step, (*arrays, jax.ShapeDtypeStruct((1, T), "int32") if packed else None)


def lower(step, shapes):
    """The text of a program lowered for CUDA."""
    with jax.sharding.use_abstract_mesh(H200):
        return jax.jit(step).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()


def program_of(name, dtype="bfloat16"):
    """That of a preset's layer."""
    config = PRESETS[name]
    heads = config.num_heads, config.num_kv_heads, config.head_dim
    options = {"soft_cap": config.attention_soft_cap, "scale": config.attention_scale}
    return program(8192, *heads, dtype, window=min(config.sliding_window, 4096) or None, **options)


@pytest.mark.parametrize("options", [{}, {"packed": False, "window": 300, "soft_cap": 50.0}])
def test_attention_lowers_for_cuda(options):
    text = lower(*program(1000, 4, 2, 96, scale=0.1, **options))
    for kernel in ("forward", "query_gradient", "key_gradient"):
        assert f'name = "attention_{kernel}"' in text


def test_a_stretch_lowers_for_cuda():
    def step(q, k, v, dout, ids, first):
        outputs, pull = jax.vjp(lambda *qkv: gpu.attention(*qkv, ids, 0.1, first=first), q, k, v)
        return pull((dout, *(jnp.zeros_like(a) for a in outputs[1:])))

    q, k, v, _, ids = program(1000, 4, 2, 96)[1]
    stretch = jax.ShapeDtypeStruct((1, 300, 4, 96), q.dtype)
    text = lower(step, (stretch, k, v, stretch, ids, jax.ShapeDtypeStruct((), "int32")))
    for kernel in ("forward", "query_gradient", "key_gradient"):
        assert f'name = "attention_{kernel}"' in text


ALL = [name for name in PRESETS if name != "smollm2-360m"]  # as smollm2-135m


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_of_every_preset_lowers(name, dtype):
    lower(*program_of(name, dtype))


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", ALL)
def test_attention_of_every_preset_compiles(name, chip):
    """By XLA's compiler for GPUs, down to machine code."""
    pytest.importorskip("jax_plugins.xla_cuda13", reason="the CUDA compiler is not installed")
    step, shapes = program_of(name)
    assert compile_for_gpu(chip, step, *shapes).as_text().count("__gpu$xla.gpu.triton") >= 3


def test_without_the_cuda_compiler_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match="install jax-cuda13-plugin and jax-cuda13-pjrt in version"):
        compile_for_gpu("h200", jnp.sin, jax.ShapeDtypeStruct((8,), "float32"))


def test_what_the_kernel_cannot_take():
    wide = jnp.zeros((1, 4, 2, 320))
    assert gpu.refusal(wide, wide) == "takes heads of up to 256, not 320"
    other = AbstractMesh((1,), ("fsdp",), abstract_device=AbstractDevice("AMD Instinct MI300X", None, platform="gpu"))
    with jax.sharding.use_abstract_mesh(other):
        assert gpu.refusal(wide, wide) == "is for NVIDIA GPUs, not AMD Instinct MI300X"
