"""Logits of Hugging Face transformers, recorded by `tests/parity/run.py --write-golden`, beside ours."""

from pathlib import Path

import jax
import numpy as np
import pytest
from parity.models import compared, weights

from model import transformer
from model.config import ModelConfig
from model.hf import read_params, write_weights
from model.hf_config import from_hf, to_hf
from model.safetensors_file import read_header, read_tensor, write

GOLDEN = np.load(Path(__file__).with_name("golden_logits.npz"))
MODELS = compared()


def test_every_model_is_recorded():
    assert set(GOLDEN.files) == {"ids", *MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(tmp_path, name):
    """The same weights in the same kind of file, through our import."""
    made = weights(MODELS[name])
    write(tmp_path / "model.safetensors", {name: a.shape for name, a in made.items()}, "F32", made.__getitem__)
    described = to_hf(MODELS[name], max_positions=128, bos=1, eos=None, dtype="float32")
    config = from_hf(described, tmp_path / "config.json")
    params = read_params(tmp_path, config)

    found = logits(config, params, GOLDEN["ids"])
    np.testing.assert_allclose(found, GOLDEN[name], atol=1e-4, rtol=0)
    assert np.abs(GOLDEN[name]).max() > 1  # the bound means something

    (tmp_path / "ours").mkdir()
    write_weights(tmp_path / "ours", config, params)
    back = read_header(tmp_path / "ours" / "model.safetensors")
    assert back.keys() == made.keys()
    for tensor, place in back.items():
        np.testing.assert_array_equal(read_tensor(place), made[tensor])


def logits(config: ModelConfig, params: transformer.Params, ids: np.ndarray) -> np.ndarray:
    """Of one document."""

    @jax.jit
    def run(params, ids_BT):
        ones_BT = np.ones((1, len(ids)), np.int32)
        hidden = transformer.apply(config, params, ids_BT, ones_BT, np.arange(len(ids))[None]).hidden_BTD
        return transformer.logits(config, params, hidden[0])

    return np.asarray(run(params, ids[None]))
