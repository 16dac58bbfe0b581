"""Every kind of clipping beside the rule in plain numpy, and what holds for all."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import transformer
from model.config import ModelConfig
from optim.clip import CLIPS, clip, unit_axes
from optim.config import ClipConfig, OptimConfig
from optim.metrics import collect

MODEL = ModelConfig(
    vocab_size=12, num_layers=2, d_model=8, num_heads=2, num_kv_heads=1, head_dim=4, d_ff=6, tied_head=False
)
PARAMS = transformer.init(MODEL, 0)
STEPS = 12
# Settings of every kind, few so that little is compiled.
OWN = {
    "global_norm": {},
    "agc": {"agc_ratio": 0.3},
    "adagc": {"adagc_warmup": 3, "adagc_decay": 0.9, "adagc_ratio": 1.05},
    "zclip": {"clip_norm": 3.0, "zclip_warmup": 3, "zclip_threshold": 2.0},
    "none": {},
}


def gradients(seed, scale=1.0):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda p: (scale * random.normal(size=p.shape)).astype(np.float32), PARAMS)


def leaves(tree):
    """Arrays by path, in float64."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x, np.float64) for path, x in found}


def norm(tree):
    return np.sqrt(sum(np.square(x).sum() for x in leaves(tree).values()))


def config(kind, clip_norm=1.0, **own):
    return OptimConfig(clip_norm=clip_norm, clip=ClipConfig(kind=kind, **own))


@functools.cache
def compiled(kind, **own):
    chain = clip(config(kind, **OWN[kind] | own))
    return chain.init(PARAMS), jax.jit(chain.update)


def run(kind, scales, **own):
    """What a clip leaves of gradients of these scales, and its metrics, step by step."""
    state, update = compiled(kind, **own)
    for seed, scale in enumerate(scales):
        grads = gradients(seed, scale)
        after, state = update(grads, state, PARAMS)
        yield leaves(grads), leaves(after), {name: float(value) for name, value in collect(state).items()}


def spikes(seed=0, steps=STEPS):
    """Scales about 1, some far above."""
    random = np.random.default_rng(seed)
    return np.where(random.random(steps) < 0.3, 30.0, random.uniform(0.5, 1.0, steps)) * 0.05


def check(after, expected, metrics, grads, smaller):
    for name, x in expected.items():
        np.testing.assert_allclose(after[name], x, rtol=2e-5, atol=1e-8, err_msg=name)
    before = norm(grads)
    assert metrics["clipped_share"] == pytest.approx(1 - norm(expected) / before, abs=1e-5)
    assert metrics["clipped_tensors"] == smaller


def test_global_norm_is_one_factor():
    for grads, after, metrics in run("global_norm", spikes()):
        size = norm(grads)
        expected = {name: g * min(1, 1 / size) for name, g in grads.items()}
        check(after, expected, metrics, grads, size > 1)


def test_none_changes_nothing():
    for grads, after, metrics in run("none", spikes()):
        assert all((after[name] == g).all() for name, g in grads.items())
        assert not metrics


INPUTS = {  # axes, written out by hand from the shapes of the model
    "layers/attention/query": (1,),
    "layers/attention/key": (1,),
    "layers/attention/value": (1,),
    "layers/attention/output": (1, 2),
    "layers/feed_forward/gate": (1,),
    "layers/feed_forward/up": (1,),
    "layers/feed_forward/down": (1,),
    "embedding": (1,),
    "head": (1,),
    "final_norm/scale": (0,),
    "layers/attention_norm/scale": (1,),
    "layers/feed_forward_norm/scale": (1,),
}


def test_agc_limits_the_gradient_of_every_unit_by_its_weights():
    params = leaves(PARAMS)
    assert params.keys() == INPUTS.keys()
    for grads, after, metrics in run("agc", spikes()):
        expected, smaller = {}, 0
        for name, g in grads.items():
            axes = INPUTS[name]
            assert unit_axes(name, g.ndim) == axes
            size = np.sqrt(np.square(g).sum(axes, keepdims=True))
            weights = np.maximum(np.sqrt(np.square(params[name]).sum(axes, keepdims=True)), 1e-3)
            factor = np.ones_like(size) if name == "head" else np.minimum(1, 0.3 * weights / size)
            expected[name] = g * factor
            smaller += (factor < 1).sum()
        check(after, expected, metrics, grads, smaller)


def test_agc_exempts_the_groups_that_it_is_told_to():
    assert ClipConfig().agc_exempt == ("head",)
    for exempt in ("norm", "head"):
        own = {} if exempt == "head" else {"agc_exempt": (exempt,)}
        grads, after, _ = next(run("agc", [100.0], **own))
        untouched = {name for name, g in grads.items() if (after[name] == g).all()}
        assert all(exempt in name for name in untouched)
        assert untouched


def test_adagc_holds_every_tensor_to_its_own_history():
    """Each layer of a stack is a tensor; after a warm-up by the global norm."""
    mean = {}
    for step, (grads, after, metrics) in enumerate(run("adagc", spikes())):
        expected, smaller, of_all = {}, 0, min(1, 1 / norm(grads))
        for name, g in grads.items():
            layers = name.startswith("layers/")
            parts = []
            for layer, part in enumerate(g if layers else [g]):
                size, key = np.sqrt(np.square(part).sum()), (name, layer)
                if step < 3:
                    factor = of_all
                    mean[key] = min(mean.get(key, np.inf), factor * size)
                else:
                    factor = min(1, 1.05 * mean[key] / size)
                    mean[key] = 0.9 * mean[key] + 0.1 * factor * size
                parts.append(part * factor)
                smaller += factor < 1
            expected[name] = np.stack(parts) if layers else parts[0]
        check(after, expected, metrics, grads, smaller)


def test_adagc_does_not_learn_from_gradients_of_zero():
    """A layer that begins at 0 keeps others from a gradient in the first steps, not for ever."""
    state, update = compiled("adagc")
    for step in range(6):
        grads = gradients(step, 0.01)  # too small for the global norm
        if step < 4:
            grads["layers"]["feed_forward"]["up"][0] = 0
        after, state = update(grads, state, PARAMS)
        assert np.isfinite(norm(after))
        up_L = np.linalg.norm(after["layers"]["feed_forward"]["up"].reshape(2, -1), axis=1)
        assert (up_L[0] > 0.01) == (step >= 4)


def test_zclip_follows_the_norm_and_pulls_in_what_stands_out():
    seen, mean, variance, clipped = [], 0.0, 0.0, 0
    scales = np.array([1, 1.2, 0.9, 1.1, 1, 1.05, 40, 1, 1.1, 5, 0.9, 1]) * 0.05
    for grads, after, metrics in run("zclip", scales):
        size = usual = norm(grads)
        if len(seen) < 3:
            seen.append(size)
            mean, variance = np.mean(seen), np.var(seen)
        else:
            z = (size - mean) / (np.sqrt(variance) + 1e-6)
            if z > 2.0:
                usual = mean + 2.0**2 / z * np.sqrt(variance)
                clipped += 1
            mean = 0.97 * mean + 0.03 * usual
            variance = 0.97 * variance + 0.03 * (usual - mean) ** 2
        factor = min(1, min(usual, 3.0) / size)
        # The deviation of norms this close to each other has four digits in float32.
        expected = {name: g * factor for name, g in grads.items()}
        for name, x in expected.items():
            np.testing.assert_allclose(after[name], x, rtol=1e-3, atol=1e-8)
        assert metrics["clipped_share"] == pytest.approx(1 - factor, abs=1e-3)
    assert clipped >= 2


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(sorted(CLIPS)), seed=st.integers(0, 99), scale=st.floats(1e-6, 1e6))
def test_no_kind_makes_a_gradient_larger_or_turns_it(kind, seed, scale):
    """Signs stay, zeros stay, no number grows; the metric is a share."""
    state, update = compiled(kind)
    for size in (scale, 1.0, scale, 10 * scale, 1.0):
        grads = gradients(seed, size)
        after, state = update(grads, state, PARAMS)
        for g, a in zip(jax.tree.leaves(grads), jax.tree.leaves(after)):
            assert np.all(np.isfinite(a))
            assert np.all(np.abs(a) <= np.abs(g) * (1 + 1e-5))
            assert np.all(np.sign(a) == np.sign(g))
        assert kind == "none" or -1e-5 <= float(collect(state)["clipped_share"]) <= 1


def test_what_is_within_bounds_keeps_every_bit():
    tiny = gradients(0, 1e-5)
    for kind in CLIPS:
        state, update = compiled(kind)
        after, _ = update(tiny, state, PARAMS)
        for g, a in zip(jax.tree.leaves(tiny), jax.tree.leaves(after)):
            np.testing.assert_array_equal(g, a)


@pytest.mark.parametrize(
    "own", [{"agc_ratio": 0.0}, {"adagc_decay": 1.0}, {"zclip_warmup": 0}, {"zclip_threshold": -1.0}]
)
def test_settings_that_cannot_be_are_refused(own):
    with pytest.raises(ValueError, match=next(iter(own))):
        dataclasses.replace(ClipConfig(), **own)
