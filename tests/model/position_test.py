"""Every way to stretch RoPE against its formula, and what each promises about fast and slow pairs."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from kernels.rope.api import rotate
from model.config import ModelConfig, RopeScaling
from model.position import rotary_frequencies, rotary_table

H, THETA, OLD = 64, 10_000.0, 4096
CONFIG = ModelConfig(8, 1, 64, 1, 1, H, 8, rope_theta=THETA)


def frequencies(**scaling):
    return rotary_frequencies(dataclasses.replace(CONFIG, rope_scaling=RopeScaling(**scaling)))


def plain(theta=THETA):
    return np.array([theta ** (-2 * r / H) for r in range(H // 2)])


def test_plain_frequencies_are_powers_of_the_base():
    found, factor = frequencies()
    assert factor == 1
    np.testing.assert_allclose(found, plain(), rtol=2e-7)


def test_interpolation_is_a_division_of_positions():
    found, factor = frequencies(kind="interpolation", factor=8.0)
    assert factor == 1
    stretched = dataclasses.replace(CONFIG, rope_scaling=RopeScaling("interpolation", factor=8.0))
    np.testing.assert_allclose(found, plain() / 8, rtol=2e-7)
    for ours, theirs in zip(rotary_table(jnp.array([[800]]), stretched), rotary_table(jnp.array([[100]]), CONFIG)):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_ntk_changes_the_base():
    """The slowest pair is interpolated by the whole factor, the fastest not at all."""
    found, factor = frequencies(ntk_factor=4.0)
    assert factor == 1
    np.testing.assert_allclose(found, plain(THETA * 4 ** (H / (H - 2))), rtol=1e-6)
    np.testing.assert_allclose(found[[0, -1]] / plain()[[0, -1]], [1, 1 / 4], rtol=1e-6)


def test_atom_interpolates_and_changes_the_base():
    found, _ = frequencies(kind="interpolation", factor=4.0, ntk_factor=2.0)
    np.testing.assert_allclose(found, plain(THETA * 2 ** (H / (H - 2))) / 4, rtol=1e-6)


def by_parts(factor, beta_fast=32, beta_slow=1):
    """The YaRN paper, section 3.2, pair by pair."""
    found = []
    edge = [H * math.log(OLD / (beta * 2 * math.pi)) / (2 * math.log(THETA)) for beta in (beta_fast, beta_slow)]
    low, high = max(math.floor(edge[0]), 0), min(math.ceil(edge[1]), H - 1)
    for r, frequency in enumerate(plain()):
        share = min(max((r - low) / (high - low), 0), 1)
        found.append(frequency / factor * share + frequency * (1 - share))
    return found


def test_by_parts_and_yarn():
    found, factor = frequencies(kind="ntk_by_parts", factor=8.0, original_length=OLD)
    assert factor == 1
    np.testing.assert_allclose(found, by_parts(8.0), rtol=1e-6)
    found, factor = frequencies(kind="yarn", factor=8.0, original_length=OLD)
    np.testing.assert_allclose(found, by_parts(8.0), rtol=1e-6)
    assert factor == pytest.approx(0.1 * math.log(8) + 1)
    assert frequencies(kind="yarn", factor=8.0, original_length=OLD, attention_factor=1.25)[1] == 1.25
    turns = OLD * plain() / (2 * math.pi)
    np.testing.assert_allclose(found[turns > 40], plain()[turns > 40], rtol=1e-6)
    np.testing.assert_allclose(found[turns < 0.9], plain()[turns < 0.9] / 8, rtol=1e-6)


def test_llama3():
    """Pair by pair by its wavelength."""
    found, factor = frequencies(kind="llama3", factor=32.0, original_length=OLD)
    assert factor == 1
    for frequency, ours in zip(plain(), found):
        wavelength = 2 * math.pi / frequency
        if wavelength < OLD / 4:
            want = frequency
        elif wavelength > OLD / 1:
            want = frequency / 32
        else:
            smooth = (OLD / wavelength - 1) / (4 - 1)
            want = (1 - smooth) * frequency / 32 + smooth * frequency
        assert ours == pytest.approx(want, rel=1e-6)


def test_the_attention_factor_scales_logits_by_its_square():
    yarn = dataclasses.replace(CONFIG, rope_scaling=RopeScaling("yarn", factor=1.0, original_length=OLD))
    scaled = dataclasses.replace(
        CONFIG, rope_scaling=RopeScaling("yarn", factor=1.0, original_length=OLD, attention_factor=1.5)
    )
    q, k = np.random.default_rng(0).normal(size=(2, 1, 2, 1, H)).astype(np.float32)
    logits = []
    for config in (yarn, scaled):
        cos, sin = rotary_table(jnp.array([[3, 9]]), config)
        logits.append(float((rotate(jnp.array(q), cos, sin) * rotate(jnp.array(k), cos, sin)).sum()))
    assert logits[1] == pytest.approx(1.5**2 * logits[0], abs=1e-4)


def test_interleaved_pairs_are_a_permutation_of_half_split_ones():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 2, H)), jnp.float32)
    cos, sin = rotary_table(jnp.arange(5)[None], CONFIG)
    evens_first = np.concatenate([np.arange(0, H, 2), np.arange(1, H, 2)])
    interleaved = rotate(x, cos, sin, pairs="interleaved")
    np.testing.assert_array_equal(interleaved[..., evens_first], rotate(x[..., evens_first], cos, sin))


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"kind": "yarn", "factor": 2.0}, "original_length"),
        ({"factor": 2.0}, "needs a kind"),
        ({"kind": "interpolation", "factor": 0.5}, "1 or more"),
        ({"kind": "interpolation", "factor": 2.0, "attention_factor": 1.0}, "belongs to yarn"),
        ({"kind": "yarn", "factor": 2.0, "original_length": 8, "beta_fast": 1.0}, "beta_fast"),
    ],
)
def test_impossible_scalings_are_refused(scaling, message):
    with pytest.raises(ValueError, match=message):
        RopeScaling(**scaling)
