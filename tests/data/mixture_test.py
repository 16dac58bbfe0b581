"""Properties of the mixing rule: exact shares, counts without counting, and its inverse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from data.mixture import BLOCK, CYCLE, Mixture

WEIGHTS = st.lists(st.floats(0.001, 1.0), min_size=1, max_size=12)


def named(weights):
    return {f"s{number}": weight for number, weight in enumerate(weights)}


@given(WEIGHTS, st.integers(0, 2**40), st.integers(0, 2**63))
@settings(max_examples=150, deadline=None)
def test_counts_places_and_their_inverse_agree(weights, j, seed):
    mixture = Mixture(named(weights), seed)
    source, before = mixture.locate(j)
    assert mixture.counts(j)[source] == before
    assert mixture.index(source, before) == j
    after = mixture.counts(j + 1)
    assert after.sum() == j + 1
    assert after[source] == before + 1


@given(WEIGHTS, st.integers(0, 2**40), st.integers(1, 100_000))
@settings(max_examples=100, deadline=None)
def test_every_stretch_of_rows_has_the_mixture_asked(weights, start, length):
    mixture = Mixture(named(weights), 0)
    got = mixture.counts(start + length) - mixture.counts(start)
    share = np.array(weights) / sum(weights)
    # A stretch of blocks is within a dozen rows (the discrepancy of van der Corput); its ends cut two blocks.
    assert (np.abs(got - share * length) <= 14 + 2 * np.minimum(1, share * 4) * BLOCK).all()


def test_weights_are_normalised():
    """SmolLM3's third stage sums to 1.00565."""
    weights = [0.20, 0.30, 0.124, 0.0132, 0.115, 0.2333, 0.0181, 0.00205]
    assert sum(weights) == pytest.approx(1.00565)
    counts = Mixture(named(weights), 0).counts(CYCLE)
    np.testing.assert_allclose(counts / CYCLE, np.array(weights) / sum(weights), atol=1 / CYCLE)


def test_a_weight_of_nothing_is_refused():
    with pytest.raises(UserError, match="the weight of source s1 is less than one row in 1,048,576"):
        Mixture(named([1.0, 1e-8]), 0)


def test_sources_are_not_ordered_in_a_block():
    """The autocorrelation of a fair choice between two sources is that of an almost independent one."""
    mixture = Mixture(named([1, 1]), 0)
    sources = np.array([mixture.locate(j)[0] for j in range(4096)])
    for lag in (1, 2, 16, 256):
        assert abs(np.corrcoef(sources[:-lag], sources[lag:])[0, 1]) < 0.06
