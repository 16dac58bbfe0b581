"""Draws are what the distribution says, of a place whatever the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.compress import draw, largest, place_keys

drawn = jax.jit(draw, static_argnums=2)


def draws(probs_V, places, n=50, seed=0):
    """Of so many places with one distribution [places, n]."""
    X = len(places)
    keys = place_keys(seed, jnp.full(X, 7, jnp.uint32), jnp.asarray(places))
    return np.asarray(drawn(jnp.broadcast_to(probs_V, (X, len(probs_V))), keys, n))


@pytest.mark.parametrize("V", [1, 2, 50, 64, 211])
def test_frequencies_are_the_probabilities(V):
    """500,000 draws; 4.5 standard errors are exceeded by one id in 150,000."""
    probs_V = np.random.default_rng(V).dirichlet(np.full(V, 0.3)).astype(np.float32)
    probs_V[V // 2] *= V == 1
    probs_V /= probs_V.sum()
    found = draws(probs_V, np.arange(10_000))
    frequency_V = np.bincount(found.ravel(), minlength=V) / found.size
    assert len(frequency_V) == V
    assert (np.abs(frequency_V - probs_V) <= 4.5 * np.sqrt(probs_V / found.size) + 1e-6).all()
    assert (frequency_V[probs_V == 0] == 0).all()


def test_draws_of_a_place_are_independent():
    """Two of them agree as often as the distribution says: sum of p^2."""
    probs_V = np.random.default_rng(0).dirichlet(np.full(40, 0.5)).astype(np.float32)
    found = draws(probs_V, np.arange(20_000), n=2)
    both = (found[:, 0] == found[:, 1]).mean()
    expected = (probs_V**2).sum()
    assert abs(both - expected) < 4.5 * np.sqrt(expected / len(found))


def test_a_long_tail_is_drawn_evenly():
    """Half of the mass on one id, half on 100,000: in each tenth of the tail as many draws."""
    probs_V = np.full(100_001, 0.5 / 100_000, np.float32)
    probs_V[50_000] = 0.5
    found = np.concatenate([draws(probs_V, np.arange(first, first + 20), n=250) for first in range(0, 200, 20)])
    tail = found[found != 50_000]
    assert abs(len(tail) / found.size - 0.5) < 4.5 * np.sqrt(0.25 / found.size)
    tenths = np.histogram(tail, 10, (0, 100_001))[0] / len(tail)
    assert (np.abs(tenths - 0.1) < 4.5 * np.sqrt(0.09 / len(tail))).all()


def test_draws_depend_on_seed_document_and_place_alone():
    random = np.random.default_rng(1)
    probs_XV = random.dirichlet(np.ones(30), 12).astype(np.float32)
    documents, places = np.arange(12, dtype=np.uint32) // 3, np.arange(12) % 5

    def of(order, seed=3, shift=0):
        return np.asarray(
            drawn(probs_XV[order], place_keys(seed, documents[order] + np.uint32(shift), places[order]), 9)
        )

    whole, order = of(np.arange(12)), random.permutation(12)[:7]
    np.testing.assert_array_equal(of(order), whole[order])
    assert (of(np.arange(12), seed=4) != whole).mean() > 0.5
    assert (of(np.arange(12), shift=1) != whole).mean() > 0.5


def test_the_largest_are_the_largest():
    probs_XV = np.random.default_rng(0).dirichlet(np.ones(20), 5).astype(np.float32)
    ids_Xk, probs_Xk = largest(probs_XV, 4)
    np.testing.assert_array_equal(ids_Xk, np.argsort(-probs_XV)[:, :4])
    np.testing.assert_array_equal(probs_Xk, -np.sort(-probs_XV)[:, :4])
