"""Properties of the order of data, over corpora drawn by hypothesis."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import rows as module
from data.config import BatchConfig
from data.order import Permutation
from data.pipeline import Batches
from data.rows import Rows, window_bounds
from data.shards import TokenDocument, TokenShards, write_shard


class FakeShards:
    """Documents in memory: token t of document d is 1000 d + t."""

    def __init__(self, lengths):
        self.lengths = np.array(lengths)

    def read(self, documents):
        return [1000 * d + np.arange(self.lengths[d]) for d in documents]


@given(st.integers(1, 3000), st.integers(0, 2**63))
@settings(max_examples=60, deadline=None)
def test_a_permutation_is_one_and_has_its_inverse(length, seed):
    permutation = Permutation(length, seed)
    image = permutation(np.arange(length))
    assert sorted(image.tolist()) == list(range(length))
    assert (permutation.inverse(image) == np.arange(length)).all()


def test_permutations_of_large_ranges_and_of_other_seeds():
    permutation = Permutation(10**15, 1)
    index = np.arange(0, 10**15, 10**13)
    assert (permutation.inverse(permutation(index)) == index).all()
    assert int(permutation(7)) == int(permutation(np.array([7]))[0])
    first, second = (Permutation(1000, seed)(np.arange(1000)) for seed in (0, 1))
    assert (first == second).mean() < 0.02
    # positions are uncorrelated: |r| of 1,000 independent pairs is under 0.13 in all but 1 of 20,000 draws
    assert abs(np.corrcoef(np.arange(1000), first)[0, 1]) < 0.13


@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=30),
    st.integers(1, 24),
    st.integers(0, 100),
    st.integers(1, 12),
)
@settings(max_examples=80, deadline=None)
def test_an_epoch_predicts_every_token_once(lengths, row_length, seed, window):
    """Every token but the first of each document is a target of weight 1 exactly once, after its predecessor."""
    before, module.WINDOW_DOCUMENTS = module.WINDOW_DOCUMENTS, window
    try:
        rows = Rows(FakeShards(lengths), row_length, seed)
    finally:
        module.WINDOW_DOCUMENTS = before
    targets = []
    for epoch in range(2):
        seen = []
        for number in range(epoch * rows.rows_per_epoch, (epoch + 1) * rows.rows_per_epoch):
            row = rows.row(number)
            asked = row.weights_T == 1
            assert (row.targets_T[asked] == row.tokens_T[asked] + 1).all()
            seen += row.targets_T[asked].tolist()
        targets.append(seen)
        expected = [1000 * d + t for d, length in enumerate(lengths) for t in range(1, length)]
        assert sorted(seen) == expected
    if rows.rows_per_epoch > 12:
        assert targets[0] != targets[1]


@given(st.lists(st.integers(2, 40), min_size=1, max_size=30), st.integers(1, 24))
@settings(max_examples=60, deadline=None)
def test_segments_separate_documents_and_positions_count_in_them(lengths, row_length):
    rows = Rows(FakeShards(lengths), row_length, 0)
    for number in range(rows.rows_per_epoch):
        row = rows.row(number)
        real = row.segment_ids_T > 0
        documents = row.tokens_T // 1000
        for segment in set(row.segment_ids_T[real]):
            inside = row.segment_ids_T == segment
            assert len(set(documents[inside])) == 1
            assert (row.positions_T[inside] == np.arange(inside.sum())).all()
        assert (np.diff(row.segment_ids_T[real]) >= 0).all()
        assert (row.weights_T[~real] == 0).all()


def test_windows_hold_all_documents_in_order_and_bound_memory(monkeypatch):
    monkeypatch.setattr(module, "WINDOW_TOKENS", 1000)
    monkeypatch.setattr(module, "WINDOW_DOCUMENTS", 50)
    lengths = np.random.default_rng(0).integers(1, 400, 2000)
    bounds = window_bounds(lengths)
    assert bounds[0] == 0
    assert bounds[-1] == 2000
    sizes = np.diff(bounds)
    assert sizes.min() >= 1
    assert sizes.max() <= 50
    tokens = np.add.reduceat(lengths, bounds[:-1])
    assert tokens.max() < 1000 + 400


@pytest.fixture
def shards(tmp_path):
    random = np.random.default_rng(0)
    manifest = []
    for number in range(3):
        texts = [
            TokenDocument(f"{number}/{i}", "x", random.integers(0, 9, random.integers(2, 99)).tolist(), 9)
            for i in range(20)
        ]
        manifest.append(write_shard(tmp_path / f"train-{number}.array_record", texts, np.dtype("<u2")))
    return TokenShards(tmp_path, manifest, "<u2")


def test_batches_are_a_pure_function_of_seed_and_number(shards):
    config = BatchConfig(rows=4, row_length=16)
    straight = list(Batches(shards, config, 0).iterate(0, 40))
    for start in (0, 7, 39):
        for k, batch in enumerate(Batches(shards, config, 0).iterate(start, 40), start):
            for expected, got, alone in zip(straight[k], batch, Batches(shards, config, 0).batch(k)):
                np.testing.assert_array_equal(expected, got)
                np.testing.assert_array_equal(expected, alone)
    assert (straight[0].tokens_BT != Batches(shards, config, 1).batch(0).tokens_BT).any()
    assert straight[0].tokens_BT.shape == (4, 16)


def test_batches_go_on_for_ever(shards):
    batches = Batches(shards, BatchConfig(rows=4, row_length=16), 0)
    assert batches.batch(10**9).tokens_BT.shape == (4, 16)
