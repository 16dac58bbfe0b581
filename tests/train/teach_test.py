"""The teach stage: what is stored is what the teacher predicts, whatever stops it."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from core.files import read_json
from data.config import DataConfig, TokenizerConfig
from data.curate.engine import curate
from data.packing import Piece
from data.targets import open_targets
from data.tokenize import open_split, open_tokenizer, tokenize
from data.tokenizer_hf import write_tokenizer
from data.windows import windows
from lab import make_corpus
from model import transformer
from model.config import ModelConfig
from model.hf import write_model
from train import teach as module
from train.compress import draw, place_keys
from train.config import TeachConfig
from train.teach import require_same_teacher, teach

# Two rows of the embedding are no ids of the tokenizer.
MODEL = ModelConfig(322, 2, 32, num_heads=2, num_kv_heads=1, head_dim=16, d_ff=32, init_std=0.3, final_soft_cap=None)


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory):
    """A workdir of tokens of documents of many lengths, one added later, and the folder of a teacher."""
    folder = tmp_path_factory.mktemp("taught")
    corpus = make_corpus(folder / "corpus", files=9, sentences=3)
    make_corpus(folder / "more", files=2, sentences=20, seed=1)
    data = DataConfig(path=str(corpus), heldout_fraction=0.1, shards=2, workers=1, recipe=())
    data = dataclasses.replace(data, added=({"more": str(folder / "more")},))
    curate(data, folder / "run")
    tokenize(TokenizerConfig(vocab_size=320), folder / "run", added=1, workers=1)
    teacher, tokenizer = folder / "teacher", open_tokenizer(folder / "run")
    ends = {"bos": tokenizer.bos, "eos": tokenizer.eos, "stop_ids": tokenizer.stop_ids}
    write_model(teacher, MODEL, params(), max_positions=256, dtype="float32", **ends)
    write_tokenizer(teacher, tokenizer, 64)
    return folder


@pytest.fixture
def workdir(tokenized, tmp_path):
    return shutil.copytree(tokenized / "run", tmp_path / "run")


def config_of(tokenized, **changes):
    return TeachConfig(
        **{"teacher": str(tokenized / "teacher"), "context": 32, "dtype": "float32", "rows": 3, **changes}
    )


def stored(workdir, added=0):
    """Ids and probabilities of every document."""
    shards = open_split(workdir, "train", added)
    targets = open_targets(workdir, shards, added)
    lengths = shards.lengths.tolist()
    return [targets.row([Piece(d, 0, n, 0, n - 1)], n) for d, n in enumerate(lengths)], shards


params = functools.cache(lambda: transformer.init(MODEL, 0))


@functools.partial(jax.jit, static_argnums=2)
def probabilities(params, ids_1T, temperature):
    """Of one window alone, with nothing else in its row."""
    hidden = transformer.apply(MODEL, params, ids_1T, jnp.ones_like(ids_1T), jnp.arange(ids_1T.shape[1])[None])
    return jax.nn.softmax(transformer.logits(MODEL, params, hidden.hidden_BTD)[0, :, :320] / temperature)


def expected(ids, context, overlap, temperature=1.0):
    """Of every place of a document, window by window, in the plainest way."""
    found_PV = np.zeros((len(ids) - 1, 320), np.float32)
    for begin, first in windows(len(ids), context, overlap):
        end = min(begin + context, len(ids) - 1)
        padded = np.zeros((1, context), np.int32)
        padded[0, : end - begin] = ids[begin:end]
        found_PV[first:end] = probabilities(params(), padded, temperature)[first - begin : end - begin]
    return found_PV


@pytest.mark.parametrize("changes", [{}, {"overlap": 0.0, "temperature": 2.0}, {"context": 256, "rows": 2}])
def test_the_largest_are_those_of_the_teacher(tokenized, workdir, changes):
    """Of documents longer and shorter than a window, among them those that were added."""
    config = config_of(tokenized, method="top_k", tokens=6, **changes)
    teach(config, workdir, added=1)
    found, shards = stored(workdir, added=1)
    assert len(found) > 8
    for own, ids in zip(found, shards.read(np.arange(len(shards)))):
        probs_PV = expected(ids, config.context, config.overlap, config.temperature)
        np.testing.assert_allclose(own.probs_Pk[:-1], -np.sort(-probs_PV)[:, :6], rtol=1e-3)
        chosen = np.take_along_axis(probs_PV, own.ids_Pk[:-1], 1)
        np.testing.assert_allclose(own.probs_Pk[:-1], chosen, rtol=1e-3)
        assert not own.probs_Pk[-1].any()  # the last token of a document predicts nothing


def test_draws_are_those_of_each_document_and_place(tokenized, workdir):
    """As drawn of a document alone; a last bit of a probability may move one of 10,000 draws."""
    config = config_of(tokenized, tokens=20, seed=5)
    teach(config, workdir)
    found, shards = stored(workdir)
    longest, moved, of_batch = int(shards.lengths.max()), [], jax.jit(draw, static_argnums=2)
    for document, (own, ids) in enumerate(zip(found, shards.read(np.arange(len(shards))))):
        probs_PV = np.resize(expected(ids, 32, 0.5), (longest, 320))
        name = module.derive_seed(shards.document_id(document)) % (1 << 32)
        keys = place_keys(5, np.full(longest, name, np.uint32), np.arange(longest))
        for drawn, kept, share in zip(np.array(of_batch(probs_PV, keys, 20))[: len(ids) - 1], *own):
            counts = np.bincount(drawn, minlength=320)
            moved.append(np.abs(np.bincount(kept, share * 20, minlength=320) - counts).sum() / 40)
    assert np.mean(moved) < 1e-4


class Killed(BaseException):
    """In place of a kill."""


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix == ".array_record"}


def test_what_was_stopped_goes_on_and_ends_in_the_same_bytes(tokenized, workdir, monkeypatch, tmp_path):
    """Stopped after each batch in turn; shards that are done are not computed again."""
    config, batches = config_of(tokenized, tokens=10), []
    monkeypatch.setattr(module, "BATCHES", 1)
    made = module.make_predict(config, module.open_teacher(config), module.Form("sample", 10, 320))

    def stop_after(number):
        begun = len(batches)

        def predict(batch):
            if len(batches) - begun == number:
                raise Killed
            batches.append(batch)
            return made(batch)

        monkeypatch.setattr(module, "make_predict", lambda *_: predict)

    undisturbed = shutil.copytree(workdir, tmp_path / "undisturbed")
    stop_after(1000)
    teach(config, undisturbed, added=1)
    needed = len(batches)
    assert needed > 20
    lives = []
    while not lives or lives[-1] is Killed:
        stop_after(needed // 2)
        try:
            lives.append(teach(config, workdir, added=1))
        except Killed:
            lives.append(Killed)
    assert len(lives) > 2
    for place in ("targets", "added-1/targets"):
        assert bytes_of(workdir / place) == bytes_of(undisturbed / place)
    done = len(batches)
    teach(config, workdir, added=1)
    assert len(batches) == done  # up to date


def test_other_settings_are_refused_and_made_anew_if_asked(tokenized, workdir):
    teach(config_of(tokenized), workdir)
    with pytest.raises(UserError, match=r"targets was made from something else \(teach.tokens was 50, is 20\)"):
        teach(config_of(tokenized, tokens=20), workdir)
    teach(config_of(tokenized, rows=6), workdir)  # decides nothing
    teach(config_of(tokenized, tokens=20), workdir, stale="set_aside")
    assert read_json(workdir / "targets" / "manifest.json")["spec"]["teach"]["tokens"] == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": ""}, "config teach.teacher is empty; name"),
        ({"teacher": "/nowhere"}, "config teach.teacher=/nowhere does not exist; name the workdir"),
        ({"context": 257}, "teach.context=257 is more than the 256 tokens that"),
    ],
)
def test_teachers_that_are_none_are_told(tokenized, workdir, change, message):
    with pytest.raises(UserError, match=message):
        teach(config_of(tokenized, **change), workdir)
    assert not (workdir / "targets").exists()


def test_more_ids_than_there_are_are_refused(tokenized):
    config = config_of(tokenized, method="top_k", tokens=9)
    with pytest.raises(UserError, match=r"teach.tokens=9 is more than the 8 ids there are"):
        module._require_able(config, module.open_teacher(config), module.Form("top_k", 9, 8))


def test_a_teacher_of_another_tokenizer_or_of_fewer_ids_is_refused(tokenized, workdir, tmp_path):
    other = shutil.copytree(tokenized / "teacher", tmp_path / "other")
    small = dataclasses.replace(MODEL, vocab_size=319)
    shape = {"max_positions": 64, "dtype": "float32", "bos": 1, "eos": 2, "stop_ids": (2,)}
    write_model(other, small, transformer.init(small, 0), **shape)
    with pytest.raises(UserError, match=r"has 319 ids, fewer than the tokenizer's 320"):
        teach(config_of(tokenized, teacher=str(other)), workdir)
    path = other / "tokenizer.json"
    exchanged = {"0x41": "0x??", "0x42": "0x41", "0x??": "0x42"}
    for before, after in exchanged.items():
        path.write_text(path.read_text().replace(f"<{before}>", f"<{after}>"))
    with pytest.raises(UserError, match=r"is another than .* \(id \d+ is b'B', not b'A'\), so its distributions"):
        teach(config_of(tokenized, teacher=str(other)), workdir)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": 0}, "tokens=0 must lie in 1 to 256"),
        ({"tokens": 257}, "tokens=257 must lie in 1 to 256"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"temperature": float("inf")}, "temperature=inf must be above 0"),
        ({"overlap": 1.0}, "overlap=1.0 must lie in 0..1"),
        ({"context": 0}, "context and rows must be positive"),
        ({"seed": -1}, "seed=-1 must lie in 0 to"),
    ],
)
def test_what_cannot_be_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TeachConfig(**values)


def test_once_taught_the_teacher_may_go_but_not_be_another(tokenized, workdir, tmp_path):
    own = shutil.copytree(tokenized / "teacher", tmp_path / "teacher")
    config = config_of(tokenized, teacher=str(own))
    teach(config, workdir)
    require_same_teacher(config, workdir)
    weights = bytearray((own / "model.safetensors").read_bytes())
    weights[-3] ^= 1
    (own / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"made from something else \(teacher.weights was"):
        require_same_teacher(config, workdir)
    shutil.rmtree(own)
    require_same_teacher(config, workdir)
    teach(config, workdir)
    with pytest.raises(UserError, match=r"teach.tokens was 50, is 20"):
        teach(dataclasses.replace(config, tokens=20), workdir)


def test_a_damaged_shard_alone_is_made_again(tokenized, workdir):
    config = config_of(tokenized)
    teach(config, workdir)
    before = bytes_of(workdir / "targets")
    times = {path: path.stat().st_mtime_ns for path in (workdir / "targets").glob("*.array_record")}
    path = next(iter(times))
    path.unlink()
    teach(config, workdir)
    assert bytes_of(workdir / "targets") == before
    assert [other for other in times if other.stat().st_mtime_ns != times[other]] == [path]
