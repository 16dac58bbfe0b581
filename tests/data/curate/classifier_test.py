import collections
import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import launch
from core.errors import UserError
from core.files import read_json
from data.config import ClassifierConfig, DataConfig
from data.curate import engine
from data.curate.classifier import VERSION, Classifier, QualityScore, features, load_classifier
from data.curate.partition import from_batch, through, to_batch
from data.curate.train_classifier import Place, auc, collect, teach, train_classifier
from data.document import Document
from lab import ROOT
from lab import launch as run

GOOD, BAD = "river stone forest moon winter", "cheap deal click offer buy"
COMMON = "the a of and to in it is was for on with as at by"


def write_corpus(folder, prefers, count, seed, name="part"):
    """Files of documents whose words are mostly the common ones, and some of a kind's own."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        words = [*random.choice(COMMON.split(), 60), *random.choice(prefers.split(), 6)]
        random.shuffle(words)
        (folder / f"{name}{number:03d}.txt").write_text(" ".join(words))
    return str(folder)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    return {"good": write_corpus(folder / "good", GOOD, 60, 0), "bad": write_corpus(folder / "bad", BAD, 40, 1)}


def config(corpora, **changes):
    given = {"positive": {"woods": corpora["good"]}, "negative": {"shop": corpora["bad"]}}
    return ClassifierConfig(**{**given, "heldout_fraction": 0.3, "feature_bits": 12, **changes})


@pytest.fixture(scope="module")
def trained(corpora, tmp_path_factory):
    """A workdir with a classifier; not to be changed."""
    workdir = tmp_path_factory.mktemp("trained")
    train_classifier(config(corpora), workdir, 1)
    return workdir


def test_it_tells_the_kinds_apart_and_says_by_which_words(trained):
    found = read_json(trained / "classifier" / "classifier.json")["heldout"]
    assert found["accuracy"] == found["auc"] == 1.0
    assert found["documents"]["learnt"] + found["documents"]["heldout"] == 100
    assert {one["words"] for one in found["features"]["positive"][:5]} == set(GOOD.split())
    assert {one["words"] for one in found["features"]["negative"][:5]} == set(BAD.split())
    assert found["sources"]["woods (positive)"]["kept"] == 1.0
    assert found["sources"]["shop (negative)"]["kept"] == 0.0
    report = (trained / "classifier" / "report.txt").read_text()
    assert "threshold  precision  recall  kept" in report
    for word in (GOOD + " " + BAD).split():
        assert word in report


def test_the_files_are_the_same_whatever_the_workers(corpora, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("data.sources.folder.FILES_PER_PARTITION", 7)
    train_classifier(config(corpora), tmp_path, 1)
    for name in ("weights.npy", "classifier.json", "report.txt"):
        assert (tmp_path / "classifier" / name).read_bytes() == (trained / "classifier" / name).read_bytes()


def test_a_finished_one_is_kept_and_other_documents_are_refused(corpora, tmp_path, capsys):
    copies = {kind: shutil.copytree(path, tmp_path / kind) for kind, path in corpora.items()}
    given = config({kind: str(path) for kind, path in copies.items()})
    first = train_classifier(given, tmp_path / "w", 1)
    assert train_classifier(given, tmp_path / "w", 1) == first
    assert "classifier is up to date" in capsys.readouterr().err
    (copies["good"] / "new.txt").write_text("river stone")
    with pytest.raises(UserError, match="classifier was made from something else"):
        train_classifier(given, tmp_path / "w", 1)


def dense(texts, bits, max_chars):
    matrix = np.zeros((len(texts), 1 << bits))
    rows, columns, values = features(texts, bits, max_chars)
    matrix[rows, columns] = values
    return matrix


def test_the_weights_are_the_best_there_are(corpora):
    """The slope of the loss, written down anew, vanishes there; both kinds weigh the same."""
    given = config(corpora, regularization=0.5)
    places = [Place("woods", "positive", corpora["good"]), Place("shop", "negative", corpora["bad"])]
    taught = teach(given, collect(given, places, 1))
    matrix = dense([one.text for one in taught.examples], 12, given.max_chars)
    labels = np.array([1.0 if one.positive else -1.0 for one in taught.examples])
    weights, bias = taught.model.weights[:-1].astype(float), float(taught.model.weights[-1])
    shares = [0.5 / (labels == label).sum() for label in labels]
    slopes = -labels * shares / (1 + np.exp(labels * (matrix @ weights + bias)))
    assert abs(slopes.sum()) < 1e-4
    assert np.abs(matrix.T @ slopes + 0.5 / len(labels) * weights).max() < 1e-4
    assert np.abs(weights).max() > 0.5


@settings(deadline=None, max_examples=100, derandomize=True)
@given(texts=st.lists(st.lists(st.sampled_from("abcd"), max_size=12).map(" ".join), min_size=1, max_size=5))
def test_features_are_the_logarithms_of_counts(texts):
    matrix = dense(texts, 16, 100)
    for row, text in zip(matrix, texts):
        words = text.split()
        counts = collections.Counter(words) + collections.Counter(itertools.pairwise(words))
        expected = sorted(1 + math.log(count) for count in counts.values())
        length = math.sqrt(sum(value**2 for value in expected))
        assert np.allclose(sorted(row[row > 0]), [value / length for value in expected])
    assert np.array_equal(matrix, np.concatenate([dense([text], 16, 100) for text in texts]))


def test_only_the_beginning_counts():
    assert np.array_equal(dense(["one two three"], 10, 7), dense(["one two"], 10, 100))


@settings(deadline=None, max_examples=100, derandomize=True)
@given(pairs=st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=20))
def test_the_area_under_the_curve_is_a_chance(pairs):
    scores, truth = np.array([score / 4 for score, _ in pairs]), np.array([wanted for _, wanted in pairs])
    if truth.all() or not truth.any():
        return
    above = [(a > b) + (a == b) / 2 for a in scores[truth] for b in scores[~truth]]
    assert auc(scores, truth) == pytest.approx(np.mean(above))


def test_the_table_counts_what_stays(trained):
    found = read_json(trained / "classifier" / "classifier.json")["heldout"]
    kept = [one["kept"] for one in found["thresholds"]]
    assert kept == sorted(kept, reverse=True)
    at_half = next(one for one in found["thresholds"] if one["threshold"] == 0.5)
    share = found["documents"]["positive"] / found["documents"]["heldout"]
    assert at_half == {"threshold": 0.5, "precision": 1.0, "recall": 1.0, "kept": pytest.approx(share)}


def scored(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return {"judged": str(path)}


def test_documents_may_come_with_scores(corpora, tmp_path):
    kinds = [(Path(corpora["good"]), 3), (Path(corpora["bad"]), 2.9)]
    records = [{"text": path.read_text(), "score": score} for folder, score in kinds for path in folder.iterdir()]
    given = ClassifierConfig(scored=scored(tmp_path / "a.jsonl", records), heldout_fraction=0.3)
    found = train_classifier(given, tmp_path / "w", 1)
    assert found["accuracy"] == 1.0
    assert set(found["sources"]) == {"judged (positive)", "judged (negative)"}


@pytest.mark.parametrize("record", [{"text": "a"}, {"score": 1}, {"text": "a", "score": True}, ["a", 1], 7])
def test_a_record_without_a_score_is_told(tmp_path, record):
    given = ClassifierConfig(scored=scored(tmp_path / "a.jsonl", [{"text": "a", "score": 5}, record]))
    with pytest.raises(UserError, match=r"a\.jsonl: record 2 has no `text` with a number as `score`"):
        train_classifier(given, tmp_path / "w", 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positive": {}}, "names no documents of two kinds"),
        ({"negative": {}}, "names no documents of two kinds"),
        ({"negative": {"shop": "/nowhere"}}, "/nowhere does not exist"),
        ({"documents": 1}, "both need one"),
    ],
)
def test_too_little_is_told(corpora, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train_classifier(config(corpora, **changes), tmp_path, 1)


def test_a_text_is_learnt_from_once(corpora):
    given = config(corpora)
    twice = [Place("woods", "positive", corpora["good"]), Place("again", "negative", corpora["good"])]
    found = collect(given, twice, 1)
    assert len({one.text for one in found}) == len(found) == 60
    few = collect(config(corpora, documents=7), twice[:1], 1)
    assert few == sorted(one for one in collect(given, twice[:1], 1))[:7]


def test_the_step_adds_the_score_and_drops_what_is_below(trained):
    texts = {"a": f"{COMMON} {GOOD}", "b": f"{COMMON} {BAD}", "c": ""}
    batch = to_batch([Document(name, text, "") for name, text in texts.items()])
    model = str(trained / "classifier")
    kept, dropped = through({"q": QualityScore(model)}, batch)
    (good,) = (one for one in from_batch(kept) if one.id == "a")
    assert 0.5 < good.meta["quality_score"] <= 1
    assert ("b", "low_quality") in [(one.id, one.reason) for one in dropped]
    _, dropped = through({"q": QualityScore(model, threshold=0.0)}, batch)
    assert dropped == []
    assert len(through({"q": QualityScore(model, threshold=1.0)}, batch)[1]) == 3


def test_scores_do_not_depend_on_the_batch(trained):
    model = load_classifier(trained / "classifier")
    texts = [f"{COMMON} {GOOD}", "", BAD, GOOD * 50, "Fluß 中文"]
    alone = np.concatenate([model.scores([text]) for text in texts])
    assert np.array_equal(model.scores(texts), alone)
    assert np.isfinite(Classifier(np.full(1025, 3e38, np.float32), 10, 100).scores(texts)).all()


def harm_shape(folder):
    np.save(folder / "weights.npy", np.zeros(5, np.float32))


def harm_pickle(folder):
    np.save(folder / "weights.npy", np.array([{}] * ((1 << 12) + 1), object), allow_pickle=True)


def harm_numbers(folder):
    np.save(folder / "weights.npy", np.full((1 << 12) + 1, np.nan, np.float32))


def harm_settings(**changes):
    def harm(folder):
        settings = {"version": VERSION, "bits": 12, "max_chars": 10, **changes}
        (folder / "classifier.json").write_text(json.dumps({"model": settings}))

    return harm


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (harm_shape, "is not 4,097 finite float32 numbers"),
        (harm_numbers, "is not 4,097 finite float32 numbers"),
        (harm_pickle, "is damaged"),
        (lambda folder: (folder / "weights.npy").write_bytes(b"no array"), "is damaged"),
        (lambda folder: (folder / "weights.npy").write_bytes(b""), "is damaged"),
        (lambda folder: (folder / "weights.npy").unlink(), r"weights\.npy is missing; `launch.py train-classifier`"),
        (lambda folder: (folder / "classifier.json").write_text("[]"), "describes no classifier"),
        (harm_settings(bits="12"), "describes no classifier"),
        (harm_settings(version=VERSION + 1), "train it again"),
        (harm_settings(bits=40), "is not read here"),
    ],
)
def test_what_is_no_model_is_told(trained, tmp_path, harm, message):
    folder = shutil.copytree(trained / "classifier", tmp_path / "classifier")
    harm(folder)
    with pytest.raises(UserError, match=message):
        QualityScore(str(folder)).prepare()


def test_a_corpus_is_stale_when_the_model_is_another(trained, corpora, tmp_path):
    folder = shutil.copytree(trained / "classifier", tmp_path / "classifier")
    recipe = ({"step": "quality_score", "model": str(folder), "threshold": 0.5},)
    given = DataConfig(corpora["good"], recipe=recipe, workers=1)
    summary = engine.curate(given, tmp_path / "w")
    assert summary["dropped"] == {}
    engine.require_curated(given, tmp_path / "w")
    weights = np.load(folder / "weights.npy")
    np.save(folder / "weights.npy", -weights)
    with pytest.raises(UserError, match=r"quality_score: weights\.npy has changed"):
        engine.require_curated(given, tmp_path / "w")
    shutil.rmtree(folder)
    engine.require_curated(given, tmp_path / "w")  # it may be gone


@pytest.mark.parametrize("judge", [{}, {"model": ""}])
def test_a_judge_without_a_model_is_that_of_the_workdir(trained, corpora, tmp_path, monkeypatch, judge):
    """In worker processes too, for documents that are added, and after the workdir was moved."""
    monkeypatch.setattr("data.sources.folder.FILES_PER_PARTITION", 20)
    recipe = ({"step": "quality_score", **judge},)
    added = {"bad": corpora["bad"], "good": write_corpus(tmp_path / "good", GOOD, 5, 7)}
    given = DataConfig(corpora["good"], recipe=recipe, workers=2, added=(added,))
    with pytest.raises(UserError, match=r"w/classifier/weights\.npy is missing"):
        engine.curate(given, tmp_path / "w")
    shutil.copytree(trained / "classifier", tmp_path / "w" / "classifier")
    monkeypatch.chdir(tmp_path)
    assert engine.curate(given, Path("w"))["dropped"] == {}
    dropped = (tmp_path / "w/added-1/curated/dropped.jsonl").read_text()
    assert dropped.count("low_quality") == 40
    moved = (tmp_path / "w").rename(tmp_path / "moved")
    engine.require_curated(given, moved)
    np.save(moved / "classifier" / "weights.npy", -np.load(moved / "classifier" / "weights.npy"))
    with pytest.raises(UserError, match=r"quality_score: weights\.npy has changed"):
        engine.require_curated(given, moved)
    with pytest.raises(UserError, match=r"was made from something else \(files\.quality_score: weights\.npy"):
        engine.curate(given, moved)


def recipe_of(*flags):
    return launch.open_experiment(launch.parse_arguments([f"--config={ROOT}/experiments/smoke.py", *flags])).recipe


def test_the_whole_recipe_begins_with_it_where_there_is_something_to_learn_from():
    assert recipe_of()[0] == "curate"
    flags = ["--config.classifier.positive.a=x", "--config.classifier.negative.b=y"]
    assert recipe_of(*flags)[:2] == ["train-classifier", "curate"]


def test_the_verb(corpora, tmp_path):
    flags = ["--config.classifier.heldout_fraction=0.3"]
    for kind, name in (("positive", "good"), ("negative", "bad")):
        flags.append(f"--config.classifier.{kind}.x={corpora[name]}")
    result = run("train-classifier", f"--workdir={tmp_path}", *flags)
    assert result.returncode == 0, result.stderr
    assert "100.0% are told right" in result.stderr
    assert (tmp_path / "classifier" / "report.txt").exists()
    refused = run("train-classifier", f"--workdir={tmp_path / 'other'}")
    assert refused.returncode == 2
    assert "names no documents of two kinds" in refused.stderr
