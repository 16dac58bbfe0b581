import collections
import itertools
import json
import math
import shutil
import tracemalloc
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
from data.curate.extract import Extract
from data.curate.labelled import Place, collect
from data.curate.partition import from_batch, through, to_batch
from data.curate.train_classifier import auc, teach, train_classifier
from data.document import Document, read_documents
from lab import ROOT
from lab import launch as run

GOOD, BAD = "river stone forest moon winter", "cheap deal click offer buy"
DATA = DataConfig(workers=1)
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
    train_classifier(config(corpora), DATA, workdir)
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
    train_classifier(config(corpora), DATA, tmp_path)
    for name in ("weights.npy", "classifier.json", "report.txt"):
        assert (tmp_path / "classifier" / name).read_bytes() == (trained / "classifier" / name).read_bytes()


def test_a_finished_one_is_kept_and_other_documents_are_refused(corpora, tmp_path, capsys):
    copies = {kind: shutil.copytree(path, tmp_path / kind) for kind, path in corpora.items()}
    given = config({kind: str(path) for kind, path in copies.items()})
    first = train_classifier(given, DATA, tmp_path / "w")
    assert train_classifier(given, DATA, tmp_path / "w") == first
    assert "classifier is up to date" in capsys.readouterr().err
    (copies["good"] / "new.txt").write_text("river stone")
    with pytest.raises(UserError, match="classifier was made from something else"):
        train_classifier(given, DATA, tmp_path / "w")


def dense(texts, bits, max_chars):
    matrix = np.zeros((len(texts), 1 << bits))
    rows, columns, values = features(texts, bits, max_chars)
    matrix[rows, columns] = values
    return matrix


def test_the_weights_are_the_best_there_are(corpora):
    """The slope of the loss, written down anew, vanishes there; both kinds weigh the same."""
    given = config(corpora, regularization=0.5)
    places = [Place("woods", "positive", corpora["good"]), Place("shop", "negative", corpora["bad"])]
    taught = teach(given, collect(given, DATA, places))
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
    found = train_classifier(given, DATA, tmp_path / "w")
    assert found["accuracy"] == 1.0
    assert set(found["sources"]) == {"judged (positive)", "judged (negative)"}


@pytest.mark.parametrize("record", [{"text": "a"}, {"score": 1}, {"text": "a", "score": True}, ["a", 1], 7])
def test_a_record_without_a_score_is_told(tmp_path, record):
    given = ClassifierConfig(scored=scored(tmp_path / "a.jsonl", [{"text": "a", "score": 5}, record]))
    with pytest.raises(UserError, match=r"a\.jsonl: record 2 has no `text` with a number as `score`"):
        train_classifier(given, DATA, tmp_path / "w")


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
        train_classifier(config(corpora, **changes), DATA, tmp_path)


def test_a_text_is_learnt_from_once(corpora):
    given = config(corpora)
    twice = [Place("woods", "positive", corpora["good"]), Place("again", "negative", corpora["good"])]
    found = collect(given, DATA, twice).examples
    assert len({one.text for one in found}) == len(found) == 60
    few = collect(config(corpora, documents=7), DATA, twice[:1])
    assert few.examples == collect(given, DATA, twice[:1]).examples[:7]


def write_pages(folder, prefers):
    """Pages with markup and a margin that are the same, around words of a kind's own."""
    folder.mkdir()
    nav = '<nav><div class="menu"><a href="/">margin</a></div></nav>'
    for number in range(12):
        prose = f"The {prefers} {number} are what this page is about, and of no others it tells."
        prose = f"<p><span class='x'>{prose}</span></p>"
        (folder / f"{number}.html").write_text(f"<html><body>{nav}<article>{prose * 3}</article></body></html>")
    return str(folder)


@pytest.mark.parametrize("recipe", [(), ({"step": "extract"},), ({"step": "extract", "method": "resiliparse"},)])
def test_pages_are_learnt_from_as_the_judge_will_see_them(tmp_path, recipe):
    pages = {"good": write_pages(tmp_path / "good", GOOD), "bad": write_pages(tmp_path / "bad", BAD)}
    given, data = config(pages), DataConfig(pages["good"], recipe=recipe, workers=1)
    found = collect(given, data, [Place("woods", "positive", pages["good"])]).examples
    engine.curate(data, tmp_path / "w")
    shards = (tmp_path / "w" / "curated").glob("*.parquet")
    curated = {f"woods/{one.id}": one.text for path in shards for one in read_documents(path)}
    assert {one.id: one.text for one in found} == curated
    assert "margin" in found[0].text or recipe
    told = train_classifier(given, data, tmp_path / "w")
    words = {one["words"] for side in told["features"].values() for one in side}
    assert not {word for word in words if set(word.split()) & {"div", "span", "class", "nav"}}
    with pytest.raises(UserError, match=r"was made from something else \(extract\.method was"):
        train_classifier(
            given, DataConfig(recipe=({"step": "extract", "method": OTHER[recipe != ()]},)), tmp_path / "w"
        )


OTHER = ("resiliparse", "visible")


def test_pages_that_cannot_be_among_the_first_are_not_parsed(tmp_path, monkeypatch):
    folder, parsed = write_pages(tmp_path / "good", GOOD), []
    text = Extract.text
    monkeypatch.setattr(Extract, "text", lambda self, page: parsed.append(page) or text(self, page))
    place = Place("woods", "positive", folder)
    few = collect(ClassifierConfig(documents=1), DATA, [place]).examples
    assert 0 < len(parsed) < 12
    assert few == collect(ClassifierConfig(), DATA, [place]).examples[:1]


def test_a_page_without_text_is_told(tmp_path):
    pages = {"good": write_pages(tmp_path / "good", GOOD), "bad": write_pages(tmp_path / "bad", BAD)}
    for path in (tmp_path / "bad").iterdir():
        path.write_text("<html><body></body></html>")
    data = DataConfig(recipe=({"step": "extract"},), workers=1)
    with pytest.raises(UserError, match=r"not to be preferred, 0 are .*; 12 were dropped \(extract_empty 12\)$"):
        train_classifier(config(pages), data, tmp_path / "w")


def write_lines(path, texts, **others):
    path.write_text("".join(json.dumps({"content": text, **others}) + "\n" for text in texts))
    return str(path)


def test_columns_are_named_as_for_the_corpus(tmp_path, capsys):
    texts = {"good": [f"{GOOD} {n}" for n in range(40)], "bad": [f"{BAD} {n}" for n in range(40)]}
    paths = {kind: write_lines(tmp_path / f"{kind}.jsonl", own) for kind, own in texts.items()}
    with (tmp_path / "bad.jsonl").open("a") as file:
        file.write("no record\n{}\n{}\n")
    with pytest.raises(UserError, match=r"be preferred, 0 are to learn from .*; 40 were dropped \(no_text 40\)$"):
        train_classifier(config(paths), DATA, tmp_path / "w")
    renamed = DataConfig(columns={"text": "content"}, workers=1)
    found = train_classifier(config(paths), renamed, tmp_path / "w")
    assert found["documents"]["learnt"] + found["documents"]["heldout"] == 80
    assert "; 3 were dropped (no_text 2, not_json 1); see" in capsys.readouterr().err
    with pytest.raises(UserError, match="was made from something else"):
        train_classifier(config(paths), DATA, tmp_path / "w")


def test_the_documents_of_python_itself_have_no_columns():
    place = Place("python", "positive", "")
    partition = place.partitions()[0]
    assert next(iter(place.read(partition, {"text": "content"})))


@pytest.mark.parametrize(("count", "chars"), [(100, 200_000), (4_000, 3_000)])
def test_a_partition_is_not_held_in_memory(tmp_path, count, chars):
    path = write_lines(tmp_path / "a.jsonl", (f"{number} {'x' * chars}" for number in range(count)))
    given, data = ClassifierConfig(documents=20), DataConfig(columns={"text": "content"}, workers=1)
    tracemalloc.start()
    found = collect(given, data, [Place("woods", "positive", path)]).examples
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 20
    assert peak < 5 << 20


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
