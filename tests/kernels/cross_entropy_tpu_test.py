"""The loss compiled by the TPU's own compiler on this host, for the shapes that models have and over a mesh."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from core.errors import UserError
from kernels.cross_entropy.api import linear_cross_entropy
from kernels.cross_entropy.problem import Head, TopK
from model.presets import PRESETS
from scaling.topology import CHIPS, compile_for_chip, topology_devices

pytest.importorskip("libtpu", reason="the TPU compiler is not installed")


def step(x, w, targets, weights, teacher, implementation="tpu"):
    """Loss, nats and both gradients, by the kernels."""

    def loss(x, w):
        options = {"z_loss": 1e-4, "soft_cap": 30.0, "teacher": teacher, "implementation": implementation}
        loss, *nats = linear_cross_entropy(x, w, targets, weights, **options)
        return loss, nats

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(x, w)


def shapes(B, T, D, V, teacher=None, dtype="bfloat16"):
    """Of the arguments of `step`."""
    shape = jax.ShapeDtypeStruct
    if teacher == "top-k":
        teacher = TopK(shape((B, T, 64), "int32"), shape((B, T, 64), "float32"))
    elif teacher == "head":
        teacher = Head(shape((B, T, D), dtype), shape((V, D), dtype))
    rows = shape((B, T), "int32"), shape((B, T), "float32")
    return shape((B, T, D), dtype), shape((V, D), dtype), *rows, teacher


@pytest.mark.parametrize("teacher", ["top-k", "head"])
def test_compiles_for_a_tpu(teacher):
    B, T, D, V = 1, 200, 192, 300  # padded tokens, a last block with rows beyond the vocabulary
    text = compile_for_chip("v5e", step, *shapes(B, T, D, V, teacher)).as_text()
    assert "cross_entropy_forward" in text
    assert "cross_entropy_backward" in text


def test_compiles_for_a_split_vocabulary():
    """On a mesh of 2 x 2 no output layer and no logits travel; only sums of tokens and gradients do."""
    devices = topology_devices("v5e:2x2")
    mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2, devices=devices)
    rows, layer = NamedSharding(mesh, P("fsdp")), NamedSharding(mesh, P("tensor"))

    def on_mesh(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return step(*args)

    shardings = (rows, layer, rows, rows, rows)
    text = jax.jit(on_mesh, in_shardings=shardings).lower(*shapes(2, 512, 256, 2048, "top-k")).compile().as_text()
    assert "cross_entropy_backward" in text
    assert "all-reduce" in text
    assert "all-gather" not in text


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_compiles(name, chip):
    """With under a tenth of the memory of a loss that writes its logits.

    What is left is the gradient of x in float32, and for widths that are no multiple of 128 copies of w and of its
    gradient: the compiler lays such arrays out by columns.
    """
    config = PRESETS[name]

    def temporaries(implementation):
        one = functools.partial(step, implementation=implementation)
        try:
            compiled = compile_for_chip(chip, one, *shapes(1, 8192, config.d_model, config.vocab_size))
        except jax.errors.JaxRuntimeError as error:  # Gemma 2's logits are more than a v5e holds
            too_many = re.search(r"HLO temporaries \(([\d.]+)G\) exceeds", str(error))
            if implementation == "tpu" or too_many is None:
                raise
            return float(too_many[1]) * 2**30
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries("tpu") < temporaries("reference") / 10


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("options", [{"dtype": "float32"}, {"teacher": "top-k"}, {"teacher": "head"}])
def test_wide_layers_compile(chip, options):
    D = 2304 if (chip, options.get("dtype")) == ("v4", "float32") else 4096  # 16 MiB of VMEM hold no more
    compile_for_chip(chip, step, *shapes(1, 8192, D, 152_000, **options))


def test_a_layer_too_wide_for_the_chip_is_named():
    with pytest.raises(UserError, match=r"needs .* MiB of VMEM for rows of 16384 float32 numbers, of 16 MiB here"):
        compile_for_chip("v4", step, *shapes(1, 128, 16_384, 512, dtype="float32"))


def test_lowers_for_a_gpu():
    """Triton's program is made on any host; what it does there is in the tests of `gpu_interpret`."""
    from kernels.cross_entropy import gpu
    from kernels.cross_entropy.problem import Arrays, Settings
    from kernels.cross_entropy.shards import run

    def loss(x, w, targets, weights, teacher):
        arrays = Arrays(x, w, targets, weights, weights, teacher)
        return run(gpu.IMPLEMENTATION, Settings(1e-4, 30.0), arrays).loss

    step = jax.jit(jax.grad(loss, (0, 1)))
    for teacher in ("top-k", "head"):
        traced = step.trace(*shapes(1, 8192, 2048, 128_256, teacher))
        assert "cross_entropy_sums" in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert jnp.bfloat16 == traced.jaxpr.out_avals[1].dtype
