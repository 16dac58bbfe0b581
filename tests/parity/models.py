"""The models that are compared: every preset made small, every way to stretch RoPE, and options that presets lack."""

import dataclasses
import json
import zlib
from pathlib import Path

import numpy as np

from model import transformer
from model.config import ModelConfig, RopeScaling
from model.hf import tensors
from model.hf_config import to_hf
from model.presets import PRESETS
from model.safetensors_file import write

SMALL = {"vocab_size": 96, "d_model": 48, "head_dim": 16, "d_ff": 80}
STRETCHED = {
    "interpolation": RopeScaling("interpolation", factor=4.0),
    "NTK-aware": RopeScaling(ntk_factor=4.0),
    "interpolation + NTK (Atom)": RopeScaling("interpolation", factor=4.0, ntk_factor=2.0),
    "NTK by parts": RopeScaling("ntk_by_parts", factor=4.0, original_length=32),
    "YaRN": RopeScaling("yarn", factor=4.0, original_length=32),
    "Llama 3": RopeScaling("llama3", factor=8.0, original_length=32),
}


def small(config: ModelConfig) -> ModelConfig:
    """The same kind of model with few parameters; windows and old contexts are short, to matter in 100 tokens."""
    ratio = config.num_heads // config.num_kv_heads
    scaling = config.rope_scaling
    return dataclasses.replace(
        config,
        **SMALL,
        num_layers=4,  # one period of SmolLM3, two of Gemma 2
        num_kv_heads=2 if ratio < 4 else 1,
        num_heads=ratio * (2 if ratio < 4 else 1),
        sliding_window=min(config.sliding_window, 12),
        embedding_scale=1.0 if config.embedding_scale == 1 else SMALL["d_model"] ** 0.5,
        rope_scaling=dataclasses.replace(scaling, original_length=min(scaling.original_length, 32)),
    )


def compared() -> dict[str, ModelConfig]:
    """Name to config of every model."""
    llama = small(PRESETS["llama-2-7b"])
    return {
        **{name: small(config) for name, config in PRESETS.items()},
        **{f"llama, {name}": dataclasses.replace(llama, rope_scaling=way) for name, way in STRETCHED.items()},
        "llama, all biases": dataclasses.replace(llama, qkv_bias=True, output_bias=True, feed_forward_bias=True),
        "qwen2 (biases of q, k, v)": dataclasses.replace(llama, qkv_bias=True),
        "mistral (every layer slides)": dataclasses.replace(llama, sliding_window=12),
        "gemma-2, no soft caps, another scale": dataclasses.replace(
            small(PRESETS["gemma-2-2b"]), attention_soft_cap=None, final_soft_cap=None, attention_scale=144**-0.5
        ),
        "smollm3, two key/value heads": dataclasses.replace(
            small(PRESETS["smollm3-3b"]), num_heads=6, num_kv_heads=2
        ),
    }


def weights(config: ModelConfig) -> dict[str, np.ndarray]:
    """Weights under their Hugging Face names: a function of name and shape alone, so both sides can make them.

    Norms near 1 or 0, products at unit scale, which keeps attention as soft as bfloat16 can follow.
    """
    abstract, made = transformer.abstract(config), {}
    for tensor in tensors(config):
        leaf = abstract
        for name in tensor.path:
            leaf = leaf[name]
        shape = tensor.their_shape(leaf.shape if tensor.layer is None else leaf.shape[1:])
        draw = np.random.default_rng(zlib.crc32(tensor.name.encode())).standard_normal(shape)
        if len(shape) == 1:
            centre = 0.0 if tensor.name.endswith("bias") or config.norm_plus_one else 1.0
            made[tensor.name] = centre + 0.2 * draw
        elif tensor.inputs is None:
            made[tensor.name] = 0.3 * draw
        else:
            made[tensor.name] = draw / shape[1] ** 0.5
    return {name: array.astype(np.float32) for name, array in made.items()}


def make_folder(folder: Path, config: ModelConfig) -> None:
    """A Hugging Face folder of deterministic weights."""
    folder.mkdir()
    described = to_hf(config, max_positions=128, bos=1, eos=None, dtype="float32")
    (folder / "config.json").write_text(json.dumps(described))
    made = weights(config)
    write(folder / "model.safetensors", {name: a.shape for name, a in made.items()}, "F32", made.__getitem__)
