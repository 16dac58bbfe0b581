"""Modules that predict further tokens in Hugging Face folders: their names, there and back, and what is refused."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from hf_lab import FAMILIES, LLAMA, assert_same, edit, export, random_params
from safetensors.numpy import load_file

from core.errors import UserError
from model import hf, multi_token
from model.config import MultiToken
from model.hf import read_params
from model.hf_config import from_hf, read_config

KINDS = {"sequential": MultiToken("sequential", 3), "parallel": MultiToken("parallel", 3)}
MODULES = pytest.mark.parametrize("kind", KINDS)


def with_modules(config, kind):
    return dataclasses.replace(config, multi_token=KINDS[kind])


@pytest.fixture
def folder(tmp_path, kind):
    """A Llama of three layers and two modules, whose output layer is the embedding, to damage."""
    export(tmp_path, with_modules(LLAMA, kind), random_params(with_modules(LLAMA, kind)))
    return tmp_path


@MODULES
@pytest.mark.parametrize("name", FAMILIES)
def test_modules_come_back_to_the_bit_beside_the_same_trunk(tmp_path, name, kind):
    config = with_modules(FAMILIES[name], kind)
    params = random_params(config)
    for part in ("kept", "dropped"):
        (tmp_path / part).mkdir()
    export(tmp_path / "kept", config, params)
    assert read_config(tmp_path / "kept") == config
    assert_same(params, read_params(tmp_path / "kept", config))
    export(tmp_path / "dropped", FAMILIES[name], params)
    kept, dropped = (load_file(tmp_path / part / hf.SINGLE) for part in ("kept", "dropped"))
    assert all(np.array_equal(kept[tensor], dropped[tensor]) for tensor in dropped)
    beside = {tensor.split(".")[2 if kind == "sequential" else 1] for tensor in kept.keys() - dropped.keys()}
    L = config.num_layers
    assert beside == {str(number) for number in ((L, L + 1) if kind == "sequential" else (0, 1))}
    assert read_config(tmp_path / "dropped") == FAMILIES[name]


BLOCK = [*(f"self_attn.{name}_proj" for name in "qkvo"), *(f"mlp.{name}_proj" for name in ("gate", "up", "down"))]
BLOCK += ["input_layernorm", "post_attention_layernorm"]
OWN = {
    "sequential": ["enorm", "hnorm", "eh_proj", "embed_tokens", "shared_head.norm", "shared_head.head"],
    "parallel": ["norm"],
}


@MODULES
def test_names_are_those_of_published_modules(folder, kind):
    """DeepSeek-V3 numbers them on from its layers; Gloeckle et al. call them extra_heads."""
    described, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / hf.SINGLE)
    said = {key: described.get(key) for key in ("num_nextn_predict_layers", "n_future_tokens")}
    assert list(said.values()) == ([2, None] if kind == "sequential" else [None, 3])
    for number in range(2):
        at = f"model.layers.{3 + number}." if kind == "sequential" else f"extra_heads.{number}."
        found = {name.removeprefix(at) for name in tensors if name.startswith(at)}
        assert found == {f"{name}.weight" for name in BLOCK + OWN[kind]}


def test_the_projection_reads_the_embedding_before_the_stream(tmp_path):
    """As published modules do, where ours reads it behind."""
    config = with_modules(LLAMA, "sequential")
    params, rng = random_params(config), np.random.default_rng(1)
    export(tmp_path, config, params)
    x_D, token_D = (rng.normal(size=config.d_model).astype(np.float32) for _ in range(2))
    for number in range(2):
        layer = jax.tree.map(lambda leaf, i=number: leaf[i], params["multi_token"]["layers"])
        ours = nnx.merge(multi_token.graph(config), layer).join(x_D[None, None], token_D[None, None])
        tensors = load_file(tmp_path / hf.SINGLE)
        at = f"model.layers.{3 + number}"

        def norm(x, name, at=at, tensors=tensors):
            return x / np.sqrt(np.mean(x**2) + config.norm_epsilon) * tensors[f"{at}.{name}.weight"]

        both = np.concatenate([norm(token_D, "enorm"), norm(x_D, "hnorm")])
        np.testing.assert_allclose(tensors[f"{at}.eh_proj.weight"] @ both, ours[0, 0], rtol=1e-4, atol=1e-5)


SHARED = ("embed_tokens", "shared_head.head")


@pytest.mark.parametrize("tied", [True, False])
def test_tables_that_modules_share_may_be_left_out_and_must_be_the_trunks(tmp_path, tied):
    config = dataclasses.replace(with_modules(LLAMA, "sequential"), tied_head=tied)
    params = random_params(config)
    export(tmp_path, config, params)
    tensors = load_file(tmp_path / hf.SINGLE)
    for name, of in zip(SHARED, (hf.EMBEDDING, hf.EMBEDDING if tied else hf.HEAD)):
        np.testing.assert_array_equal(tensors[f"model.layers.4.{name}.weight"], tensors[of])

    def differ(tensors):
        tensors["model.layers.4.shared_head.head.weight"][-1, -1] += 1

    edit(tmp_path, differ)
    message = r"holds tensor model\.layers\.4\.shared_head\.head\.weight, which a model of its config\.json has not$"
    with pytest.raises(UserError, match=message):
        read_params(tmp_path, config)
    edit(
        tmp_path, lambda tensors: [tensors.pop(f"model.layers.{i}.{name}.weight") for i in (3, 4) for name in SHARED]
    )
    assert_same(params, read_params(tmp_path, config))


DAMAGE = {
    "lost": (
        "sequential",
        lambda t: [t.pop(name) for name in list(t) if name.startswith(("model.layers.3", "model.layers.4"))],
        r"lacks tensor model\.layers\.3\.\S+ \(and 25 more\); if it lost its modules, remove num_nextn",
    ),
    "lost heads": (
        "parallel",
        lambda t: [t.pop(name) for name in list(t) if name.startswith("extra_heads")],
        r"lacks tensor extra_heads\.0\.\S+ \(and 19 more\); if it lost its modules, remove n_future_tokens",
    ),
    "a norm": (
        "sequential",
        lambda t: t.pop("model.layers.4.hnorm.weight"),
        r"lacks tensor model\.layers\.4\.hnorm\.weight; if it lost its modules",
    ),
    "of the trunk": ("sequential", lambda t: t.pop("model.norm.weight"), r"lacks tensor model\.norm\.weight$"),
    "shape": (
        "sequential",
        lambda t: t.update({"model.layers.3.eh_proj.weight": np.ones((32, 16), np.float32)}),
        r"eh_proj\.weight has shape \[32, 16\], config\.json says \[16, 32\]$",
    ),
    "one too many": (
        "parallel",
        lambda t: t.update({"extra_heads.2.norm.weight": np.ones(16, np.float32)}),
        r"holds tensor extra_heads\.2\.norm\.weight, which a model of its config\.json has not$",
    ),
    "shared tables of another size": (
        "sequential",
        lambda t: t.update({"model.layers.3.embed_tokens.weight": np.ones((41, 16), np.float32)}),
        r"holds tensor model\.layers\.3\.embed_tokens\.weight, which a model of its config\.json has not$",
    ),
}


@pytest.mark.parametrize(
    ("kind", "change", "message"), [pytest.param(*case, id=name) for name, case in DAMAGE.items()]
)
def test_modules_that_do_not_fit_are_named(folder, kind, change, message):
    edit(folder, change)
    with pytest.raises(UserError, match=message):
        read_params(folder, with_modules(LLAMA, kind))


DESCRIBED = {
    "model_type": "llama", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
}  # fmt: skip


@pytest.mark.parametrize(
    "keys", [{}, {"num_nextn_predict_layers": 0}, {"n_future_tokens": 1}, {"n_future_tokens": None}]
)
def test_no_modules_are_none(keys):
    assert from_hf(DESCRIBED | keys, Path("config.json")).multi_token == MultiToken()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_nextn_predict_layers": -1}, "num_nextn_predict_layers=-1 with n_future_tokens=1 is not supported"),
        ({"n_future_tokens": 0}, "n_future_tokens=0 is not supported"),
        ({"num_nextn_predict_layers": 10**9}, "up to 9999"),
        ({"n_future_tokens": 10**9}, "up to 9999"),
        ({"num_nextn_predict_layers": 1, "n_future_tokens": 2}, "one of them may say how many modules there are"),
        ({"num_nextn_predict_layers": "one"}, "num_nextn_predict_layers"),
    ],
)
def test_numbers_of_modules_that_cannot_be_are_refused(keys, message):
    with pytest.raises(UserError, match=message):
        from_hf(DESCRIBED | keys, Path("config.json"))
