"""Schedules beside their formulas, step by step, and batches that grow."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config import parse
from core.errors import UserError
from optim.build import build
from optim.config import OptimConfig, ScheduleConfig
from optim.schedule import DECAYS, Steps, make_schedule

FORMULAS = {  # what is left when a part t of the decay has passed, `f` being what is left in the end
    "linear": lambda t, f: 1 - (1 - f) * t,
    "1-sqrt": lambda t, f: 1 - (1 - f) * math.sqrt(t),
    "cosine": lambda t, f: f + (1 - f) * (1 + math.cos(math.pi * t)) / 2,
    "exponential": lambda t, f: f**t,
}


def config(warmup=0, fraction=0.2, rate=1.0, **own):
    return OptimConfig(
        learning_rate=rate, warmup_steps=warmup, decay_fraction=fraction, schedule=ScheduleConfig(**own)
    )


def expected(step, steps, warmup, decay_steps, shape, final):
    if step < warmup:
        return (step + 1) / warmup
    begin = steps - decay_steps
    return 1.0 if step < begin else FORMULAS[shape](min(1, (step - begin) / decay_steps), final)


@settings(max_examples=12, deadline=None)
@given(
    shape=st.sampled_from(sorted(DECAYS)), steps=st.integers(2, 60), data=st.data(), final=st.sampled_from([0.1, 0.5])
)
def test_every_step_of_warmup_stable_decay(shape, steps, data, final):
    """By formula, as one array and one by one, and never up again."""
    decay_steps = data.draw(st.integers(1, steps))
    warmup = data.draw(st.integers(0, steps - decay_steps))
    schedule = make_schedule(config(warmup, decay=shape, decay_steps=decay_steps, final=final), steps)
    rates = np.asarray(schedule(np.arange(61)))[: steps + 1]  # of one length, so that each formula is compiled once
    wanted = [expected(step, steps, warmup, decay_steps, shape, final) for step in range(steps + 1)]
    np.testing.assert_allclose(rates, wanted, rtol=1e-5)
    assert np.all(np.diff(rates[warmup:]) <= 1e-6)
    assert rates[steps] == pytest.approx(final, rel=1e-5)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_decay_from_the_end_of_the_warmup(kind):
    schedule = make_schedule(config(4, kind=kind), 20)  # decay_fraction is of no account
    wanted = [expected(step, 20, 4, 16, kind, 0.0) for step in range(21)]
    np.testing.assert_allclose(schedule(np.arange(21)), wanted, atol=1e-6)


def test_the_fraction_and_the_steps_of_a_decay_are_the_same_thing():
    both = [make_schedule(own, 50) for own in (config(5, 0.2), config(5, 0.9, decay_steps=10))]
    np.testing.assert_array_equal(*(schedule(np.arange(50)) for schedule in both))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (config(0, decay_steps=101), "warmup_steps=0 and a decay over the last 101 do not fit into train.steps=100"),
        (config(91, decay_steps=10), "warmup_steps=91 and a decay over the last 10 do not fit into train.steps=100"),
        (config(100, kind="cosine"), "warmup_steps=100 leaves no decay of train.steps=100"),
        (config(batch=(0.5, 0.5)), "batch has 2 exponents for 3 stages"),
    ],
)
def test_what_does_not_fit_is_refused(own, message):
    with pytest.raises(UserError, match=message):
        build(own, 100, (Steps(50, 8), Steps(25, 16), Steps(25, 32)))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"decay": "exponential"}, "decay='exponential' never gets to final=0"),
        ({"final": 1.5}, "final=1.5 must lie in 0..1"),
        ({"decay_steps": -1}, "decay_steps=-1 must be 0 or more"),
        ({"decay": "1-sqr"}, "did you mean 1-sqrt"),
        ({"batch": "square"}, "batch='square' must be"),
    ],
)
def test_settings_that_cannot_be_are_refused(own, message):
    with pytest.raises(UserError, match=message):
        parse(OptimConfig, {"schedule": own}, "optim")


RAMP = (Steps(10, 1024), Steps(10, 2048), Steps(10, 3072))


@pytest.mark.parametrize(
    ("own", "factors"),
    [
        ({}, (1, 1, 1)),
        ({"batch": "sqrt"}, (1, math.sqrt(2), math.sqrt(3))),
        ({"batch": "linear"}, (1, 2, 3)),
        ({"batch": "linear", "base_tokens": 2048}, (0.5, 1, 1.5)),
        ({"batch": (0.0, 0.6, 0.5)}, (1, 2**0.6, 3**0.5)),  # modded-nanogpt's: 1.52 and 1.73
    ],
)
def test_larger_batches_raise_the_rate_from_their_first_step_on(own, factors):
    schedule = make_schedule(config(0, 0.0, rate=0.1, **own), 30, RAMP)
    np.testing.assert_allclose(jax.jit(schedule)(np.arange(30)), 0.1 * np.repeat(factors, 10), rtol=1e-6)
    assert float(schedule(10)) == pytest.approx(0.1 * factors[1])
    assert float(schedule(30)) == pytest.approx(0.1 * factors[2])  # beyond the end


def test_the_rule_multiplies_warmup_and_decay_too():
    plain, ramped = (make_schedule(config(15, 0.4, batch=b), 30, RAMP) for b in ("none", "sqrt"))
    steps = np.arange(30)
    np.testing.assert_allclose(ramped(steps), plain(steps) * np.sqrt(np.repeat([1, 2, 3], 10)), rtol=1e-6)


def test_a_number_on_the_command_line_is_an_exponent():
    assert parse(ScheduleConfig, {"batch": 0.6}, "x").batch == 0.6
    assert parse(ScheduleConfig, {"batch": [0, 0.6]}, "x").batch == (0.0, 0.6)
    assert dataclasses.replace(ScheduleConfig(), batch=(0.5,)).batch == (0.5,)
