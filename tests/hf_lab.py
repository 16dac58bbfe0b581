"""What tests of Hugging Face folders share: a model of every family, folders of random weights, and their damage."""

import dataclasses

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from model import hf, transformer
from model.config import ModelConfig, RopeScaling
from model.hf import write_model

SMOLLM3 = ModelConfig(vocab_size=40, num_layers=5, d_model=16, num_heads=4, num_kv_heads=2, head_dim=6, d_ff=20)
LLAMA = dataclasses.replace(SMOLLM3, no_rope_every=0, num_layers=3)
FAMILIES = {
    "smollm3": SMOLLM3,
    "smollm3, untied": dataclasses.replace(SMOLLM3, tied_head=False),
    "llama": LLAMA,
    "llama, untied, one KV head": dataclasses.replace(LLAMA, tied_head=False, num_kv_heads=1),
    "llama, biases": dataclasses.replace(LLAMA, qkv_bias=True, output_bias=True, feed_forward_bias=True),
    "llama, scaled": dataclasses.replace(LLAMA, rope_scaling=RopeScaling("llama3", 8.0, original_length=32)),
    "qwen2": dataclasses.replace(LLAMA, qkv_bias=True),
    "qwen3": dataclasses.replace(LLAMA, qk_norm=True),
    "qwen3, biases": dataclasses.replace(LLAMA, qk_norm=True, qkv_bias=True, output_bias=True),
    "mistral": dataclasses.replace(LLAMA, sliding_window=8),
    "gemma2": dataclasses.replace(
        LLAMA, sliding_window=8, global_every=2, attention_soft_cap=50.0, final_soft_cap=30.0, feed_forward="geglu",
        norm_position="pre_post", norm_plus_one=True, embedding_scale=4.0,
    ),
}  # fmt: skip


def random_params(config: ModelConfig, dtype=np.float32) -> transformer.Params:
    """Arrays in which no two numbers are likely to be equal, of the precision asked."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: random.normal(size=leaf.shape).astype(dtype).astype(np.float32), transformer.abstract(config)
    )


def export(folder, config, params, **options):
    write_model(folder, config, params, max_positions=64, bos=1, eos=2, **options)


def assert_same(params, other):
    assert jax.tree.structure(params) == jax.tree.structure(other)
    for own, there in zip(jax.tree.leaves(params), jax.tree.leaves(other)):
        assert there.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(own), np.asarray(there))


def edit(folder, change):
    """Rewrites the weights by the library after `change` of their dict."""
    tensors = load_file(folder / hf.SINGLE)
    change(tensors)
    save_file(tensors, folder / hf.SINGLE)
