import dataclasses

import jax
import pytest

from core.config import override, parse
from core.errors import UserError
from model import presets, transformer
from model.config import ModelConfig, RopeScaling
from model.presets import PRESETS

# Counted from the published weights.
SIZES = {
    "smollm3-3b": 3_075_098_624,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "llama-2-7b": 6_738_415_616,
    "llama-3.2-1b": 1_235_814_400,
    "monad": 56_656_128,
    "baguettotron": 320_956_992,
    "gemma-2-2b": 2_614_341_888,
    "qwen3-0.6b": 596_049_920,
}


@pytest.mark.parametrize("name", SIZES)
def test_presets_have_their_published_sizes(name):
    config = presets.preset(name)
    assert config.num_parameters == SIZES[name]
    assert sum(leaf.size for leaf in jax.tree.leaves(transformer.abstract(config))) == SIZES[name]


def test_every_preset_has_a_size():
    assert set(SIZES) == set(PRESETS)


def test_smollm3_has_no_rope_in_every_fourth_layer():
    assert presets.preset("smollm3-3b").uses_rope == (True, True, True, False) * 9


def test_gemma_slides_in_every_other_layer():
    assert presets.preset("gemma-2-2b").windows == (4096, 0) * 13


@pytest.mark.parametrize("name", SIZES)
def test_an_experiment_takes_a_preset_and_changes_a_key(name):
    tree = presets.config(name)
    assert parse(ModelConfig, tree.to_dict(), "model") == PRESETS[name]
    tree.dtype = "bfloat16"
    tree.rope_scaling.kind = "yarn"
    override(tree, "rope_scaling.factor", "2")
    override(tree, "rope_scaling.original_length", "65536")
    override(tree, "attention_soft_cap", "20.0")
    expected = dataclasses.replace(
        PRESETS[name],
        dtype="bfloat16",
        attention_soft_cap=20.0,
        rope_scaling=dataclasses.replace(PRESETS[name].rope_scaling, kind="yarn", factor=2.0, original_length=65_536),
    )
    assert parse(ModelConfig, tree.to_dict(), "model") == expected
    assert PRESETS[name].rope_scaling in (RopeScaling(), PRESETS["llama-3.2-1b"].rope_scaling)  # untouched


def test_a_wrong_nested_key_is_named():
    tree = presets.config("monad")
    override(tree, "rope_scaling.factors", "2")
    with pytest.raises(UserError, match=r"unknown config key model\.rope_scaling\.factors; did you mean factor\?"):
        parse(ModelConfig, tree.to_dict(), "model")
    with pytest.raises(UserError, match=r"config model.rope_scaling: rope_scaling: factor=2.0 needs a kind"):
        parse(ModelConfig, {**presets.config("monad"), "rope_scaling": {"factor": 2.0}}, "model")


@pytest.mark.parametrize(("name", "near"), [("smollm3", "smollm3-3b"), ("gemma2-2b", "gemma-2-2b")])
def test_an_unknown_preset_names_the_nearest(name, near):
    with pytest.raises(UserError, match=f"unknown preset '{name}'; did you mean {near}"):
        presets.preset(name)
