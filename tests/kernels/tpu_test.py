"""The kernels compiled by the TPU's own compiler on this host: Mosaic takes them, for the shapes that models have."""

import importlib
import os
import re
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from kernels.attention.api import attention
from kernels.cross_entropy.api import linear_cross_entropy
from kernels.rope.api import rotate
from lab import ROOT
from model import transformer
from model.config import ModelConfig
from model.presets import PRESETS
from scaling.hlo import instructions
from scaling.topology import CHIPS, compile_for_chip, topology_devices

pytest.importorskip("libtpu", reason="the TPU compiler is not installed")


def compile_attention(chip, T, N, K, H, dtype="bfloat16", packed=True, **options):
    """Forward and all gradients, compiled for one chip."""

    def step(q, k, v, dout, ids):
        def attend(q, k, v):
            return tuple(attention(q, k, v, segment_ids_BT=ids, **options))

        outputs, pull = jax.vjp(attend, q, k, v)
        return outputs, pull((dout, *(jnp.zeros_like(a) for a in outputs[1:])))

    arrays = [jax.ShapeDtypeStruct((1, T, heads, H), dtype) for heads in (N, K, K, N)]
    ids = jax.ShapeDtypeStruct((1, T), "int32") if packed else None
    return compile_for_chip(chip, step, *arrays, ids)


@pytest.mark.parametrize("options", [{}, {"packed": False, "window": 300, "soft_cap": 50.0}])
def test_attention_compiles_for_a_tpu(options):
    text = compile_attention("v5e", 1024, 4, 2, 128, **options).as_text()  # JAX 0.10.2 cannot read all of v6e's
    for kernel in ("forward", "query_gradient", "key_gradient"):
        assert f"attention_{kernel}" in text


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", [name for name in PRESETS if name != "smollm2-360m"])  # as smollm2-135m
def test_attention_of_every_preset_compiles(name, chip):
    config = PRESETS[name]
    window = min(config.sliding_window, 4096) or None
    options = {"window": window, "soft_cap": config.attention_soft_cap, "scale": config.attention_scale}
    compile_attention(chip, 8192, config.num_heads, config.num_kv_heads, config.head_dim, **options)


@pytest.mark.slow
@pytest.mark.parametrize("H", [64, 128, 256])
def test_float32_compiles(H):
    compile_attention("v5e", 1024, 4, 2, H, dtype="float32")


def from_where(program, name):
    """The instruction that made an array, through those that only look at it otherwise."""
    while program[name].opcode in ("bitcast", "get-tuple-element", "opt-barrier"):
        name = program[name].operands[0]
    return program[name]


def kernels(program, name):
    return [found for found in program.values() if found.opcode == "custom-call" and name in found.op_name]


@pytest.mark.parametrize("heads", [(512, 4, 2, 128), pytest.param((576, 9, 3, 64), marks=pytest.mark.slow)])
def test_rotation_is_one_pass_of_its_own(heads):
    """Queries and keys go from the projection through it to attention and back, with nothing between them."""
    layer_text = runpy.run_path("benchmarks/rope_static.py")["layer_text"]
    program = instructions(layer_text("v5e", *heads, rotate, backward=True, rows=(1, 512)))
    forward, backward = kernels(program, "rope_to_heads"), kernels(program, "rope_from_heads")
    assert len(forward) == len(backward) == 2
    assert all(from_where(program, found.operands[1]).multiplies for found in forward)
    (attend,) = kernels(program, "attention_forward")
    found = [from_where(program, name) for name in attend.operands]
    assert all(one in found for one in forward)
    for found in backward:
        assert "_gradient" in from_where(program, found.operands[1]).op_name


def test_the_table_of_a_rotation_is_made_once_for_all_layers():
    """And no layer's own is saved for the backward pass."""
    config = ModelConfig(256, 6, 256, 2, 1, 128, 256, dtype="bfloat16")
    rows = jax.ShapeDtypeStruct((1, 512), "int32")

    def loss(params, tokens, ids, positions):
        return transformer.apply(config, params, tokens, ids, positions).hidden_BTD.astype("float32").sum()

    text = compile_for_chip("v5e", jax.grad(loss), transformer.abstract(config), rows, rows, rows).as_text()
    assert "f32[6,1,512,128]" not in text
    loops = [block for block in text.split("\n\n") if "rope_" in block and not block.startswith("ENTRY")]
    assert len(loops) >= 2
    for loop in loops:
        made = [line.split(" = ")[1] for line in loop.splitlines() if re.search(r" = f32\[1,512,(64|128)\]", line)]
        assert made
        assert all(re.search(r" (get-tuple-element|bitcast|copy-done)\(", line) for line in made), made


def test_rotation_is_split_over_a_mesh():
    """Rows over one axis, heads over the other; nothing is gathered."""
    devices = np.array(topology_devices("v5e:2x2")).reshape(2, 2)
    mesh = jax.sharding.Mesh(devices, ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    split, rows = (NamedSharding(mesh, spec) for spec in (P("fsdp", None, "tensor"), P("fsdp")))

    def both(x, dy, cos, sin):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            y, pull = jax.vjp(lambda x: rotate(x, cos, sin), x)
        return y, *pull(dy)

    x, angles = jax.ShapeDtypeStruct((4, 256, 8, 128), "bfloat16"), jax.ShapeDtypeStruct((4, 256, 64), "float32")
    jitted = jax.jit(both, in_shardings=(split, split, rows, rows), out_shardings=(split, split))
    program = instructions(jitted.lower(x, x, angles, angles).compile().as_text())
    (forward,), (backward,) = kernels(program, "rope_to_heads"), kernels(program, "rope_from_heads")
    assert forward.arrays == ((2, (2, 4, 256, 128)),)
    assert backward.arrays == ((2, (2, 256, 4 * 128)),)
    assert not any(found.opcode.startswith(("all-", "collective")) for found in program.values())


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", [name for name in PRESETS if name != "smollm2-360m"])  # as smollm2-135m
def test_rotation_of_every_preset_compiles(name, chip):
    config, T = PRESETS[name], 8192
    for heads, dtype in ((config.num_heads, "bfloat16"), (config.num_kv_heads, "float32")):
        x = jax.ShapeDtypeStruct((1, T, heads, config.head_dim), dtype)
        angles = jax.ShapeDtypeStruct((1, T, config.head_dim // 2), "float32")

        def both(x, cos, sin):
            y, pull = jax.vjp(lambda x: rotate(x, cos, sin, pairs=config.rope_pairs, dtype="bfloat16"), x)
            return y, *pull(y)

        compile_for_chip(chip, both, x, angles, angles)


def compile_split_rows(chip, T, D=256, N=8, K=2, H=128, V=512):
    """A layer and the loss with their gradients; the tokens of a row over two chips, rows over the others."""
    devices = np.array(topology_devices(CHIPS[chip])).reshape(-1, 2)
    mesh = jax.sharding.Mesh(devices, ("fsdp", "context"), axis_types=(AxisType.Auto,) * 2)
    tokens, whole = NamedSharding(mesh, P("fsdp", "context")), NamedSharding(mesh, P())

    def loss(x_BTD, weights, ids_BT, cos_BTR, sin_BTR):
        queries, keys, values, output, head_VD = weights
        q_BTNH, k_BTKH, v_BTKH = (jnp.einsum("BTD,DNH->BTNH", x_BTD, w) for w in (queries, keys, values))
        q_BTNH, k_BTKH = (rotate(a, cos_BTR, sin_BTR) for a in (q_BTNH, k_BTKH))
        mixed_BTNH = attention(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT=ids_BT).out_BTNH
        y_BTD = x_BTD + jnp.einsum("BTNH,NHD->BTD", mixed_BTNH, output)
        return linear_cross_entropy(y_BTD, head_VD, ids_BT, jnp.ones(ids_BT.shape)).loss

    def step(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.value_and_grad(loss, (0, 1))(*args)

    B = len(devices)
    of = lambda *shape: jax.ShapeDtypeStruct(shape, "bfloat16")  # noqa: E731
    angles = jax.ShapeDtypeStruct((B, T, H // 2), "float32")
    weights = [of(D, N, H), of(D, K, H), of(D, K, H), of(N, H, D), of(V, D)]
    shapes = of(B, T, D), weights, jax.ShapeDtypeStruct((B, T), "int32"), angles, angles
    layouts = tokens, whole, tokens, tokens, tokens
    return jax.jit(step, in_shardings=layouts, out_shardings=(whole, (tokens, whole))).lower(*shapes).compile()


@pytest.mark.slow
def test_keys_and_values_alone_are_gathered():
    """Of rows over two chips: each has half of the queries, of the hidden states and of the loss's tokens."""
    text = compile_split_rows("v5e", 4096).as_text()
    collectives = re.findall(
        r" = (\w+)\[([\d,]+)\]\S* (all-gather|reduce-scatter|all-to-all|collective-permute)\(", text
    )
    moved = {(name, dtype, shape.removeprefix("1,")) for dtype, shape, name in collectives}
    gathered = {("all-gather", "bf16", "4096,2,128"), ("all-gather", "s32", "4096")}  # and segment ids
    # The gradient of the output layer is summed onto parts, and gathered because it is asked for whole.
    gradient = {("reduce-scatter", "bf16", "128,256"), ("all-gather", "bf16", "512,256")}
    assert moved == {*gathered, *gradient, ("reduce-scatter", "f32", "2048,2,128")}
    (forward,) = kernels(instructions(text), "attention_forward")
    assert forward.arrays[0] == (2, (1, 2, 4, 2048, 128))


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
def test_split_rows_compile(chip):
    compile_split_rows(chip, 16_384, D=2048, N=16, K=4)


@pytest.mark.parametrize("T", [1, 1000])
def test_rotation_of_any_length_compiles(T):
    """One token, as in decoding; a last block that is not full."""
    x, angles = jax.ShapeDtypeStruct((2, T, 3, 64), "bfloat16"), jax.ShapeDtypeStruct((2, T, 32), "float32")
    compile_for_chip("v5e", lambda x, cos, sin: rotate(x, cos, sin, pairs="interleaved"), x, angles, angles)


def benchmark(name):
    """A script of benchmarks/, as a module."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


@pytest.mark.slow
def test_attention_is_no_worse_than_the_library_in_any_count():
    """Steps, bytes and products of SmolLM3-3B's heads; fewer where documents are packed."""
    static = benchmark("attention_static")
    arrays = [jnp.zeros((1, 2048, heads, 128), jnp.bfloat16) for heads in (16, 4, 4)]
    for ids in static.documents(2048).values():
        ours, theirs = static.count(arrays, ids, "TPU v5 lite")
        assert ours.steps < theirs.steps
        assert ours.bytes < theirs.bytes
        assert ours.flops <= theirs.flops
    assert ours.flops < 0.8 * theirs.flops  # of three documents


@pytest.mark.slow
def test_the_largest_logit_costs_a_step_nothing():
    """At most 2% of the bundles of the kernel, and of its steps, in the compiler's final schedule for v5e."""
    command = [sys.executable, ROOT / "benchmarks" / "attention_bundles.py", "--chips=v5e"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    table = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    (forward,) = (line for line in table.splitlines() if "| forward |" in line)
    kernel, steps = (float(number) for number in re.findall(r"([+-][\d.]+)%", forward))
    assert kernel <= 2
    assert steps <= 2
