"""Repeated n-grams: which targets they are, beside a plain reference, and what is left of the weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import BatchConfig
from data.pipeline import Batches
from data.repeats import Repeats
from lab import FakeShards, make_plan


def plainly(repeats, targets_T, segment_ids_T, weights_T):
    """Every stretch of every row looked at by itself."""
    found = np.zeros(len(targets_T), bool)
    for begin in range(len(targets_T)):
        for period in range(repeats.min_period, repeats.max_period + 1):
            end = begin + period * repeats.max_count
            part = slice(begin, end)
            if end > len(targets_T) or not weights_T[part].all() or len(set(segment_ids_T[part].tolist())) > 1:
                continue
            if targets_T[part].tolist() == targets_T[begin : begin + period].tolist() * repeats.max_count:
                while (
                    end < len(targets_T)
                    and weights_T[end]
                    and segment_ids_T[end] == segment_ids_T[begin]
                    and (targets_T[end] == targets_T[end - period])
                ):
                    end += 1
                found[begin:end] = True
    return found


ROWS = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@given(ROWS, st.integers(1, 3), st.integers(1, 48), st.integers(1, 4), st.integers(0, 4), st.integers(2, 5))
@settings(max_examples=400, deadline=None)
def test_repetitions_are_those_of_the_definition(random, rows, length, min_period, more, count):
    """Rows of few letters, some said again, cut into documents, with targets that are not trained on."""
    repeats = Repeats(min_period, min_period + more, count)
    targets_BT = random.integers(0, 2, (rows, length)).astype(np.int32)
    for row in targets_BT:
        period, begin = random.integers(1, 7), random.integers(0, length)
        size = random.integers(0, length - begin + 1)
        row[begin : begin + size] = np.resize(random.integers(0, 3, period), size)
    segment_ids_BT = 1 + np.cumsum(random.random((rows, length)) < 0.04, 1).astype(np.int32)
    weights_BT = (random.random((rows, length)) < 0.97).astype(np.float32)
    found_BT = repeats.find(targets_BT, segment_ids_BT, weights_BT)
    given_ = (targets_BT, segment_ids_BT, weights_BT)
    assert found_BT.tolist() == [plainly(repeats, *row).tolist() for row in zip(*given_)]
    kept = repeats.weights(*given_)
    assert kept.dtype == np.float32
    assert (kept == np.where(found_BT, 0, weights_BT)).all()
    whole = repeats._replace(whole_rows=True).weights(*given_)
    assert (whole == np.where(found_BT.any(1)[:, None], 0, weights_BT)).all()


def row_of(*parts, length=600):
    """A row of one document that goes on without repetitions, parts (place, period, size) of it excepted."""
    targets_BT = np.arange(length, dtype=np.int32)[None] + 100
    for place, period, size in parts:
        targets_BT[0, place : place + size] = np.resize(np.arange(period), size)
    return targets_BT, np.ones_like(targets_BT), np.ones(targets_BT.shape, np.float32)


@pytest.mark.parametrize("period", [1, 2, 7, 13])
def test_the_numbers_of_olmo(period):
    """32 times in a row are left out, and what of the 33rd follows; 31 times and all but the last token are not."""
    repeats = Repeats(1, 13, 32)
    (found,) = np.nonzero(repeats.find(*row_of((50, period, 32 * period + period // 2)))[0])
    assert found.tolist() == list(range(50, 50 + 32 * period + period // 2))
    assert not repeats.find(*row_of((50, period, 32 * period - 1))).any()


def test_longer_periods_are_left_alone_and_shorter_ones_where_asked():
    assert not Repeats(1, 13, 32).find(*row_of((0, 14, 599))).any()
    assert not Repeats(4, 13, 32).find(*row_of((0, 13, 32 * 13 - 1))).any()
    # what has a period of 2 has one of 4 too, so a least period leaves out only what is short
    assert not Repeats(4, 4, 32).find(*row_of((0, 2, 100))).any()
    assert Repeats(4, 4, 32).find(*row_of((0, 2, 128))).sum() == 128


def test_a_repetition_ends_with_its_document_and_its_row():
    targets_BT, segment_ids_BT, weights_BT = row_of((100, 3, 96))
    segment_ids_BT[0, 150:] = 2
    assert not Repeats(1, 13, 32).find(targets_BT, segment_ids_BT, weights_BT).any()
    both_BT = np.full((2, 20), 7, np.int32)
    assert not Repeats(1, 13, 32).find(both_BT, np.ones_like(both_BT), np.ones((2, 20), np.float32)).any()


@pytest.mark.parametrize("packing", ["split", "best_fit"])
def test_batches_lose_the_weights_of_repetitions_alone(packing):
    """Documents that say one thing 20 times in their middle, among others; padding and prompts are none."""
    shards = FakeShards([50, 12, 33, 5] * 10)
    shards.trained = {2: np.arange(33) > 15}
    plain_read = shards.read_tokens

    def read_tokens(documents):
        found = [(own, own.ids % 1000) for own in plain_read(documents)]
        return [own._replace(ids=np.where((place >= 10) & (place < 30), 7, own.ids)) for own, place in found]

    shards.read_tokens = read_tokens
    plan = make_plan(shards, BatchConfig(rows=4, row_length=64, packing=packing), steps=12)
    repeats = Repeats(1, 3, 8)
    plain, masked = Batches(plan), Batches(plan, repeats=repeats)
    rows = Batches(plan, repeats=repeats._replace(whole_rows=True))
    lost = 0
    for k in range(12):
        before, after, by_row = plain.batch(k), masked.batch(k), rows.batch(k)
        for field in ("tokens_BT", "targets_BT", "segment_ids_BT", "positions_BT"):
            assert (getattr(before, field) == getattr(after, field)).all()
        changed = before.weights_BT != after.weights_BT
        assert (before.targets_BT[changed] == 7).all()
        assert (after.weights_BT[changed] == 0).all()
        assert (by_row.weights_BT[changed.any(1)] == 0).all()
        assert (by_row.weights_BT[~changed.any(1)] == before.weights_BT[~changed.any(1)]).all()
        lost += changed.sum()
    assert lost > 100
    assert all((a.weights_BT == masked.batch(k).weights_BT).all() for k, a in enumerate(masked.iterate(0, 12)))
