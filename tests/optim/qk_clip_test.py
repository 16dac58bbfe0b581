"""QK-Clip: what it does to the logits of the true model, and that it does nothing else."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from core.errors import UserError
from model import transformer
from model.config import ModelConfig
from optim.adaptive import adapt
from optim.build import build
from optim.config import AdaptiveConfig, OptimConfig, QKClipConfig
from optim.metrics import Metrics, collect
from optim.qk_clip import clip_heads, head_factors, qk_clip, split_factors

MODEL = ModelConfig(
    64, num_layers=3, d_model=32, num_heads=6, num_kv_heads=2, head_dim=8, d_ff=32, init_std=0.5, qkv_bias=True
)
SETTINGS = [QKClipConfig(1.0), QKClipConfig(1.0, "group"), QKClipConfig(1.0, "group", alpha=0.8)]


@functools.cache
def params():
    """Random numbers everywhere, biases included."""
    random = np.random.default_rng(0)
    return jax.tree.map(lambda a: random.normal(0, 0.5, a.shape).astype(np.float32), transformer.abstract(MODEL))


@functools.partial(jax.jit, static_argnums=1)
def logits(params, model=MODEL):
    """The largest of every layer and head over one batch, of two documents a row."""
    random = np.random.default_rng(1)
    tokens = random.integers(0, 64, (3, 24))
    second = np.broadcast_to(np.arange(24) >= 10, tokens.shape)
    positions = np.broadcast_to(np.where(second, np.arange(24) - 10, np.arange(24)), tokens.shape)
    return transformer.apply(model, params, tokens, second.astype(np.int32), positions).max_logit_LN


def clipped(config, factor_LN, params):
    """Parameters after a step whose own update is zero."""
    updates = clip_heads(jax.tree.map(jnp.zeros_like, params), params, factor_LN, config)
    return optax.apply_updates(params, updates)


@pytest.mark.parametrize("config", SETTINGS, ids=["query", "group", "group with alpha 0.8"])
@pytest.mark.parametrize(
    "changes", [{}, {"attention_soft_cap": 3.0}, {"sliding_window": 5, "attention_scale": 0.6}], ids=str
)
def test_a_clipped_head_has_the_threshold_as_its_largest_logit(config, changes):
    """On the same batch; one layer at a time, for the input of a layer changes with those before it."""
    model = dataclasses.replace(MODEL, **changes)
    before_LN = logits(params(), model)
    for layer in range(MODEL.num_layers):
        threshold = float(np.median(before_LN[layer]))
        factor_LN = jnp.ones_like(before_LN).at[layer].set(head_factors(before_LN, threshold)[layer])
        found_N = logits(clipped(config, factor_LN, params()), model)[layer]
        over_N = np.asarray(before_LN[layer] > threshold)
        assert over_N.any()
        if config.treatment == "query":
            np.testing.assert_allclose(found_N[over_N], threshold, rtol=1e-4)
            np.testing.assert_array_equal(found_N[~over_N], before_LN[layer][~over_N])
        else:
            least_N = np.repeat(np.asarray(factor_LN[layer]).reshape(2, 3).min(1), 3)
            np.testing.assert_allclose(found_N, before_LN[layer] * least_N, rtol=1e-4)
            assert found_N.max() == pytest.approx(threshold, rel=1e-4)


@pytest.mark.parametrize("config", SETTINGS, ids=["query", "group", "group with alpha 0.8"])
def test_the_factor_falls_on_what_the_update_makes_of_the_parameters(config):
    updates = jax.tree.map(lambda p: 0.1 * jnp.sin(100 * p), params())
    before_LN = logits(params())
    factor_LN = head_factors(before_LN, float(np.median(before_LN)))
    assert 0 < int((factor_LN < 1).sum()) < factor_LN.size
    query_LN, key_LK = split_factors(factor_LN, 2, config.treatment, config.alpha)
    plain = optax.apply_updates(params(), updates)["layers"]["attention"]
    got = optax.apply_updates(params(), clip_heads(updates, params(), factor_LN, config))["layers"]["attention"]
    for name, factor in (("query", query_LN), ("key", key_LK)):
        np.testing.assert_allclose(got[name], plain[name] * factor[:, None, :, None], rtol=1e-5, atol=1e-6)
        bias = f"{name}_bias"
        np.testing.assert_allclose(got[bias], plain[bias] * factor[..., None], rtol=1e-5, atol=1e-6)
    untouched = clip_heads(updates, params(), jnp.ones_like(factor_LN), config)
    jax.tree.map(np.testing.assert_array_equal, untouched, updates)


def test_products_of_the_factors():
    factor_LN = jnp.array([[1.0, 0.5, 0.25, 1.0, 1.0, 1.0]])
    query, key = split_factors(factor_LN, 2, "group", 0.5)
    np.testing.assert_allclose(query, [[0.5, 0.5, 0.5, 1, 1, 1]])
    np.testing.assert_allclose(key, [[0.5, 1]])
    query, key = split_factors(factor_LN, 2, "query", 0.5)
    np.testing.assert_array_equal(query, factor_LN)
    np.testing.assert_array_equal(key, [[1, 1]])


def test_a_factor_is_one_up_to_the_threshold_and_for_what_is_not_a_number():
    logits_LN = jnp.array([[-300.0, 0.0, 100.0, 200.0, jnp.inf, jnp.nan]])
    np.testing.assert_array_equal(head_factors(logits_LN, 100.0), [[1, 1, 1, 0.5, 1, 1]])


def test_what_was_clipped_is_measured():
    chain = qk_clip(QKClipConfig(50.0))
    zeros = jax.tree.map(jnp.zeros_like, params())
    logits_LN = jnp.full((3, 6), 10.0).at[1, 2].set(200.0).at[2, 0].set(100.0)
    _, state = chain.update(zeros, chain.init(params()), params(), max_logit_LN=logits_LN, loss=jnp.zeros(()))
    assert {name: float(value) for name, value in collect(state).items()} == {
        "qk_clipped_heads": 2.0,
        "qk_clip_factor": 0.25,
    }


@pytest.mark.parametrize(
    "adaptive", [AdaptiveConfig(), AdaptiveConfig(rate="heads", slack=2.0)], ids=["", "adaptive"]
)
@pytest.mark.parametrize("treatment", ["query", "group"])
def test_modules_are_clipped_as_layers_are(adaptive, treatment):
    """Of the rows of logits those behind the trunk's: a model whose last layers are modules is clipped alike."""
    whole, L = params(), 2  # of its three layers the trunk's
    logits_LN = jnp.full((3, 6), 10.0).at[1, 2].set(200.0).at[2, 0].set(100.0)

    def cut(tree):
        own, last = (
            jax.tree.map(lambda a, part=part: a[part], tree["layers"]) for part in (slice(L), slice(L, None))
        )
        return {**tree, "layers": own, "multi_token": {"layers": last}}

    config = QKClipConfig(50.0, treatment)
    chain = adapt(adaptive, config) if adaptive.slack else qk_clip(config)
    found = []
    for tree in (whole, cut(whole)):
        ones = jax.tree.map(jnp.ones_like, tree)
        found.append(chain.update(ones, chain.init(tree), tree, max_logit_LN=logits_LN))
    (updates, state), (others, other_state) = found
    jax.tree.map(np.testing.assert_array_equal, cut(updates)["layers"]["attention"], others["layers"]["attention"])
    modules = (tree["multi_token"]["layers"]["attention"] for tree in (cut(updates), others))
    jax.tree.map(np.testing.assert_array_equal, *modules)
    jax.tree.map(np.testing.assert_array_equal, collect(state), collect(other_state))
    assert int(collect(other_state)["qk_clipped_heads"]) == 2


def test_qk_norm_is_refused():
    """A rate for everything may follow any logits."""
    normed = transformer.abstract(dataclasses.replace(MODEL, qk_norm=True))
    for config in (
        OptimConfig(qk_clip=QKClipConfig(100.0)),
        OptimConfig(qk_clip=QKClipConfig(100.0), adaptive=AdaptiveConfig(rate="all")),
        OptimConfig(adaptive=AdaptiveConfig(rate="heads")),
    ):
        with pytest.raises(UserError, match=r"with model.qk_norm=True a head's .* \(optim.qk_clip.threshold=0, "):
            jax.eval_shape(build(config, 10_000)[0].init, normed)
    jax.eval_shape(build(OptimConfig(adaptive=AdaptiveConfig(rate="all")), 10_000)[0].init, normed)


@pytest.mark.parametrize("adaptive", [AdaptiveConfig(), AdaptiveConfig(rate="heads")])
def test_a_skipped_step_scales_no_head_and_is_no_trend(adaptive):
    """Gradients that are not finite, beside logits far above the threshold: neither parameters nor state change."""
    config = OptimConfig(qk_clip=QKClipConfig(100.0), adaptive=adaptive, warmup_steps=1, decay_fraction=0.0)
    chain, _ = build(config, 10)
    own = transformer.init(MODEL, 0)
    logits_LN = jnp.full((MODEL.num_layers, MODEL.num_heads), 1e6)
    broken = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), own)
    state = chain.init(own)
    updates, after = chain.update(broken, state, own, max_logit_LN=logits_LN, loss=jnp.ones(()))
    assert not any(np.any(update) for update in jax.tree.leaves(updates))
    assert int(collect(after)["skipped_steps"]) == 1
    for one, other in zip(*(without_metrics(each.last) for each in (state, after)), strict=True):
        np.testing.assert_array_equal(one, other)


def without_metrics(state):
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Metrics))
    return [leaf for leaf in leaves if not isinstance(leaf, Metrics)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QKClipConfig(-1.0), "threshold=-1.0 must be 0 or more"),
        (lambda: QKClipConfig(float("nan")), "threshold=nan must be 0 or more"),
        (lambda: QKClipConfig(alpha=1.5), "alpha=1.5 must lie in 0..1"),
        (lambda: AdaptiveConfig(limit=0.0), "limit=0.0 must be positive"),
        (lambda: AdaptiveConfig(start=1.0), "start=1.0 must lie in 0..1, 1 excluded"),
        (lambda: AdaptiveConfig(slack=0.5), "slack=0.5 must be 0 or at least 1"),
        (lambda: OptimConfig(adaptive=AdaptiveConfig(slack=2.0)), "qk_clip.threshold=0.0, which must be at least"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
