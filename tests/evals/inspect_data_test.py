"""What inspect-data says is what the rows hold: counted over plans drawn at random, and a page made by the verb."""

import collections
import re
from unittest import mock

import numpy as np
import pytest

from core.page import Page
from data import rows as rows_module
from data.config import BatchConfig, StageConfig
from data.corpus import Corpus
from data.history import ask, continue_history, skip
from data.packing import count_rows
from data.pipeline import Batches
from data.plan import Plan
from evals import figures
from evals.inspect_data import (
    PACKINGS,
    Rest,
    _notices,
    autocorrelation,
    measure,
    parts_of,
    points,
    readings,
    rest,
    sequence,
    spread,
)
from lab import FakeShards, launch, make_corpus, make_plan

CONFIG = """
from experiments import smoke

def get_config():
    config = smoke.get_config()
    with config.unlocked():
        config.data.sources = {"plain": "PLAIN", "short": "SHORT", "spare": "SPARE"}
        config.data.heldout_fraction = 0.2
        config.tokenizer.vocab_size = 320
        config.train.steps = 0
        config.batch.packing = "best_fit"
        config.batch.max_epochs = {"short": 2}
        config.batch.stages = (
            {"tokens": 8 * 64 * 30, "mixture": {"plain": 0.7, "short": 0.4}},
            {"tokens": 8 * 700 * 30, "row_length": 700, "mixture": {"plain": 1.0}},
        )
    return config.lock()
"""


def shards_of(documents=90, seed=0):
    random = np.random.default_rng(seed)
    lengths = random.integers(2, 40, documents)
    return FakeShards(lengths.tolist(), [("a", "b", "c")[i % 3] for i in range(documents)])


@pytest.fixture(autouse=True)
def _small_windows():
    with mock.patch.object(rows_module, "WINDOW_DOCUMENTS", 8):
        yield


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("row_length", [3, 16, 64])
def test_rests_are_those_of_the_rows(packing, row_length):
    corpus = Corpus(shards_of(), 0)
    stream = corpus.rows("a", 1, row_length, packing, ())
    windows = len(stream.rows_of_window)
    assert windows > 3
    found = Rest(*map(sum, zip(*(rest(packing, stream.source, window, row_length) for window in range(windows)))))
    padding = predicted = headless = pieces = 0
    parts = collections.Counter()
    for number in range(stream.rows_per_epoch):
        row = stream.row(number)
        padding += int((row.segment_ids_T == 0).sum())
        predicted += int(row.weights_T.sum())
        for piece in stream.pieces(number):
            pieces += 1
            own = int(row.weights_T[piece.start : piece.start + piece.size].sum())
            headless += own if piece.begin else 0
            parts[piece.document] += own > 0
    lengths = stream.source.lengths
    assert (found.rows, found.slots) == (stream.rows_per_epoch, stream.rows_per_epoch * row_length)
    assert (found.padding, found.predicted, found.headless) == (padding, predicted, headless)
    assert found.documents == len(lengths)
    assert found.cut == sum(times > 1 for times in parts.values())
    assert found.long == int((lengths - 1 > row_length).sum())
    # A piece that holds a document's last token alone predicts nothing and is no cut.
    assert 0 <= pieces - found.pieces <= windows * row_length


def test_rests_of_both_packings_are_there_for_every_stage_and_source():
    stages = (StageConfig(320, 4, 8, "split", {"a": 1, "b": 2}), StageConfig(320, 4, 16, "best_fit", {"b": 1}))
    plan = make_plan(shards_of(), BatchConfig(stages=stages))
    rests, (counted, there) = measure(parts_of(plan))
    assert counted == there
    assert set(rests) == {(n, name, p) for n, name in ((0, "a"), (0, "b"), (1, "b")) for p in PACKINGS}
    for (number, name, packing), own in rests.items():
        stream = plan.segments[number].streams[list(plan.segments[number].mixture.weights).index(name)]
        rows = count_rows(packing, stream.source.lengths, stream.source.bounds, stream.row_length)
        assert own.rows == rows.sum()


def test_rests_of_a_large_corpus_are_counted_in_a_sample():
    plan = make_plan(shards_of(), BatchConfig(rows=4, row_length=8), steps=5)
    with mock.patch("evals.inspect_data.PIECES", 100):
        rests, (counted, there) = measure(parts_of(plan))
    assert 0 < counted < there
    assert rests[0, "", "split"].slots > 0


def test_readings_are_what_the_batches_hold():
    stages = (
        StageConfig(8 * 12 * 9, 8, 12, "split", {"a": 0.5, "b": 0.5}),
        StageConfig(8 * 20 * 9, 8, 20, "best_fit", {"a": 0.3, "c": 0.7}),
    )
    plan = make_plan(shards_of(), BatchConfig(stages=stages, max_epochs={"a": 1}))
    batches, rows, dry = Batches(plan), collections.Counter(), None
    for k in range(plan.steps):
        segment = plan.segment(k)
        names = list(segment.mixture.weights)
        rows.update(names[segment.locate(k, row)[0]] for row in range(segment.stage.rows))
        if dry is None and "a" not in names:
            dry = k + 1
    assert dry is not None
    assert len(batches) == plan.steps
    found = readings(plan)
    assert {name: own.rows for name, own in found.items()} == rows
    assert (found["a"].dry, found["b"].dry, found["c"].dry) == (dry, None, None)
    assert found["a"].epochs <= 1
    assert sum(own.tokens for own in found.values()) == plan.tokens


def test_what_a_change_of_row_length_leaves_unread_is_counted():
    shards = FakeShards([30] * 8)  # one window
    first = StageConfig(12 * 2 * 3, 2, 12)
    for then, whole in ((StageConfig(12 * 2 * 2, 2, 12), True), (StageConfig(20 * 2 * 2, 2, 20), False)):
        plan = make_plan(shards, BatchConfig(stages=(first, then)))
        assert readings(plan)[""].unread == (0 if whole else 240 * (20 - 6) // 20)


def test_points_add_up_and_stay_few_whatever_the_length_of_the_run():
    stages = tuple(StageConfig(tokens, 8, 8, None, mixture) for tokens, mixture in (
        (64 * 1_500_000, {"a": 0.6, "b": 0.4}), (64 * 3_500_000, {"c": 0.9, "a": 0.2})))  # fmt: skip
    plan = make_plan(shards_of(), BatchConfig(stages=stages))
    parts = parts_of(plan)
    edges, names, read_SP, a_point = points(plan, parts)
    assert plan.steps == 5_000_000
    assert (edges[0], edges[-1], a_point) == (0, 5_000_000, 25_000)
    assert 1_500_000 in edges
    assert 190 <= len(edges) <= 210
    assert (read_SP.sum(axis=0) == 8 * np.diff(edges)).all()
    assert dict(zip(names, read_SP.sum(axis=1))) == {name: own.rows for name, own in readings(plan).items()}
    assert np.abs(parts[1].shares["c"] - 0.9 / 1.1) < 1e-5


@pytest.mark.parametrize(("steps", "a_point"), [(5, 1), (600, 30), (20_000, 1000), (200_000, 1000), (200_001, 2000)])
def test_a_point_is_a_thousand_steps_or_fewer_in_a_short_run(steps, a_point):
    plan = make_plan(shards_of(), BatchConfig(rows=1, row_length=8), steps=steps)
    assert points(plan, parts_of(plan))[-1] == a_point


def test_the_sequence_is_that_of_the_batches():
    stages = (StageConfig(20 * 8 * 70, 20, 8, None, {"a": 1, "c": 2}),)
    plan = make_plan(shards_of(), BatchConfig(stages=stages, max_epochs={"a": 1}))
    assert len(plan.segments) == 2
    found, names = sequence(parts_of(plan)[0], plan)
    for k in range(plan.steps):
        segment = plan.segment(k)
        at = [list(segment.mixture.weights)[segment.locate(k, row)[0]] for row in range(20)]
        assert [names[source] for source in found[20 * k : 20 * k + 20]] == at


def test_the_sequence_of_a_pool_is_that_of_first_documents():
    plan = make_plan(shards_of(), BatchConfig(rows=8, row_length=8), steps=40)
    found, names = sequence(parts_of(plan)[0], plan)
    documents = [item for k in range(plan.steps) for item in Batches(plan).documents(k)]
    firsts = [item.piece.document for item in documents if item.piece.start == 0]
    assert [names[source] for source in found] == [plan.corpus.shards.source(document) for document in firsts]
    alone = make_plan(FakeShards([9, 9]), BatchConfig(rows=1, row_length=8))
    assert sequence(parts_of(alone)[0], alone) is None


def test_autocorrelation_and_spread_tell_chance_from_clumps_and_from_evenness():
    random = np.random.default_rng(0)
    chance = random.choice(3, 16_384, p=[0.2, 0.5, 0.3])
    curve, band = autocorrelation(chance, 400)
    assert 0.9 < (np.abs(curve) < band).mean() < 0.99
    assert spread(chance, 16) == pytest.approx(1, abs=0.1)
    clumps = np.repeat(random.choice(3, 1024), 16)
    curve, band = autocorrelation(clumps, 40)
    assert curve[0] == pytest.approx(15 / 16, abs=0.02)
    assert (np.abs(curve[20:]) < 6 * band).all()
    assert spread(clumps, 16) == pytest.approx(16, rel=0.1)
    even = np.tile(np.arange(4), 1000)
    assert spread(even, 8) == 0
    assert autocorrelation(even, 4)[0] == pytest.approx([-1 / 3, -1 / 3, -1 / 3, 1], abs=0.01)
    assert spread(even, 3000) is None


def test_amendments_and_skips_are_parts_and_notices():
    shards = shards_of()
    corpus = Corpus(shards, 0)
    config = BatchConfig(rows=4, row_length=8, mixture={"a": 1, "b": 1})
    history = (ask(config, 20, corpus.generations),)
    changed = BatchConfig(rows=4, row_length=8, mixture={"a": 1, "b": 3})
    history = continue_history(history, ask(changed, 30, corpus.generations, 10), amend=True)
    plan = Plan(skip(history, 15, 4), corpus, 0)
    parts, read = parts_of(plan), readings(plan)
    assert [part.label for part in parts] == ["1", "1 from step 11"]
    assert parts[1].asked == {"a": 0.25, "b": 0.75}
    assert sum(own.rows for own in read.values()) == 30 * 4  # what is skipped is not read
    assert {own.unread for own in read.values()} == {0}
    page = Page("x")
    _notices(page, plan, parts, read, measure(parts)[0])
    text = page.render()
    assert "after step 10 the config was amended" in text
    assert "after step 15 4 batches are left out" in text
    assert "The weights of stage 1 sum to 2; they are normalised" in text
    assert "Never read: </strong>c." in text


def test_many_sources_stay_legible():
    read = {f"s{i}": 60.0 - i for i in range(60)}
    drawing = figures.svg(figures.epochs(read, {"s0": 70}), "x", "epochs")
    assert "60.00 of 70</text>" in drawing
    assert "49 others, each at most</text>" in drawing


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The workdir, its arguments, and what the verb said."""
    folder = tmp_path_factory.mktemp("inspect")
    text = CONFIG
    for seed, (name, files) in enumerate((("plain", 60), ("short", 8), ("spare", 8))):
        make_corpus(folder / name, files=files, sentences=10, seed=seed)
        text = text.replace(name.upper(), str(folder / name))
    (folder / "config.py").write_text(text)
    arguments = [f"--config={folder / 'config.py'}", f"--workdir={folder / 'run'}"]
    early = launch("inspect-data", *arguments)
    for verb in ("curate", "tokenize"):
        assert launch(verb, *arguments).returncode == 0
    result = launch("inspect-data", *arguments)
    assert result.returncode == 0, result.stderr
    return folder / "run" / "inspect-data", arguments, early, result


def test_the_verb_makes_a_page_of_its_own(made):
    folder, arguments, early, result = made
    assert early.returncode == 2
    assert "run `launch.py curate`" in early.stderr.splitlines()[-1]
    text = (folder / "inspect-data.html").read_text()
    pictures = {"mixture", "autocorrelation-1", "padding", "cut", "headless", "epochs", "lengths", "bytes-per-token"}
    assert {path.stem for path in folder.glob("*.png")} == pictures
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))
    assert not re.search(r"https?:|<script|\bsrc=", text)
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    top = text.partition('<dl class="tiles"')[0]
    assert "<strong>Runs dry: </strong>short (step " in top
    assert "<strong>Never read: </strong>spare." in top
    assert "<strong>Stage 2 pads " in top
    assert "The weights of stage 1 sum to 1.1; they are normalised." in top
    assert "nothing is mixed there" in text
    assert "inspect-data: 60 steps" in result.stderr
    assert f"{folder}/inspect-data.html" in result.stderr
    assert "is up to date" in launch("inspect-data", *arguments).stderr
