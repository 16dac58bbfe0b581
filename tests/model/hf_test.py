import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from model import transformer
from model.config import ModelConfig
from model.hf import write_model

CONFIG = ModelConfig(vocab_size=64, num_layers=5, d_model=32, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=48)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    params = transformer.init(CONFIG, 0)
    write_model(folder, CONFIG, params, max_positions=128, bos=1, eos=2)
    return folder, params


def test_config_says_what_the_model_is(exported):
    described = json.loads((exported[0] / "config.json").read_text())
    assert described["architectures"] == ["SmolLM3ForCausalLM"]
    assert described["no_rope_layers"] == [1, 1, 1, 0, 1]
    assert (described["num_attention_heads"], described["num_key_value_heads"], described["head_dim"]) == (
        4,
        2,
        8,
    )
    assert described["tie_word_embeddings"] is True


def test_weights_carry_over_to_the_bit(exported):
    folder, params = exported
    tensors = load_file(folder / "model.safetensors")
    assert sum(tensor.size for tensor in tensors.values()) == CONFIG.num_parameters
    x = np.random.default_rng(0).normal(size=32).astype(np.float32)
    query = np.array(params["layers"]["attention"]["query"][3])
    # the linear layer of the other side, weight @ x, against our einsum; heads in order
    by_weight = tensors["model.layers.3.self_attn.q_proj.weight"] @ x
    np.testing.assert_allclose(by_weight.reshape(4, 8), np.einsum("D,DNH->NH", x, query), rtol=1e-5)
    output = np.array(params["layers"]["attention"]["output"][2])
    mixed = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
    by_weight = tensors["model.layers.2.self_attn.o_proj.weight"] @ mixed.reshape(-1)
    np.testing.assert_allclose(by_weight, np.einsum("NH,NHD->D", mixed, output), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(tensors["model.embed_tokens.weight"], params["embedding"])
