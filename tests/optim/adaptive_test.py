"""The learning rate and the threshold that follow the logits: bounded, smooth, and nothing at a distance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optim.adaptive import Track, adapt, follow, rates, thresholds
from optim.config import AdaptiveConfig, QKClipConfig
from optim.metrics import collect

# One layer of width 3, with 4 query heads and 2 key heads of size 2
SHAPES = {"query": (1, 3, 4, 2), "key": (1, 3, 2, 2), "value": (1, 3, 2, 2), "query_bias": (1, 4, 2)}
CONFIG = AdaptiveConfig(rate="heads", slack=2.0)


def tracked(series, smoothing=0.2):
    track = Track(jnp.zeros(1), jnp.zeros(1))
    for step, value in enumerate(series):
        track = follow(track, jnp.array([value]), jnp.array(step == 0), smoothing)
    return track


def test_a_constant_is_its_own_level_and_a_line_its_own_trend():
    level, trend = tracked([7.0] * 20)
    np.testing.assert_allclose([level[0], trend[0]], [7.0, 0.0], atol=1e-5)
    level, trend = tracked(3.0 + 0.5 * np.arange(200))
    np.testing.assert_allclose([level[0], trend[0]], [3 + 0.5 * 199, 0.5], rtol=1e-3)


def test_what_is_not_finite_changes_nothing():
    before = tracked([1.0, 2.0, 3.0])
    for value in (np.nan, np.inf):
        after = follow(before, jnp.array([value]), jnp.array(False), 0.2)
        np.testing.assert_array_equal(after, before)


def test_growth_lowers_the_rate_before_the_size_does():
    steady, growing = tracked([40.0] * 50), tracked(np.linspace(0, 40, 50))
    assert float(rates(steady, CONFIG)[0]) == 1.0
    assert 0.5 < float(rates(growing, CONFIG)[0]) < 1.0  # 40 and 20 steps of 0.8 are 56
    falling = tracked(np.linspace(80, 40, 50))
    np.testing.assert_allclose(rates(falling, CONFIG), rates(Track(falling.level_LN, jnp.zeros(1)), CONFIG))


def test_the_rate_falls_smoothly_from_one_to_the_least():
    level = jnp.arange(0.0, 200.0)
    found = np.asarray(rates(Track(level, jnp.zeros_like(level)), CONFIG))
    np.testing.assert_array_equal(found[:51], 1.0)
    np.testing.assert_allclose(found[100:], 0.1, rtol=1e-6)
    assert found[75] == pytest.approx(0.55, abs=1e-6)
    steps = np.diff(found)
    assert steps.max() <= 0
    assert steps.min() > -0.03  # half a cosine over 50: at most 0.9 * pi / 100 a step


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e30, 1e30) | st.sampled_from([np.nan, np.inf, -np.inf]), min_size=1, max_size=12))
def test_rate_and_threshold_stay_within_their_bounds(series):
    track = tracked(series)
    assert 0.1 - 1e-6 <= float(rates(track, CONFIG)[0]) <= 1.0
    assert 30.0 <= float(thresholds(track.level_LN, CONFIG, 100.0)[0]) <= 100.0


def stepped(config, qk, rows):
    """Updates of one, after steps with these logits, and what was measured."""
    chain = adapt(config, qk)
    params = {"layers": {"attention": {name: np.full(shape, 0.5, np.float32) for name, shape in SHAPES.items()}}}
    ones = jax.tree.map(jnp.ones_like, params)
    state = chain.init(params)
    for row in rows:
        updates, state = chain.update(ones, state, params, max_logit_LN=jnp.array([row]))
    return updates, {name: float(value) for name, value in collect(state).items()}


def test_heads_are_slowed_alone_and_keys_with_the_slowest_that_reads_them():
    updates, measured = stepped(AdaptiveConfig(rate="heads"), QKClipConfig(), [[0.0, 100.0, 75.0, 0.0]])
    own = updates["layers"]["attention"]
    np.testing.assert_allclose(own["query"][0, 0, :, 0], [1, 0.1, 0.55, 1], rtol=1e-6)
    np.testing.assert_allclose(own["key"][0, 0, :, 0], [0.1, 0.55], rtol=1e-6)
    np.testing.assert_array_equal(own["value"], 1.0)
    assert measured == {"qk_rate": pytest.approx(0.1)}
    updates, _ = stepped(AdaptiveConfig(rate="all"), QKClipConfig(), [[0.0, 75.0, 0.0, 0.0]])
    for leaf in jax.tree.leaves(updates):
        np.testing.assert_allclose(leaf, 0.55, rtol=1e-6)


def test_a_head_that_jumps_is_clipped_at_its_own_threshold():
    rows = [[20.0, 20.0, 20.0, 45.0]] * 5 + [[60.0, 39.0, 20.0, 60.0]]
    updates, measured = stepped(AdaptiveConfig(slack=2.0), QKClipConfig(100.0), rows)
    after = 0.5 + updates["layers"]["attention"]["query"][0, 0, :, 0]
    np.testing.assert_allclose(after / 1.5, [40 / 60, 1, 1, 1], rtol=1e-4)
    assert measured == {
        "qk_threshold": pytest.approx(40.0),
        "qk_clipped_heads": 1.0,
        "qk_clip_factor": pytest.approx(2 / 3),
    }


def test_the_first_step_knows_no_level():
    _, measured = stepped(AdaptiveConfig(slack=2.0), QKClipConfig(100.0), [[99.0, 1.0, 1.0, 1.0]])
    assert (measured["qk_threshold"], measured["qk_clipped_heads"]) == (100.0, 0.0)
