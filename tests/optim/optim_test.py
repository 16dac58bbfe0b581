import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from core.errors import UserError
from model import transformer
from model.config import ModelConfig
from optim.build import build
from optim.config import OptimConfig
from optim.groups import label
from optim.schedule import warmup_stable_decay

MODEL = ModelConfig(vocab_size=64, num_layers=2, d_model=32, num_heads=2, num_kv_heads=1, head_dim=16, d_ff=32)


def test_warmup_stable_decay_has_its_three_parts():
    schedule = warmup_stable_decay(OptimConfig(learning_rate=1.0, warmup_steps=4, decay_fraction=0.25), 16)
    rates = [float(schedule(step)) for step in range(17)]
    np.testing.assert_allclose(rates[:4], [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(rates[4:13], 1.0)
    np.testing.assert_allclose(rates[13:], [0.75, 0.5, 0.25, 0.0])


def test_a_schedule_that_does_not_fit_is_refused():
    with pytest.raises(
        UserError, match=r"warmup_steps=90 and a decay over the last 20 do not fit into train.steps=100"
    ):
        warmup_stable_decay(OptimConfig(warmup_steps=90, decay_fraction=0.2), 100)


def test_every_parameter_has_one_group():
    labels = label(transformer.init(MODEL, 0))
    assert labels["embedding"] == "embedding"
    assert labels["final_norm"]["scale"] == labels["layers"]["attention_norm"]["scale"] == "norm"
    assert set(jax.tree.leaves(labels["layers"]["attention"])) == {"matrix"}
    with pytest.raises(AssertionError, match=r"parameter surprise is in no group"):
        label({"surprise": 0})


def test_the_chain_is_adamw_with_clipping_and_masked_decay():
    """Three steps beside optax.adamw on gradients clipped by hand."""
    config = OptimConfig(learning_rate=0.1, warmup_steps=1, decay_fraction=0.0, weight_decay=0.3, clip_norm=0.5)
    params = transformer.init(MODEL, 0)
    chain, _ = build(config, 10)
    state = chain.init(params)
    matrix = jax.tree.map(lambda group: group == "matrix", label(params))
    reference = optax.adamw(0.1, config.b1, config.b2, config.epsilon, weight_decay=0.3, mask=matrix)
    reference_state, reference_params = reference.init(params), params
    for step in range(3):
        keys = jax.random.split(jax.random.key(step), len(jax.tree.leaves(params)))
        leaves, tree = jax.tree.flatten(params)
        grads = tree.unflatten([jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)])
        updates, state = chain.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        norm = np.sqrt(sum(float(jnp.square(g).sum()) for g in jax.tree.leaves(grads)))
        clipped = jax.tree.map(lambda g, scale=0.5 / norm: g * scale, grads)
        updates, reference_state = reference.update(clipped, reference_state, reference_params)
        reference_params = optax.apply_updates(reference_params, updates)
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(reference_params)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_norms_and_embedding_do_not_decay():
    config = OptimConfig(learning_rate=0.1, warmup_steps=1, decay_fraction=0.0, weight_decay=0.5)
    params = transformer.init(MODEL, 0)
    chain, _ = build(config, 10)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = chain.update(zeros, chain.init(params), params)
    assert not np.any(updates["embedding"])
    assert not np.any(updates["final_norm"]["scale"])
    np.testing.assert_allclose(
        updates["layers"]["feed_forward"]["up"], -0.05 * params["layers"]["feed_forward"]["up"], rtol=1e-5
    )
