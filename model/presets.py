"""Published models by name: `config.model = presets.config("smollm2-135m")` in an experiment.

Sizes and sources are in docs/models.md; `make parity` holds each to the parameter count of Hugging Face transformers.
"""

import dataclasses

from ml_collections import ConfigDict

from core.errors import UserError, suggest
from model.config import ModelConfig, RopeScaling


def _llama(V: int, L: int, D: int, N: int, K: int, H: int, F: int, **rest) -> ModelConfig:
    return ModelConfig(V, L, D, N, K, H, F, **{"no_rope_every": 0, "norm_epsilon": 1e-5, **rest})


# vocabulary, layers, width, query heads, key/value heads, head size, feed-forward
PRESETS = {
    "smollm3-3b": ModelConfig(128_256, 36, 2048, 16, 4, 128, 11_008, rope_theta=5e6),
    "smollm2-135m": _llama(49_152, 30, 576, 9, 3, 64, 1536, rope_theta=1e5, init_std=1 / 24),
    "smollm2-360m": _llama(49_152, 32, 960, 15, 5, 64, 2560, rope_theta=1e5, init_std=0.03227),
    "llama-2-7b": _llama(32_000, 32, 4096, 32, 32, 128, 11_008, rope_theta=1e4, tied_head=False),
    "llama-3.2-1b": _llama(
        128_256, 16, 2048, 32, 8, 64, 8192, rope_theta=5e5,
        rope_scaling=RopeScaling("llama3", factor=32.0, original_length=8192),
    ),
    # Heads and feed-forward size of these two are inferred from their parameter counts.
    "monad": _llama(8192, 64, 256, 4, 4, 64, 768, rope_theta=1e4),
    "baguettotron": _llama(65_536, 80, 576, 9, 3, 64, 1536, rope_theta=1e4),
    "gemma-2-2b": ModelConfig(
        256_000, 26, 2304, 8, 4, 256, 9216, no_rope_every=0, rope_theta=1e4, sliding_window=4096, global_every=2,
        attention_soft_cap=50.0, final_soft_cap=30.0, feed_forward="geglu",
        norm_position="pre_post", norm_plus_one=True, embedding_scale=2304**0.5,
    ),
    "qwen3-0.6b": ModelConfig(151_936, 28, 1024, 16, 8, 128, 3072, no_rope_every=0, rope_theta=1e6, qk_norm=True),
}  # fmt: skip


def preset(name: str) -> ModelConfig:
    """The model of that name."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}{suggest(name, PRESETS)}")
    return PRESETS[name]


def config(name: str) -> ConfigDict:
    """The same as the subtree of an experiment, where every key can be changed."""
    return ConfigDict(dataclasses.asdict(preset(name)))
