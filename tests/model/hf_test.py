"""Weights of every family there and back, to the bit, and the one line about each folder that is none."""

import dataclasses
import functools
import json
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
from hf_lab import FAMILIES, LLAMA, SMOLLM3, assert_same, edit, export, random_params
from safetensors.numpy import load_file, save_file

from core.errors import UserError
from model import hf, transformer
from model.hf import read_params
from model.hf_config import read_config
from model.safetensors_file import read_rows


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A SmolLM3 of random weights; not to be changed."""
    folder = tmp_path_factory.mktemp("export")
    params = random_params(SMOLLM3)
    export(folder, SMOLLM3, params)
    return folder, params


@pytest.fixture
def folder(tmp_path, exported):
    """A copy of it to damage."""
    for path in exported[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_comes_back_to_the_bit(tmp_path, name):
    config, params = FAMILIES[name], random_params(FAMILIES[name])
    export(tmp_path, config, params)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == name.split(",")[0]
    assert read_config(tmp_path) == config
    assert_same(params, read_params(tmp_path, config))
    theirs = load_file(tmp_path / "model.safetensors")
    assert sum(tensor.size for tensor in theirs.values()) == config.num_parameters


def test_bfloat16_weights_come_back_to_the_bit(tmp_path):
    params = random_params(LLAMA, ml_dtypes.bfloat16)
    export(tmp_path, LLAMA, params, dtype="bfloat16")
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert all(tensor.dtype == ml_dtypes.bfloat16 for tensor in load_file(tmp_path / "model.safetensors").values())
    assert_same(params, read_params(tmp_path, LLAMA))


def test_config_says_what_the_model_is(exported):
    described = json.loads((exported[0] / "config.json").read_text())
    assert described["architectures"] == ["SmolLM3ForCausalLM"]
    assert described["no_rope_layers"] == [1, 1, 1, 0, 1]
    assert [described[f"num_{kind}_heads"] for kind in ("attention", "key_value")] == [4, 2]
    assert described["head_dim"] == 6
    assert described["tie_word_embeddings"] is True


def test_linear_layers_there_compute_what_ours_do(exported):
    """weight @ x, against our einsum, with the heads in order."""
    folder, params = exported
    tensors, random = load_file(folder / "model.safetensors"), np.random.default_rng(0)
    x, mixed = random.normal(size=16).astype(np.float32), random.normal(size=(4, 6)).astype(np.float32)
    layers = params["layers"]
    query = tensors["model.layers.3.self_attn.q_proj.weight"] @ x
    np.testing.assert_allclose(
        query.reshape(4, 6), np.einsum("D,DNH->NH", x, layers["attention"]["query"][3]), rtol=1e-4, atol=1e-5
    )
    output = tensors["model.layers.2.self_attn.o_proj.weight"] @ mixed.reshape(-1)
    np.testing.assert_allclose(
        output, np.einsum("NH,NHD->D", mixed, layers["attention"]["output"][2]), rtol=1e-4, atol=1e-5
    )
    gate = tensors["model.layers.4.mlp.gate_proj.weight"] @ x
    np.testing.assert_allclose(gate, x @ layers["feed_forward"]["gate"][4], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("limit", "files"), [(1, 47), (4000, None), (10**9, 1)])
def test_large_models_are_written_in_files_with_an_index(tmp_path, exported, monkeypatch, limit, files):
    monkeypatch.setattr(hf, "SHARD_BYTES", limit)
    _, params = exported
    export(tmp_path, SMOLLM3, params)
    written = sorted(tmp_path.glob("*.safetensors"))
    assert len(written) == files if files else 1 < len(written) < 47
    if len(written) > 1:
        index = json.loads((tmp_path / hf.INDEX).read_text())
        assert index["metadata"]["total_size"] == 4 * SMOLLM3.num_parameters
        assert set(index["weight_map"].values()) == {path.name for path in written}
        assert written[0].name == f"model-00001-of-{len(written):05d}.safetensors"
        for path in written:  # a tensor may be larger than the limit, two may not
            tensors = load_file(path)
            assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= limit
    assert_same(params, read_params(tmp_path, SMOLLM3))


def test_weights_of_other_precisions_are_read(folder, exported):
    tensors = load_file(folder / hf.SINGLE)
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float64):
        half = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
        save_file(half, folder / hf.SINGLE)
        expected = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype).astype(np.float32), exported[1])
        assert_same(expected, read_params(folder, SMOLLM3))


def test_a_tied_head_that_is_stored_all_the_same(folder, exported, monkeypatch):
    monkeypatch.setattr(hf, "read_rows", functools.partial(read_rows, rows=7))
    edit(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}))
    assert_same(exported[1], read_params(folder, SMOLLM3))

    def differ(tensors):
        tensors["lm_head.weight"][-1, -1] += 1

    edit(folder, differ)
    with pytest.raises(UserError, match=r"holds tensor lm_head\.weight, which a model of its config\.json has not"):
        read_params(folder, SMOLLM3)


def test_tables_in_old_llama_files_are_passed_over(folder, exported):
    def add(tensors):
        tensors.update({f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32) for i in range(5)})

    edit(folder, add)
    assert_same(exported[1], read_params(folder, SMOLLM3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), r"lacks tensor model\.norm\.weight$"),
        (
            lambda t: [t.pop(f"model.layers.{i}.mlp.up_proj.weight") for i in (1, 2)],
            r"lacks tensor model\.layers\.1\.mlp\.up_proj\.weight \(and 1 more\)",
        ),
        (
            lambda t: t.update({"model.layers.5.mlp.up_proj.weight": np.ones((20, 16), np.float32)}),
            r"holds tensor model\.layers\.5\.mlp\.up_proj\.weight, which a model of its config\.json has not",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.ones(24, np.float32)}),
            r"holds tensor model\.layers\.0\.self_attn\.q_proj\.bias",
        ),
        (
            lambda t: t.update({"model.embed_tokens.weight": np.ones((41, 16), np.float32)}),
            r"embed_tokens\.weight has shape \[41, 16\], config\.json says \[40, 16\]",
        ),
        (
            lambda t: t.update({"model.layers.0.mlp.up_proj.weight": np.ones((16, 20), np.float32)}),
            r"up_proj\.weight has shape \[16, 20\], config\.json says \[20, 16\]",
        ),
        (lambda t: t.update({"x": np.ones(3, np.int64)}), "tensor x has dtype I64; Quintet reads"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, change, message):
    edit(folder, change)
    with pytest.raises(UserError, match=message):
        read_params(folder, SMOLLM3)


def test_an_untied_config_needs_its_head(folder):
    with pytest.raises(UserError, match=r"lacks tensor lm_head\.weight"):
        read_params(folder, dataclasses.replace(SMOLLM3, tied_head=False))


def test_truncated_weights_are_refused(folder):
    whole = (folder / hf.SINGLE).read_bytes()
    for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        (folder / hf.SINGLE).write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"model\.safetensors is cut short"):
            read_params(folder, SMOLLM3)


def test_pickled_weights_are_refused(folder):
    (folder / hf.SINGLE).unlink()
    with pytest.raises(UserError, match=r"holds neither model\.safetensors nor model\.safetensors\.index\.json"):
        read_params(folder, SMOLLM3)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"weights as pytorch_model\.bin, a pickle, which can run code"):
        read_params(folder, SMOLLM3)


@pytest.fixture
def sharded(tmp_path, exported, monkeypatch):
    monkeypatch.setattr(hf, "SHARD_BYTES", 10_000)
    export(tmp_path, SMOLLM3, exported[1])
    return tmp_path


def edit_index(folder, change):
    index = json.loads((folder / hf.INDEX).read_text())
    change(index)
    (folder / hf.INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", ".", "", "./model-00001-of-00004.safetensors"])
def test_an_index_that_leaves_the_folder_is_refused(sharded, name):
    edit_index(sharded, lambda index: index["weight_map"].update({"model.norm.weight": name}))
    with pytest.raises(UserError, match=r"index\.json names .*, which is not a file of this folder"):
        read_params(sharded, SMOLLM3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.pop("weight_map"), "weight_map is missing or damaged"),
        (lambda index: index.update(weight_map=["a"]), "weight_map is missing or damaged"),
        (lambda index: index["weight_map"].update(x=3), "weight_map is missing or damaged"),
        (lambda index: index["weight_map"].update(x="absent.safetensors"), r"absent\.safetensors does not exist"),
        (lambda index: index["weight_map"].update(x="nul\0"), "does not exist"),
        (
            lambda index: index["weight_map"].update(x="model-00001-of-00005.safetensors"),
            r"model-00001-of-00005\.safetensors lacks tensor x, which model\.safetensors\.index\.json says it holds",
        ),
        (
            lambda index: index["weight_map"].pop("model.norm.weight"),
            r"holds tensor model\.norm\.weight, which model\.safetensors\.index\.json does not say",
        ),
        (
            lambda index: index["weight_map"].update({"model.norm.weight": "model-00001-of-00005.safetensors"}),
            r"holds tensor model\.norm\.weight, which model\.safetensors\.index\.json does not say",
        ),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(sharded, change, message):
    edit_index(sharded, change)
    with pytest.raises(UserError, match=message):
        read_params(sharded, SMOLLM3)


def test_two_sets_of_weights_in_a_folder_are_refused(sharded, exported):
    (sharded / hf.SINGLE).write_bytes((exported[0] / hf.SINGLE).read_bytes())
    with pytest.raises(UserError, match=r"holds both .*; remove the one that is out of date"):
        read_params(sharded, SMOLLM3)


@pytest.mark.parametrize(
    "config", [LLAMA, dataclasses.replace(LLAMA, vocab_size=60_000)], ids=["layers", "embedding"]
)
@pytest.mark.parametrize("head", ["none", "stored"])
def test_an_import_holds_little_beside_its_destination(tmp_path, config, head):
    """Less than 1.3 of the largest leaf; NumPy tells tracemalloc of its arrays."""
    config = dataclasses.replace(config, num_layers=40, d_model=64, d_ff=256)
    params = random_params(config)
    export(tmp_path, config, params)
    if head == "stored":
        edit(tmp_path, lambda tensors: tensors.update({hf.HEAD: tensors[hf.EMBEDDING].copy()}))
    leaves = [leaf.nbytes for leaf in jax.tree.leaves(params)]
    del params
    transformer.abstract(config)
    held = []  # each leaf is copied, as to a device, and the original let go

    tracemalloc.start()
    read_params(tmp_path, config, place=lambda leaf: held.append(leaf.copy()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(leaves) < peak < sum(leaves) + 1.3 * max(leaves)
