"""What inspect-data counts is what the rows hold: over plans drawn at random."""

import collections
from unittest import mock

import numpy as np
import pytest

from data import rows as rows_module
from data.config import BatchConfig, StageConfig
from data.corpus import Corpus
from data.history import ask, continue_history, skip
from data.inspect import (
    PACKINGS,
    Outcome,
    autocorrelation,
    measure,
    outcome,
    parts_of,
    points,
    readings,
    sequence,
    spread,
)
from data.packing import count_rows
from data.pipeline import Batches
from data.plan import Plan
from lab import FakeShards, make_plan


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
def test_outcomes_are_those_of_the_rows(packing, row_length):
    corpus = Corpus(shards_of(), 0)
    stream = corpus.rows("a", 1, row_length, packing, ())
    windows = len(stream.rows_of_window)
    assert windows > 3
    found = Outcome(
        *map(sum, zip(*(outcome(packing, stream.source, window, row_length) for window in range(windows))))
    )
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


@pytest.mark.parametrize("packing", PACKINGS)
def test_what_is_predicted_of_conversations_is_what_is_trained_on(packing):
    shards, random = shards_of(), np.random.default_rng(1)
    shards.trained = {d: random.random(n) < 0.3 for d, n in enumerate(shards.lengths) if d % 2}
    shards.predicted = np.array(
        [shards.trained.get(d, np.ones(n, bool))[1:].sum() for d, n in enumerate(shards.lengths)]
    )
    stream = Corpus(shards, 0).rows("a", 1, 16, packing, ())
    found = [outcome(packing, stream.source, window, 16) for window in range(len(stream.rows_of_window))]
    rows = [stream.row(number) for number in range(stream.rows_per_epoch)]
    assert sum(own.predicted for own in found) == sum(row.weights_T.sum() for row in rows)
    assert all(0 <= own.headless <= own.predicted for own in found)


def test_outcomes_of_both_packings_are_there_for_every_stage_and_source():
    stages = (StageConfig(320, 4, 8, "split", {"a": 1, "b": 2}), StageConfig(320, 4, 16, "best_fit", {"b": 1}))
    plan = make_plan(shards_of(), BatchConfig(stages=stages))
    outcomes, (counted, there) = measure(parts_of(plan))
    assert counted == there
    assert set(outcomes) == {(n, name, p) for n, name in ((0, "a"), (0, "b"), (1, "b")) for p in PACKINGS}
    for (number, name, packing), own in outcomes.items():
        segment = plan.segments[number]
        stream = segment.streams[list(segment.mixture.weights).index(name)].rows
        rows = count_rows(packing, stream.source.lengths, stream.source.bounds, stream.row_length)
        assert own.rows == rows.sum()


def test_outcomes_of_a_large_corpus_are_counted_in_a_sample():
    plan = make_plan(shards_of(), BatchConfig(rows=4, row_length=8), steps=5)
    with mock.patch("data.inspect.PIECES", 100):
        outcomes, (counted, there) = measure(parts_of(plan))
    assert 0 < counted < there
    assert outcomes[0, "", "split"].slots > 0


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


@pytest.mark.parametrize("seed", range(6))
def test_epochs_are_tokens_predicted_over_those_there_are_whatever_the_stages(seed):
    random = np.random.default_rng(seed)
    shards, mixture = shards_of(150, seed), {"a": 0.5, "b": 0.3, "c": 0.2}
    drawn = [
        (int(random.integers(3, 9)), int(random.integers(5, 60)), str(random.choice(PACKINGS))) for _ in range(4)
    ]
    stages = tuple(StageConfig(r * t * int(random.integers(2, 40)), r, t, p, mixture) for r, t, p in drawn)
    plan = make_plan(shards, BatchConfig(stages=stages), seed)
    batches, predicted = Batches(plan), collections.Counter()
    for k in range(plan.steps):
        for found in batches.documents(k):
            predicted[found.source] += found.piece.predicted
    there = np.bincount(shards.source_of, shards.lengths - 1)
    for name, own in readings(plan).items():
        # Within a window epochs are counted by rows, which do not all predict as many tokens.
        assert own.epochs == pytest.approx(predicted[name] / there["abc".index(name)], abs=0.04)


def test_a_source_that_runs_dry_is_read_as_often_as_it_may():
    stages = (StageConfig(4 * 12 * 17, 4, 12), StageConfig(4 * 30 * 60, 4, 30, "best_fit"))
    config = BatchConfig(stages=stages, mixture={"a": 0.5, "b": 0.5}, max_epochs={"a": 2})
    found = readings(make_plan(shards_of(), config))["a"]
    assert found.dry > 17  # in the second stage
    assert 1.8 < found.epochs <= 2


def test_epochs_of_a_source_that_grew_are_those_of_its_documents():
    lengths, names = [9] * 64, ["a", "b"] * 32
    config, corpus = (
        BatchConfig(rows=2, row_length=8, mixture={"a": 1.0}),
        Corpus(FakeShards(lengths, names, (32,)), 0),
    )
    half = ask(config, 20, corpus.generations[:1])
    history = continue_history((half,), ask(config, 16, corpus.generations, 4), amend=True)
    assert readings(Plan(history, corpus, 0))["a"].epochs == pytest.approx(32 / 36)  # of rows; a window of 8 has 9


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


def test_amendments_and_skips_are_parts():
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
