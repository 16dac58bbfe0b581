"""Hugging Face export: our parameters as a SmolLM3 checkpoint, `config.json` and `model.safetensors`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from model.config import ModelConfig
from model.transformer import Params


def write_model(folder: Path, config: ModelConfig, params: Params, *, max_positions: int, bos: int, eos: int) -> None:
    """Writes a folder that `SmolLM3ForCausalLM.from_pretrained` loads."""
    described = hf_config(config, max_positions=max_positions, bos=bos, eos=eos)
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")
    generation = {
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": eos,
        "do_sample": True,
        "top_k": 50,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    tensors = hf_tensors(config, params)
    (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))


def hf_config(config: ModelConfig, *, max_positions: int, bos: int, eos: int) -> dict[str, Any]:
    """The `config.json` of this shape."""
    every = config.no_rope_every or config.num_layers + 1
    return {
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": max_positions,
        "initializer_range": config.init_std,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "no_rope_layer_interval": every,
        "no_rope_layers": [int(uses) for uses in config.uses_rope],  # 1 where RoPE is used
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": eos,
        "torch_dtype": "float32",
    }


def hf_tensors(config: ModelConfig, params: Params) -> dict[str, np.ndarray]:
    """Every parameter under its Hugging Face name; linear weights as [out, in]."""
    layers = params["layers"]
    D = config.d_model
    tensors = {
        "model.embed_tokens.weight": params["embedding"],
        "model.norm.weight": params["final_norm"]["scale"],
    }
    for i in range(config.num_layers):
        attention = {name: np.asarray(weight[i]) for name, weight in layers["attention"].items()}
        feed_forward = {name: np.asarray(weight[i]) for name, weight in layers["feed_forward"].items()}
        own = {
            "input_layernorm": layers["attention_norm"]["scale"][i],
            "self_attn.q_proj": attention["query"].reshape(D, -1).T,  # [D, N, H] -> [N H, D]
            "self_attn.k_proj": attention["key"].reshape(D, -1).T,
            "self_attn.v_proj": attention["value"].reshape(D, -1).T,
            "self_attn.o_proj": attention["output"].reshape(-1, D).T,  # [N, H, D] -> [D, N H]
            "post_attention_layernorm": layers["feed_forward_norm"]["scale"][i],
            "mlp.gate_proj": feed_forward["gate"].T,
            "mlp.up_proj": feed_forward["up"].T,
            "mlp.down_proj": feed_forward["down"].T,
        }
        tensors.update({f"model.layers.{i}.{name}.weight": tensor for name, tensor in own.items()})
    return {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
