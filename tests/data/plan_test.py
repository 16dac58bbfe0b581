"""batch(k) is a pure function of (seed, history, k): over corpora, stages, hosts and histories drawn at random."""

import dataclasses
import hashlib
import json
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from data import rows as rows_module
from data.config import BatchConfig, StageConfig
from data.corpus import POOL, Corpus
from data.explain import sightings
from data.history import ask, continue_history, from_json, skip, to_json
from data.pipeline import Batches
from data.plan import Plan
from lab import FakeShards, make_batches, make_plan

SOURCES = ("a", "b", "c")
MIXTURES = st.dictionaries(st.sampled_from(SOURCES), st.floats(0.01, 1), min_size=1)


@pytest.fixture(autouse=True, scope="module")
def _small_windows():
    with mock.patch.object(rows_module, "WINDOW_DOCUMENTS", 8):
        yield


@st.composite
def corpora(draw):
    """Documents of three sources, each with more than a row of 24."""
    lengths, sources = [], []
    for source in SOURCES:
        own = draw(st.lists(st.integers(2, 40), min_size=13, max_size=60))
        lengths += own
        sources += [source] * len(own)
    order = draw(st.permutations(range(len(lengths))))
    return [lengths[i] for i in order], [sources[i] for i in order]


@st.composite
def stage_lists(draw):
    stages = []
    for _ in range(draw(st.integers(1, 3))):
        rows, length = draw(st.sampled_from((24, 48))), draw(st.integers(1, 24))
        steps = draw(st.integers(1, 8))
        mixture = draw(st.one_of(st.just({}), MIXTURES))
        packing = draw(st.sampled_from(("split", "best_fit")))
        stages.append(StageConfig(rows * length * steps, rows, length, packing, mixture))
    return tuple(stages)


def batches_of(shards, history, seed=0, take=None):
    return Batches(Plan(history, Corpus(shards, seed), seed), take)


def history_of(shards, config, steps=0):
    return (ask(config, steps, Corpus(shards, 0).generations),)


def digest(batches, *parts):
    """Hash of the tokens, targets, segments, positions and weights of every batch, hosts put together in order."""
    value = hashlib.sha256()
    for k in range(len(batches)):
        hosts = [host.batch(k) for host in parts] or [batches.batch(k)]
        for field in zip(*hosts):
            value.update(np.concatenate(field).tobytes())
    return value.hexdigest()


def host(index, hosts):
    return lambda rows: np.arange(rows // hosts * index, rows // hosts * (index + 1))


@given(corpora(), stage_lists(), st.integers(0, 9), st.data())
@settings(max_examples=25, deadline=None)
def test_a_batch_is_the_same_from_anywhere_and_on_any_number_of_hosts(corpus, stages, seed, data):
    shards = FakeShards(*corpus)
    config = BatchConfig(stages=stages)
    whole = make_batches(shards, config, seed)
    order = data.draw(st.permutations(range(len(whole))))
    straight = list(whole.iterate(0, len(whole)))
    for k in order[:6]:
        for expected, got in zip(straight[k], make_batches(shards, config, seed).batch(k)):
            np.testing.assert_array_equal(expected, got)
    hosts = data.draw(st.sampled_from((2, 3, 8)))
    history = history_of(shards, config)
    parts = [batches_of(shards, history, seed, host(index, hosts)) for index in range(hosts)]
    assert digest(whole, *parts) == digest(whole)


@pytest.mark.parametrize("packing", ["split", "best_fit"])
def test_one_hash_over_hosts_and_three_stages(packing):
    lengths = [(37 * i * i + 11 * i) % 58 + 2 for i in range(400)]
    shards = FakeShards(lengths, [SOURCES[i * 7 // 3 % 3] for i in range(400)])
    stages = tuple(
        StageConfig(24 * length * 12, 24, length, packing, mixture)
        for length, mixture in ((16, {"a": 0.7, "b": 0.3}), (16, {"a": 0.4, "b": 0.3, "c": 0.30565}), (64, {"c": 1}))
    )
    config = BatchConfig(stages=stages)
    history, whole = history_of(shards, config), make_batches(shards, config)
    hashes = {
        hosts: digest(whole, *(batches_of(shards, history, 0, host(i, hosts)) for i in range(hosts)))
        for hosts in (1, 2, 3, 8)
    }
    assert len(set(hashes.values())) == 1
    # From one build of this code to the next as well.
    expected = {"split": "e11db791f6296a9d", "best_fit": "52e2d4dea6654732"}
    assert hashes[1][:16] == expected[packing]


def predicted_by_epoch(batches):
    """Targets of weight 1 of every epoch of every stream; fails where one comes twice."""
    found = {}
    for k in range(len(batches)):
        pool = POOL in batches.plan.segment(k).mixture.weights
        for _, source, epoch, piece in batches.documents(k):
            seen = found.setdefault((POOL if pool else source, epoch), set())
            for token in range(piece.begin + 1, piece.begin + piece.predicted + 1):
                assert (piece.document, token) not in seen
                seen.add((piece.document, token))
    return found


def targets_of(shards, name):
    """Every token but the first of every document of a source."""
    own = [d for d in range(len(shards.lengths)) if name in (POOL, shards.source(d))]
    return {(document, token) for document in own for token in range(1, int(shards.lengths[document]))}


@given(corpora(), stage_lists(), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_a_source_goes_on_where_the_stage_before_left_it(corpus, stages, seed):
    """Every token is predicted once an epoch, whatever the rows and the packing of the stages that share it."""
    shards = FakeShards(*corpus)
    found = predicted_by_epoch(make_batches(shards, BatchConfig(stages=stages), seed))
    for name in {name for name, _ in found}:
        last = max(epoch for own, epoch in found if own == name)
        for epoch in range(last):
            assert found[name, epoch] == targets_of(shards, name)


def assert_sightings(batches):
    """Looking a document up finds what going through all batches finds."""
    seen = {}
    for k in range(len(batches)):
        for row, _, epoch, piece in batches.documents(k):
            seen.setdefault(piece.document, []).append((k, row, epoch, piece))
    for document in range(0, len(batches.plan.corpus.shards.lengths), 5):
        assert sightings(batches.plan, document) == sorted(seen.get(document, []))


@given(corpora(), stage_lists(), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_documents_and_steps_find_each_other(corpus, stages, seed):
    shards = FakeShards(*corpus)
    plan = make_plan(shards, BatchConfig(stages=stages), seed)
    batches = Batches(plan)
    assert_sightings(batches)
    for k in range(len(batches)):
        segment = plan.segment(k)
        for row in range(segment.stage.rows):
            source, number = segment.locate(k, row)
            assert segment.find(source, number) == (k, row)


def test_the_order_of_names_in_a_mixture_decides_nothing():
    """What is written down comes back sorted, and must give the same data."""
    shards = FakeShards([10] * 200, ["a"] * 100 + ["b"] * 100)
    stage = StageConfig(12 * 9 * 40, 12, 9, "split", {"b": 0.6, "a": 0.4})
    history = history_of(shards, BatchConfig(stages=(stage,)))
    again = from_json(json.loads(json.dumps(to_json(history), sort_keys=True)))
    assert digest(batches_of(shards, history)) == digest(batches_of(shards, again))


@given(corpora(), MIXTURES, MIXTURES, st.integers(1, 9), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_what_was_before_a_change_stays(corpus, before, after, step, seed):
    shards = FakeShards(*corpus)
    old, new = (BatchConfig(rows=6, row_length=9, mixture=mixture) for mixture in (before, after))
    first = history_of(shards, old, 12)
    now = ask(new, 14, first[0].documents, step)
    changed = continue_history(first, now, amend=True)
    assert from_json(to_json(changed)) == changed
    original, amended = batches_of(shards, first, seed), batches_of(shards, changed, seed)
    for k in range(step):
        for expected, got in zip(original.batch(k), amended.batch(k)):
            np.testing.assert_array_equal(expected, got)
    names = {amended.plan.corpus.shards.source(found.piece.document) for found in amended.documents(13)}
    assert names <= set(after)
    assert len(amended) == 14


@given(corpora(), MIXTURES, st.integers(0, 5), st.integers(1, 6), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_a_skipped_window_is_left_out_and_the_rest_moves_up(corpus, mixture, step, batches, seed):
    shards = FakeShards(*corpus)
    history = history_of(shards, BatchConfig(rows=6, row_length=9, mixture=mixture), 20)
    original = batches_of(shards, history, seed)
    skipped = batches_of(shards, skip(history, step, batches), seed)
    for k in range(20 - batches):
        expected = original.batch(k if k < step else k + batches)
        for one, other in zip(expected, skipped.batch(k)):
            np.testing.assert_array_equal(one, other)


@given(corpora(), stage_lists(), st.data(), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_what_is_skipped_across_stages_is_not_read(corpus, stages, data, seed):
    """The tokens planned for skipped steps do not come again in that epoch, also where a stage ends among them."""
    shards = FakeShards(*corpus)
    history = history_of(shards, BatchConfig(stages=stages))
    original = batches_of(shards, history, seed)
    first = data.draw(st.integers(0, len(original) - 1))
    count = data.draw(st.integers(1, len(original) - first))
    skipped = batches_of(shards, skip(history, first, count), seed)
    assert len(skipped) == len(original)

    def tokens(batches, steps):
        for k in steps:
            pool = POOL in batches.plan.segment(k).mixture.weights
            for _, source, epoch, piece in batches.documents(k):
                for token in range(piece.begin + 1, piece.begin + piece.predicted + 1):
                    yield POOL if pool else source, epoch, piece.document, token

    left_out = set(tokens(original, range(first, first + count)))
    assert not left_out & set(tokens(skipped, range(len(skipped))))
    assert_sightings(skipped)


def test_an_amendment_takes_the_place_of_what_was_decided_for_later():
    shards = FakeShards([10] * 60, ["a"] * 30 + ["b"] * 30)
    first = history_of(shards, BatchConfig(rows=6, row_length=9, mixture={"a": 1}), 20)
    later = skip(first, 12, 3)
    other = ask(BatchConfig(rows=6, row_length=9, mixture={"b": 1}), 20, first[0].documents, 8)
    assert [record.step for record in continue_history(later, other, amend=True)] == [0, 8]
    again = dataclasses.replace(first[0], step=8)
    back = continue_history(continue_history(first, other, amend=True), again, amend=True)
    assert back == first
    # A run that starts again from step 0, its first checkpoint lost, keeps what was decided.
    at_start = dataclasses.replace(first[0], step=0)
    assert continue_history(later, at_start, amend=False) == later
    with pytest.raises(UserError, match="step 22 is not in this run, whose steps are 1 to 20"):
        skip(first, 19, 3)


def test_a_dry_source_is_read_again_when_more_epochs_are_allowed():
    shards = FakeShards([10] * 200, ["a"] * 20 + ["b"] * 180)
    few, more = (BatchConfig(rows=8, row_length=9, mixture={"a": 1, "b": 1}, max_epochs={"a": n}) for n in (1, 5))
    first = history_of(shards, few, 40)
    amended = continue_history(first, ask(more, 40, first[0].documents, 20), amend=True)
    for history, read in ((first, False), (amended, True)):
        batches = batches_of(shards, history)
        sources = {found.source for k in range(20, 25) for found in batches.documents(k)}
        assert ("a" in sources) == read


@given(corpora(), st.integers(1, 12), st.integers(0, 9), st.sampled_from(("split", "best_fit")))
@settings(max_examples=10, deadline=None)  # a second each
def test_added_documents_join_and_what_was_before_stays(corpus, step, seed, packing):
    """The epoch under way goes on with what is left of it and what is new, each once."""
    lengths, sources = corpus
    count = len(lengths) - 13
    small = FakeShards(lengths[:count], sources[:count])
    large = FakeShards(lengths, sources, generations=(count,))
    config = BatchConfig(rows=4, row_length=9, packing=packing)
    first = history_of(small, config, 200)
    grown = continue_history(first, ask(config, 200, Corpus(large, 0).generations, step), amend=True)
    original, amended = batches_of(small, first, seed), batches_of(large, grown, seed)
    for k in range(step):
        for expected, got in zip(original.batch(k), amended.batch(k)):
            np.testing.assert_array_equal(expected, got)
    found = predicted_by_epoch(amended)
    last = max(epoch for _, epoch in found)
    epochs = [found[POOL, epoch] for epoch in range(last)]
    # In its last window an epoch has no place left for them; then they come with the next.
    assert all(epoch in (targets_of(small, POOL), targets_of(large, POOL)) for epoch in epochs)
    assert any(document >= count for document, _ in found[POOL, last] | set().union(*epochs))
    assert_sightings(amended)


def test_a_source_runs_dry_and_the_others_go_on():
    shards = FakeShards([10] * 200, ["a"] * 20 + ["b"] * 180)
    config = BatchConfig(rows=8, row_length=9, mixture={"a": 0.5, "b": 0.5}, max_epochs={"a": 2})
    batches = make_batches(shards, config, steps=20)
    shares, seen = [], {}
    for k in range(20):
        documents = batches.documents(k)
        shares.append(np.mean([found.source == "a" for found in documents]))
        for found in documents:
            if found.source == "a":
                seen[found.epoch, found.piece.document] = True
    assert 0 < max(shares[:5]) < 1
    assert max(shares[12:]) == 0
    assert {epoch for epoch, _ in seen} == {0, 1}
    assert len(seen) >= 40 - 8  # less than a batch's share is left unread


def test_what_cannot_be_is_refused_in_one_line():
    shards = FakeShards([10] * 40, ["a"] * 20 + ["b"] * 20)
    with pytest.raises(UserError, match=r"all sources \(a\) have run dry after step 11, 792 tokens; raise"):
        make_plan(shards, BatchConfig(rows=8, row_length=9, mixture={"a": 1}, max_epochs={"a": 4}), steps=50)
    with pytest.raises(UserError, match="the mixture names a source c that no document has; known are a, b"):
        make_plan(shards, BatchConfig(mixture={"c": 1}))
    with pytest.raises(UserError, match="source a holds 200 tokens, not a row of 256 and the one after it"):
        make_plan(shards, BatchConfig(mixture={"a": 1, "b": 2}))
    with pytest.raises(ValueError, match="mixture: the weight of a is -1, must be 0 or more"):
        BatchConfig(mixture={"a": -1})
    with pytest.raises(ValueError, match="mixture: all weights are zero"):
        BatchConfig(mixture={"a": 0, "b": 0})
    with pytest.raises(UserError, match="step 50 is not in this run, whose batches are numbered 0 to 49"):
        make_plan(shards, BatchConfig(rows=8, row_length=9), steps=50).segment(50)


def test_a_history_that_contradicts_is_refused():
    shards = FakeShards([10] * 40)
    old = BatchConfig(rows=8, row_length=9)
    history = history_of(shards, old, 50)
    now = dataclasses.replace(history[0], step=7)
    assert continue_history(history, now, amend=False) == history
    changed = ask(BatchConfig(rows=4, row_length=9), 50, history[0].documents, 7)
    message = r"contradicts the history of this run \(stages\[0\].rows was 8, is 4\); `launch.py train --amend`"
    with pytest.raises(UserError, match=message):
        continue_history(history, changed, amend=False)
    other = Corpus(FakeShards([11] * 40), 0).generations
    with pytest.raises(UserError, match="the documents are not those this run was trained on"):
        continue_history(history, dataclasses.replace(now, documents=other), amend=True)
    with pytest.raises(UserError, match="60 steps are done and the config asks for 50"):
        continue_history(history, dataclasses.replace(changed, step=60), amend=True)
    with pytest.raises(UserError, match="the token shards are not those of the run's history"):
        Plan(history, Corpus(FakeShards([11] * 40), 0), 0)


def test_resuming_far_ahead_reads_no_document_of_before():
    shards = FakeShards([50] * 2000)
    batches = make_batches(shards, BatchConfig(rows=8, row_length=64), steps=2_000_000)
    batches.batch(1_000_000)
    assert shards.reads <= 2 * 8  # a window or two, of 8 documents here
