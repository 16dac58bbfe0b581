"""Documents that are filled in the middle: what they are made of, how many, and the same from any side."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import BatchConfig, StageConfig
from data.corpus import Corpus
from data.history import ask
from data.infill import FillInTheMiddle
from data.order import uniform
from data.pipeline import Batches
from data.plan import Plan
from lab import FakeShards
from objectives.multi_token import targets_of

PREFIX, SUFFIX, MIDDLE = 900_001, 900_002, 900_003  # beyond all tokens of FakeShards
AROUND = {"begin": 1, "end": 1}


def make_infill(rate=0.5, spm_rate=0.5, seed=0, **changes):
    return FillInTheMiddle(seed, rate, spm_rate, PREFIX, SUFFIX, MIDDLE, **{**AROUND, **changes})


def put_back(ids, begin=1, end=1):
    """The document that was rearranged, its cuts, and whether its suffix came first."""
    ids = ids.tolist()
    inside = ids[begin : len(ids) - end]
    p, s, m = (inside.index(sentinel) for sentinel in (PREFIX, SUFFIX, MIDDLE))
    assert p == 0
    suffix = inside[s + 1 : m]
    if s == 1:  # SPM, or a PSM without a prefix: both are put back alike, as what follows tells
        rest, prefix = inside[m + 1 :], []
    else:
        rest, prefix = inside[m + 1 :], inside[1:s]
    return ids[:begin], prefix, rest, suffix, ids[len(ids) - end :]


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=20),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(0, 5),
)
@settings(max_examples=150, deadline=None)
def test_a_rearranged_document_is_the_document_and_three_tokens(lengths, spm_rate, begin, end, epoch):
    shards, infill = FakeShards(lengths), make_infill(1.0, spm_rate, begin=begin, end=end)
    documents = np.arange(len(lengths))
    chosen = infill.chosen(shards, documents)
    assert (chosen == (np.array(lengths) > begin + end)).all()
    for found, tokens, own in zip(infill.read(shards, documents, epoch), shards.read_tokens(documents), chosen):
        assert found.trained is None
        if not own:
            assert (found.ids == tokens.ids).all()
            continue
        assert sorted(found.ids.tolist()) == [*tokens.ids.tolist(), PREFIX, SUFFIX, MIDDLE]
        first, prefix, rest, suffix, last = put_back(found.ids, begin, end)
        assert [*first, *prefix, *rest, *suffix, *last] == tokens.ids.tolist()
        if spm_rate == 1:
            assert not prefix


def test_the_two_orders():
    """By hand: a document of 8 tokens, the first and the last not of its text, cut behind the third and the fifth."""
    infill, ids = make_infill(), np.arange(8)
    assert infill._rearranged(ids, 3, 5, False).tolist() == [0, PREFIX, 1, 2, SUFFIX, 5, 6, MIDDLE, 3, 4, 7]
    assert infill._rearranged(ids, 3, 5, True).tolist() == [0, PREFIX, SUFFIX, 5, 6, MIDDLE, 1, 2, 3, 4, 7]


def test_rates_and_cuts_are_as_asked():
    """Of 40,000 documents; bounds of five standard deviations, which one run in a million would miss."""
    count, length = 40_000, 12
    shards, documents = FakeShards([length] * count), np.arange(count)
    infill = make_infill(0.3, 0.25)
    chosen = infill.chosen(shards, documents)
    within(chosen.sum(), 0.3, count)
    found = [tokens.ids for tokens, own in zip(infill.read(shards, documents, 0), chosen) if own]
    inside = [ids[1:-1].tolist() for ids in found]
    cuts = np.array([len(own) - 1 - own.index(MIDDLE) for own in inside if own.index(SUFFIX) > 1])
    # of PSM with a prefix: what follows <middle> is the middle; with a prefix of at least one it has 0 to 9 tokens
    assert set(cuts.tolist()) == set(range(10))
    suffixes = np.array([own.index(MIDDLE) - own.index(SUFFIX) - 1 for own in inside])
    # of two places among 11, both ends included, the later is the last in 21 of 121 draws, the first in 1
    for size, share in ((0, 21 / 121), (10, 1 / 121)):
        within((suffixes == size).sum(), share, len(suffixes))
    spm = np.array([own.index(SUFFIX) == 1 for own in inside])
    within(spm.sum(), 0.25 + 0.75 * 21 / 121, len(spm))  # a PSM without a prefix looks the same


def within(found, share, count):
    assert abs(found - share * count) < 5 * np.sqrt(share * (1 - share) * count)


def test_draws_are_even_and_of_their_seed():
    draws = uniform(7, np.arange(100_000))
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.bincount((draws * 100).astype(int), minlength=100)
    assert ((counts - 1000) ** 2 / 1000).sum() < 170  # chi-squared of 99 degrees, 1 in 100,000
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.02
    assert (uniform(7, np.array([5, 3])) == draws[[5, 3]]).all()
    assert (uniform(8, np.arange(100)) != draws[:100]).all()


def test_a_document_is_chosen_for_all_epochs_and_cut_anew_in_each():
    shards, documents = FakeShards([50] * 200), np.arange(200)
    infill = make_infill()
    chosen, first, second = infill.chosen(shards, documents), *(infill.read(shards, documents, e) for e in (0, 1))
    same = np.array([a.ids.tolist() == b.ids.tolist() for a, b in zip(first, second)])
    assert same[~chosen].all()
    assert same[chosen].mean() < 0.05
    assert (make_infill(seed=1).chosen(shards, documents) != chosen).any()
    # one by one and in any order as together
    for document in (7, 3):
        (alone,) = infill.read(shards, np.array([document]), 1)
        assert (alone.ids == second[document].ids).all()


def test_conversations_and_other_sources_stay_as_they_are():
    shards, documents = FakeShards([20] * 30, ["code", "web", "math"] * 10), np.arange(30)
    shards.trained = {0: np.arange(20) > 9, 1: np.arange(20) > 9}
    every = make_infill(1.0).chosen(shards, documents)
    assert np.flatnonzero(~every).tolist() == [0, 1]
    own = make_infill(1.0, sources=("code", "math")).chosen(shards, documents)
    assert set(np.flatnonzero(own) % 3) == {0, 2}
    assert not own[0]
    read = make_infill(1.0).read(shards, documents[:1], 0)[0]
    assert (read.trained == shards.trained[0]).all()


def make_batches(shards, config, infill, steps=60, **options):
    corpus = Corpus(shards, 0, infill)
    return Batches(Plan((ask(config, steps, corpus.generations),), corpus, 0), **options)


LENGTHS = st.lists(st.integers(1, 40), min_size=3, max_size=30).filter(lambda found: sum(found) > 60)
PACKINGS = ("split", "best_fit")


@given(LENGTHS, st.integers(2, 24), st.sampled_from(PACKINGS), st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_an_epoch_predicts_every_token_of_what_was_rearranged_once(lengths, row_length, packing, seed):
    shards, infill = FakeShards(lengths), make_infill(0.7, seed=seed)
    corpus = Corpus(shards, 0, infill)
    rows = corpus.rows("", 1, row_length, packing, ())
    for epoch in range(2):
        read = infill.read(shards, np.arange(len(lengths)), epoch)
        assert [len(tokens.ids) for tokens in read] == corpus.source("", 1).lengths.tolist()
        seen = []
        for number in range(epoch * rows.rows_per_epoch, (epoch + 1) * rows.rows_per_epoch):
            row = rows.row(number)
            for segment, piece in enumerate(rows.pieces(number), 1):
                inside, own = slice(piece.start, piece.start + piece.size), read[piece.document].ids
                assert (row.segment_ids_T[inside] == segment).all()
                assert (row.tokens_T[inside] == own[piece.begin : piece.begin + piece.size]).all()
                assert (row.positions_T[inside] == np.arange(piece.size)).all()
            seen += row.targets_T[row.weights_T == 1].tolist()
        assert sorted(seen) == sorted(token for tokens in read for token in tokens.ids[1:].tolist())


@pytest.mark.parametrize("packing", PACKINGS)
def test_no_head_predicts_across_documents(packing):
    """The three tokens belong to their document: at every offset it is what the rearranged document has there."""
    lengths = np.random.default_rng(0).integers(2, 20, 60).tolist()
    shards, infill = FakeShards(lengths), make_infill(0.6)
    batches = make_batches(shards, BatchConfig(rows=4, row_length=32, packing=packing), infill)
    checked = np.zeros(3, int)
    for k in range(6):
        batch, documents = batches.batch(k), batches.documents(k)
        read = {(found.piece.document, found.epoch): None for found in documents}
        for document, epoch in read:
            read[document, epoch] = infill.read(shards, np.array([document]), epoch)[0].ids
        for offset in (1, 2, 3):
            targets_BT, weights_BT = map(np.asarray, targets_of(batch, offset))
            for row, _, epoch, piece in documents:
                own, inside = read[piece.document, epoch], slice(piece.start, piece.start + piece.size)
                (asked,) = np.nonzero(weights_BT[row, inside])
                assert (targets_BT[row, inside][asked] == own[piece.begin + asked + offset]).all()
                checked[offset - 1] += len(asked)
    assert (checked > 100).all()
    assert checked[0] > checked[1] > checked[2]


STAGES = (
    StageConfig(tokens=4 * 24 * 7, row_length=24),
    StageConfig(tokens=4 * 40 * 9, row_length=40, packing="best_fit"),
    StageConfig(tokens=4 * 16 * 200, row_length=16),
)


def test_a_stage_goes_on_within_documents_that_are_rearranged():
    """Two epochs across changes of rows: what is left of a window is what was begun."""
    lengths = np.random.default_rng(1).integers(2, 60, 40).tolist()
    shards, infill = FakeShards(lengths), make_infill(0.6)
    batches, seen = make_batches(shards, BatchConfig(rows=4, stages=STAGES), infill, 0), {0: [], 1: []}
    for k in range(batches.plan.steps):
        batch = batches.batch(k)
        for row, _, epoch, piece in batches.documents(k):
            inside = slice(piece.start, piece.start + piece.size)
            asked = batch.weights_BT[row, inside] == 1
            if epoch in seen:
                seen[epoch] += batch.targets_BT[row, inside][asked].tolist()
    for epoch, found in seen.items():
        read = infill.read(shards, np.arange(len(lengths)), epoch)
        assert sorted(found) == sorted(token for tokens in read for token in tokens.ids[1:].tolist())


def test_batches_are_the_same_by_number_in_order_on_parts_of_hosts_and_after_a_restart():
    shards, config = FakeShards([9, 30, 17] * 30), BatchConfig(rows=4, row_length=32, stages=())
    batches = make_batches(shards, config, make_infill())
    read = list(batches.iterate(0, 40))
    restarted = make_batches(shards, config, make_infill())
    takes = [lambda rows, host=host: np.arange(rows)[host::2] for host in (0, 1)]
    halves = [make_batches(shards, config, make_infill(), take=take) for take in takes]
    for k in (39, 3, 20):
        for name, whole in zip(read[k]._fields, read[k]):
            assert (whole == getattr(restarted.batch(k), name)).all()
            for host, half in enumerate(halves):
                assert (whole[host::2] == getattr(half.batch(k), name)).all()
    resumed = make_batches(shards, config, make_infill()).iterate(25, 30)
    assert all((a.tokens_BT == b.tokens_BT).all() for a, b in zip(resumed, read[25:30], strict=True))
    plain = make_batches(shards, config, None)
    assert any((plain.batch(k).tokens_BT != read[k].tokens_BT).any() for k in range(5))
    assert not any(np.isin(plain.batch(k).tokens_BT, (PREFIX, SUFFIX, MIDDLE)).any() for k in range(40))
