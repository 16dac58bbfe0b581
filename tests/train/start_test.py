"""A run that begins with a model that exists: imported, looked at, continued, grown, exported again."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from core.files import read_json
from data.tokenizer_sentencepiece import SentencePieceTokenizer
from lab import ROOT, launch
from model import transformer
from model.config import MultiToken
from model.hf import read_params, write_model
from model.hf_config import read_config
from train.start import fill_in

CONFIG = ROOT / "experiments" / "continual.py"
SHORT = (
    "--config.train.steps=6", "--config.train.eval_every=0", "--config.train.checkpoint_every=3",
    "--config.optim.warmup_steps=1", "--config.eval.sample_tokens=4", "--config.eval.samples=1",
    "--config.batch.rows=4", "--config.batch.row_length=32", "--config.data.workers=1",
    "--config.data.recipe=()",
)  # fmt: skip


def flags(workdir, corpus, source, *more):
    return [
        f"--config={CONFIG}", f"--workdir={workdir}", f"--config.data.path={corpus}",
        f"--config.start.folder={source}", *SHORT, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def continued(tmp_path_factory, corpus, finished):
    """A workdir that imported what `finished` exported, and trained on."""
    workdir = tmp_path_factory.mktemp("continued") / "run"
    given = flags(workdir, corpus, finished / "export")
    looked = [launch(verb, *given) for verb in ("import", "export")]
    assert [result.returncode for result in looked] == [0, 0], looked[-1].stderr
    before = read_params(workdir / "export", read_config(workdir / "export"))
    result = launch(*given)
    assert result.returncode == 0, result.stderr
    return workdir, before


def test_what_is_imported_is_what_was_exported_to_the_bit(continued, finished):
    source = finished / "export"
    want = read_params(source, read_config(source))
    assert jax.tree.structure(want) == jax.tree.structure(continued[1])
    for ours, theirs in zip(jax.tree.leaves(continued[1]), jax.tree.leaves(want)):
        np.testing.assert_array_equal(ours, theirs)


def test_training_goes_on_from_there(continued, finished):
    workdir, before = continued
    after = read_params(workdir / "export", read_config(workdir / "export"))
    change = np.abs(np.asarray(after["embedding"]) - before["embedding"])
    assert 0 < change.mean() < 0.05  # six steps away from it, not another model
    losses = [json.loads(line).get("loss") for line in (workdir / "train" / "metrics.jsonl").read_text().splitlines()]
    final = [json.loads(line) for line in (finished / "train" / "metrics.jsonl").read_text().splitlines()]
    assert losses[0] < next(entry["loss"] for entry in final if "loss" in entry) - 0.5  # fresh parameters had that
    assert read_json(workdir / "tokenizer" / "manifest.json")["spec"]["files"]


def test_an_import_from_other_weights_is_refused_or_replaced(continued, corpus, finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(continued[0], workdir)
    other = tmp_path / "other"
    shutil.copytree(finished / "export", other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-3] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    result = launch("import", *flags(workdir, corpus, other))
    assert result.returncode == 2
    assert "import" in result.stderr.splitlines()[-1]
    result = launch("generate", *flags(workdir, corpus, other))
    assert result.returncode == 2, result.stdout
    assert "import was made from something else (files.model.safetensors" in result.stderr.splitlines()[-1]


def test_once_imported_the_folder_may_move_or_go(corpus, finished, tmp_path):
    workdir, source, moved = tmp_path / "run", tmp_path / "source", tmp_path / "moved"
    text = ("--prompt=a", "--max-tokens=4")
    shutil.copytree(finished / "export", source)
    assert launch("import", *flags(workdir, corpus, source)).returncode == 0
    said = launch("generate", *flags(workdir, corpus, source), *text)
    assert said.returncode == 0, said.stderr
    source.rename(moved)
    for folder in (source, moved):
        assert launch("import", *flags(workdir, corpus, folder)).returncode == 0
        assert launch("generate", *flags(workdir, corpus, folder), *text).stdout == said.stdout
    for asked, folder in ((tmp_path / "other", source), (workdir, tmp_path / "mistyped")):
        result = launch("generate", *flags(asked, corpus, folder))
        assert result.returncode == 2
        assert f"{folder}/config.json does not exist" in result.stderr.splitlines()[-1]


def test_an_import_that_lost_its_parameters_is_made_again(continued, corpus, finished, tmp_path):
    workdir, given = tmp_path / "run", flags(tmp_path / "run", corpus, finished / "export")
    shutil.copytree(continued[0], workdir)
    shutil.rmtree(workdir / "train")
    (manifest,) = (workdir / "import" / "checkpoints" / "0").glob("manifest.json")
    manifest.write_text("{}")
    result = launch("generate", *given, "--prompt=a", "--max-tokens=2")
    assert result.returncode == 2
    assert "run `launch.py import`" in result.stderr.splitlines()[-1]
    assert launch("import", *given).returncode == 0
    assert launch("generate", *given, "--prompt=a", "--max-tokens=2").returncode == 0
    assert list((workdir / "import" / "checkpoints").glob("0.rolled-back-*"))


def test_an_import_is_exported_again_as_the_config_now_has_it(continued, corpus, finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(continued[0], workdir)
    shutil.rmtree(workdir / "train")
    stretched = ("--config.model.rope_scaling.kind=interpolation", "--config.model.rope_scaling.factor=2")
    for more, factor in (((), 1), (stretched, 2)):
        result = launch("export", *flags(workdir, corpus, finished / "export", *more))
        assert result.returncode == 0, result.stderr
        assert read_config(workdir / "export").rope_scaling.factor == factor


def test_imported_modules_draft_and_are_exported_where_asked(corpus, finished, tmp_path):
    source, workdir = tmp_path / "source", tmp_path / "run"
    shutil.copytree(finished / "export", source)
    config = read_config(source)
    model = dataclasses.replace(config, multi_token=MultiToken("sequential", 3))
    params = transformer.init(model, 0) | read_params(source, config)
    write_model(source, model, params, max_positions=64, bos=1, eos=2)
    given = flags(workdir, corpus, source)
    assert launch("import", *given).returncode == 0
    text = ("--prompt=a", "--max-tokens=8", "--config.eval.temperature=0")
    plain, drafted = (launch("generate", *given, *text, f"--config.eval.drafts={n}") for n in (0, 2))
    assert drafted.returncode == 0, drafted.stderr
    assert drafted.stdout == plain.stdout
    assert "drafts accepted" in drafted.stderr
    for more, weights in (((), finished / "export"), (("--config.export.multi_token=True",), source)):
        result = launch("export", *given, *more)
        assert result.returncode == 0, result.stderr
        found, want = (folder / "model.safetensors" for folder in (workdir / "export", weights))
        assert found.read_bytes() == want.read_bytes()


@pytest.mark.parametrize("padding", [0, 30])  # rows of the model beyond its tokenizer's ids
def test_a_grown_vocabulary_keeps_old_ids_and_begins_with_means(tmp_path, corpus, finished, padding):
    source, workdir = finished / "export", tmp_path / "run"
    if padding:
        source = tmp_path / "padded"
        shutil.copytree(finished / "export", source)
        config = read_config(source)
        params = read_params(source, config, place=np.asarray)
        table = np.pad(params["embedding"], ((0, padding), (0, 0)), constant_values=7)
        config = dataclasses.replace(config, vocab_size=len(table))
        write_model(source, config, {**params, "embedding": table}, max_positions=64, bos=1, eos=2)
    old = SentencePieceTokenizer(source / "tokenizer.model")
    size = old.vocab_size + 20
    given = flags(workdir, corpus, source, f"--config.tokenizer.extend_to={size}")
    for verb in ("curate", "tokenize", "import", "export"):
        result = launch(verb, *given)
        assert result.returncode == 0, result.stderr
    new = SentencePieceTokenizer(workdir / "tokenizer" / "tokenizer.model")
    assert new.vocab_size == size
    ids = range(old.vocab_size)
    assert [new.processor.id_to_piece(i) for i in ids] == [old.processor.id_to_piece(i) for i in ids]
    config = read_config(workdir / "export")
    table = np.asarray(read_params(workdir / "export", config)["embedding"])
    before = np.asarray(read_params(source, read_config(source))["embedding"])
    np.testing.assert_array_equal(table[: old.vocab_size], before[: old.vocab_size])
    np.testing.assert_array_equal(table[size:], before[size:])
    for identifier in range(old.vocab_size, size):
        pieces = old.processor.encode(new.processor.id_to_piece(identifier).replace("\u2581", " "))
        np.testing.assert_allclose(table[identifier], before[pieces].mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--config.start.folder=/nowhere"], "/nowhere/config.json does not exist"),
        (["--config.start.folder="], "start.folder is empty"),
        (["--config.start.new_rows=zeros"], "is not a choice"),
        (["--config.model.num_layers=3"], "model.num_layers=3, but the model of"),
        (["--config.tokenizer.extend_to=many"], "must be an integer"),
    ],
)
def test_mistakes_are_one_line(tmp_path, corpus, finished, more, message):
    result = launch("import", *flags(tmp_path / "run", corpus, finished / "export", *more))
    assert result.returncode == 2, result.stderr
    assert message in result.stderr.splitlines()[-1]


def test_keys_of_the_config_win_over_the_folder(finished, tmp_path):
    source = finished / "export"
    tree = fill_in({"start": {"folder": str(source)}, "model": {"dtype": "bfloat16"}}, tmp_path)
    assert tree["model"]["dtype"] == "bfloat16"
    assert tree["model"]["d_model"] == read_config(source).d_model
    assert tree["tokenizer"]["path"] == str(source)
    fresh = {"model": {"d_model": 8}, "start": {"folder": ""}}
    assert fill_in(fresh, tmp_path) == fresh
