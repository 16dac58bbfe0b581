"""The tokenize stage with a tokenizer that exists, and its way into an export."""

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from core.errors import UserError
from data.config import DataConfig, TokenizerConfig
from data.curate.engine import curate
from data.tokenize import open_split, open_tokenizer, require_tokenized, tokenize
from data.tokenizer import open_tokenizer_file
from data.tokenizer_hf import write_tokenizer
from lab import make_corpus
from tokenizer_lab import gpt2, llama2, llama2_model, llama3


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curated")
    curate(
        DataConfig(path=str(make_corpus(folder / "corpus", files=6)), heldout_fraction=0.3, workers=1), folder / "run"
    )
    return folder / "run"


@pytest.fixture
def workdir(curated, tmp_path):
    return shutil.copytree(curated, tmp_path / "run")


def encode(config, workdir, **options):
    return tokenize(config, workdir, workers=1, **options)


@pytest.mark.parametrize("family", [gpt2, llama3, llama2, llama2_model])
def test_a_given_tokenizer_encodes_every_document(family, workdir, tmp_path):
    given = open_tokenizer_file(family(tmp_path / "given") if family is not llama2_model else family(tmp_path))
    config = TokenizerConfig(path=str(given.path))
    summary = encode(config, workdir)
    require_tokenized(config, workdir)
    assert summary["vocab_size"] == given.vocab_size
    assert summary["not_lossless"] == 0
    tokenizer, shards = open_tokenizer(workdir), open_split(workdir, "train")
    assert tokenizer.fingerprint == given.fingerprint
    ids = shards.read(np.arange(1))[0].tolist()
    assert ids == given.document(given.decode(ids))


def test_an_export_has_the_files_to_the_bit(workdir, tmp_path):
    folder = llama3(tmp_path / "given")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|end_of_text|>"}')
    (folder / "model.safetensors").write_bytes(b"not a tokenizer's")
    encode(TokenizerConfig(path=str(folder)), workdir)
    shutil.rmtree(folder)
    tokenizer = open_tokenizer(workdir)
    assert len(tokenizer.stop_ids) == 2  # said by generation_config.json, which the export writes itself
    again = llama3(tmp_path / "again")
    (tmp_path / "export").mkdir()
    write_tokenizer(tmp_path / "export", tokenizer, 128)
    names = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"}
    assert {path.name for path in (tmp_path / "export").iterdir()} == names
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "export" / name).read_bytes() == (again / name).read_bytes()


def test_a_model_of_others_is_exported_with_ids_equal(workdir, tmp_path):
    path = llama2_model(tmp_path)
    encode(TokenizerConfig(path=str(path)), workdir)
    (tmp_path / "export").mkdir()
    write_tokenizer(tmp_path / "export", open_tokenizer(workdir), 128)
    assert (tmp_path / "export" / "tokenizer.model").read_bytes() == path.read_bytes()
    exported, raw = open_tokenizer_file(tmp_path / "export"), open_tokenizer_file(path)
    assert (exported.kind, exported.path.suffix) == ("bpe", ".json")
    text = "the model's  tokens\n\tin rows é漢"
    assert exported.document(text) == raw.document(text)


def test_a_tokenizer_that_changed_is_refused_or_rebuilt(workdir, tmp_path):
    folder = gpt2(tmp_path / "given")
    config = TokenizerConfig(path=str(folder))
    encode(config, workdir)
    encode(config, workdir)  # up to date
    settings = {**json.loads((folder / "tokenizer_config.json").read_text()), "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"files\.tokenizer_config\.json was"):
        encode(config, workdir)
    with pytest.raises(UserError, match=r"files\.tokenizer_config\.json was"):
        require_tokenized(config, workdir)
    with pytest.raises(UserError, match="tokenizer"):
        require_tokenized(TokenizerConfig(), workdir)
    encode(config, workdir, stale="set_aside")
    require_tokenized(config, workdir)
    shutil.rmtree(folder)
    require_tokenized(config, workdir)  # the copy serves


def test_what_cannot_be_taken_is_told_and_leaves_nothing(workdir, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        encode(TokenizerConfig(path=str(tmp_path / "never")), workdir)
    folder = gpt2(tmp_path / "given")
    with pytest.raises(UserError, match=r"'<\|im_end\|>' is not a special token of .*tokenizer.json"):
        encode(TokenizerConfig(path=str(folder), special=("<|im_end|>",)), workdir)
    assert not (workdir / "tokenizer").exists()


def test_a_trained_tokenizer_keeps_its_spec():
    """What earlier workdirs recorded: keys that are not given decide nothing."""
    assert TokenizerConfig(vocab_size=400).decides() == {"vocab_size": 400, "model": "bpe", "train_mb": 8.0}


def test_workers_open_it_themselves(workdir, tmp_path):
    config = TokenizerConfig(path=str(gpt2(tmp_path / "given")))
    assert tokenize(config, workdir, workers=2)["not_lossless"] == 0
