"""The kernels compiled by the TPU's own compiler on this host: Mosaic takes them, for the shapes that models have."""

import jax
import jax.numpy as jnp
import pytest

from kernels.attention.api import attention
from model.presets import PRESETS
from scaling.topology import CHIPS, compile_for_chip

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
