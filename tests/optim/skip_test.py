"""What is skipped leaves nothing behind, and what is skipped is what OLMo's rule says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optim.config import SkipConfig
from optim.metrics import Metrics, collect
from optim.skip import skip

PARAMS = {"w": jnp.arange(4.0)}
WINDOW = 8


def olmo(values, at, window, sigmas):
    """Whether `values[at]` is a spike, by the rule of OLMo-core's SkipStepOptimizer, over what came before."""
    before = np.array(values[max(0, at - window) : at], np.float64)
    if at + 1 < max(2, window // 2):
        return False
    return values[at] - before.mean() > sigmas * before.std(ddof=1)


@functools.cache
def compiled(**own):
    chain = skip(optax.scale_by_adam(), optax.identity(), optax.identity(), SkipConfig(**own))
    return chain.init(PARAMS), jax.jit(lambda g, state, loss: chain.update({"w": g}, state, PARAMS, loss=loss))


def grads(norm):
    return jnp.full(4, norm / 2)


def moment(state):
    return np.asarray(state.inner.mu["w"])


@settings(max_examples=30, deadline=None)
@given(
    losses=st.lists(st.floats(0.5, 1.5), min_size=30, max_size=30),
    norms=st.lists(st.floats(0.5, 1.5), min_size=30, max_size=30),
    spikes=st.sets(st.integers(0, 29), max_size=4),
    which=st.booleans(),
)
def test_steps_are_skipped_by_the_rule(losses, norms, spikes, which):
    """Against plain numpy; a spike enters the window."""
    for step in spikes:
        (losses if which else norms)[step] *= 50
    losses, norms = np.float32(losses), np.float32(norms)
    state, update = compiled(spikes=True, window=WINDOW, sigmas=3.0)
    skipped = 0
    for step in range(30):
        margins = [abs(v[step] - np.mean(v[max(0, step - WINDOW) : step])) for v in (losses, norms)] if step else []
        expected = any(olmo(values, step, WINDOW, 3.0) for values in (losses, norms))
        before = moment(state)
        updates, state = update(grads(norms[step]), state, losses[step])
        took = bool((updates["w"] != 0).any())
        if took == expected and margins:  # float32 may decide otherwise only where it is a matter of its rounding
            limits = [3.0 * np.std(v[max(0, step - WINDOW) : step], ddof=1) for v in (losses, norms)]
            assert any(m == pytest.approx(limit, rel=1e-3, abs=1e-4) for m, limit in zip(margins, limits))
        skipped += not took
        assert (moment(state) == before).all() == (not took)
    assert int(collect(state)["skipped_steps"]) == skipped
    assert int(state.count) == 30


def test_the_window_of_128_begins_at_the_64th_step():
    state, update = compiled(spikes=True)
    for step in range(63):
        loss = 100.0 if step == 62 else 1.0 + 0.01 * (step % 2)
        updates, state = update(grads(1.0), state, loss)
        assert updates["w"].any()
    fresh, _ = compiled(spikes=True)
    state = fresh
    for step in range(64):
        updates, state = update(grads(1.0), state, 100.0 if step == 63 else 1.0 + 0.01 * (step % 2))
    assert not updates["w"].any()


def test_a_drop_is_no_spike_and_a_lasting_rise_is_followed():
    state, update = compiled(spikes=True, window=WINDOW)
    for step in range(20):
        updates, state = update(grads(1.0), state, 2.0 + 0.01 * (step % 2))
    updates, state = update(grads(1.0), state, -5.0)
    assert updates["w"].any()
    took = []
    for _ in range(10):
        updates, state = update(grads(1.0), state, 9.0)
        took.append(bool(updates["w"].any()))
    assert all(took[1:]), "the window knows the new level"


@pytest.mark.parametrize("spikes", [False, True])
@pytest.mark.parametrize("bad", ["loss", "gradient", "overflow"])
def test_what_is_not_finite_changes_nothing_and_is_counted(spikes, bad):
    state, update = compiled(spikes=spikes, window=WINDOW)
    clean = state
    for step in range(12):
        loss, g = 1.0 + 0.1 * (step % 3), grads(1.0 + 0.1 * (step % 2))
        if step in (3, 6, 7):
            before = state
            bad_grads = {"loss": g, "gradient": g.at[2].set(jnp.nan), "overflow": g * 1e25}[bad]
            updates, state = update(bad_grads, state, jnp.inf if bad == "loss" else loss)
            assert not np.any(updates["w"])
            for a, b in zip(jax.tree.leaves(before.inner), jax.tree.leaves(state.inner)):
                np.testing.assert_array_equal(a, b)
            assert int(collect(state)["nonfinite_in_a_row"]) == (2 if step == 7 else 1)
        else:
            updates, state = update(g, state, loss)
            expected, clean = update(g, clean, loss)
            np.testing.assert_array_equal(updates["w"], expected["w"])
            assert int(collect(state)["nonfinite_in_a_row"]) == 0
    assert int(collect(state)["skipped_steps"]) == 3
    for values, others in zip(state.window.values(), clean.window.values()):
        np.testing.assert_array_equal(values, others)  # such steps leave no trace in the window


def test_after_too_many_in_a_row_nothing_moves_any_more():
    """So that a loop that reads the metrics every tenth step still finds the parameters from before."""
    state, update = compiled(nonfinite_limit=3)
    for loss in (1.0, np.nan, np.nan, 1.0, np.nan, np.nan, np.nan, 1.0, 1.0):
        updates, state = update(grads(1.0), state, loss)
    assert not updates["w"].any()
    assert int(collect(state)["nonfinite_in_a_row"]) == 5
    assert int(collect(state)["skipped_steps"]) == 7


def test_metrics_inside_tell_of_the_step_that_was_skipped():
    def largest(g):
        return Metrics({"largest": jnp.max(g["w"])})

    watch = optax.GradientTransformation(largest, lambda g, *_: (g, largest(g)))
    chain = skip(watch, optax.identity(), optax.identity(), SkipConfig())
    updates, state = chain.update({"w": grads(8.0)}, chain.init(PARAMS), loss=jnp.nan)
    assert not updates["w"].any()
    assert float(collect(state)["largest"]) == 4.0


@pytest.mark.parametrize("own", [{"window": 3}, {"sigmas": 0.0}, {"nonfinite_limit": 0}])
def test_settings_that_cannot_be_are_refused(own):
    with pytest.raises(ValueError, match=next(iter(own))):
        SkipConfig(**own)
