import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.pipeline import Batch
from model import transformer
from model.config import ModelConfig
from objectives import next_token
from objectives.build import build
from objectives.config import ObjectiveConfig
from objectives.interface import mean

CONFIG = ModelConfig(
    vocab_size=64, num_layers=2, d_model=32, num_heads=2, num_kv_heads=1, head_dim=16, d_ff=32, init_std=0.3
)


@pytest.fixture(scope="module")
def params():
    return transformer.init(CONFIG, 0)


def make_batch(rows=3, length=20):
    random = np.random.default_rng(0)
    tokens, targets = random.integers(0, 64, (2, rows, length)).astype(np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    weights = (random.random((rows, length)) < 0.7).astype(np.float32)
    return Batch(tokens, targets, np.ones_like(tokens), positions, weights)


def loss(params, batch, config=CONFIG, objective=ObjectiveConfig()):  # noqa: B008 (frozen)
    """What is minimised, and the metrics of a batch in one part."""
    total = build(config, objective)
    counts = total.counts(batch)
    value, metrics = total.loss(params, batch, counts)
    return value, {name: mean(metrics.sums[name], counts[name]) for name in counts}


def by_hand(params, batch):
    hidden = transformer.apply(CONFIG, params, batch.tokens_BT, batch.segment_ids_BT, batch.positions_BT).hidden_BTD
    log_probs = jax.nn.log_softmax(hidden @ params["embedding"].T)
    return -jnp.take_along_axis(log_probs, batch.targets_BT[..., None], -1)[..., 0] * batch.weights_BT


def test_loss_and_gradient_are_those_of_the_plain_formula(params):
    batch = make_batch()

    def plain(params):
        return by_hand(params, batch).sum() / batch.weights_BT.sum()

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch)
    expected, expected_gradient = jax.value_and_grad(plain)(params)
    assert value == pytest.approx(float(expected), rel=1e-5)
    assert metrics.keys() == {"loss", "accuracy"}
    assert float(metrics["loss"]) == float(value)
    for got, want in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient)):
        np.testing.assert_allclose(got, want, atol=2e-5, rtol=1e-3)


def test_token_nats_are_zero_where_nothing_is_predicted(params):
    batch = make_batch()
    nats = next_token.token_nats(CONFIG, params, batch)
    np.testing.assert_allclose(nats, by_hand(params, batch), atol=1e-4)
    assert (np.array(nats)[batch.weights_BT == 0] == 0).all()


def test_a_batch_without_targets_has_loss_zero(params):
    batch = make_batch()._replace(weights_BT=np.zeros((3, 20), np.float32))
    (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch)
    assert float(value) == 0.0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_a_row_without_targets_changes_nothing(params):
    """A stretch of what the user said is a row of weight 0 among others."""
    batch = make_batch()
    batch.weights_BT[1] = 0
    others = Batch(*(field[[0, 2]] for field in batch))
    assert float(loss(params, batch)[0]) == pytest.approx(float(loss(params, others)[0]), rel=1e-5)


@pytest.mark.parametrize("cap", [None, 5.0])
def test_a_z_loss_and_its_gradient_are_those_of_the_plain_formula_in_float64(params, cap):
    """Of the hidden states and the head, by numpy; `loss` stays the cross-entropy."""
    config, factor = dataclasses.replace(CONFIG, final_soft_cap=cap), 0.1
    batch = make_batch()
    hidden_XD = np.float64(
        transformer.apply(config, params, batch.tokens_BT, batch.segment_ids_BT, batch.positions_BT).hidden_BTD
    ).reshape(-1, 32)
    objective = ObjectiveConfig(z_loss=factor)
    total, metrics = loss(params, batch, config, objective)
    w_VD, weights_X = np.float64(params["embedding"]), np.float64(batch.weights_BT).ravel()
    raw_XV = hidden_XD @ w_VD.T
    logits_XV = raw_XV if cap is None else cap * np.tanh(raw_XV / cap)
    lse_X = np.log(np.exp(logits_XV - logits_XV.max(1, keepdims=True)).sum(1)) + logits_XV.max(1)
    z_loss = factor * (lse_X**2 * weights_X).sum() / weights_X.sum()
    assert float(metrics["z_loss"]) == pytest.approx(z_loss, rel=1e-4)
    plain, _ = loss(params, batch, config)
    assert float(metrics["loss"]) == pytest.approx(float(plain), rel=1e-6)
    assert float(total) == pytest.approx(float(plain) + z_loss, rel=1e-5)

    # Untied, so that the head's gradient is that of the formula alone.
    own = {**params, "head": params["embedding"]}
    untied = dataclasses.replace(config, tied_head=False)

    def of_head(head, objective):
        return loss({**own, "head": head}, batch, untied, objective)[0]

    got = jax.grad(of_head)(own["head"], objective) - jax.grad(of_head)(own["head"], ObjectiveConfig())
    pull_XV = 2 * factor * lse_X[:, None] * np.exp(logits_XV - lse_X[:, None])
    pull_XV *= 1 if cap is None else 1 - (logits_XV / cap) ** 2
    expected_VD = (pull_XV * weights_X[:, None]).T @ hidden_XD / weights_X.sum()
    np.testing.assert_allclose(got, expected_VD, atol=2e-4 * np.abs(expected_VD).max())


def test_a_z_loss_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"z_loss=-0.1 must be 0 or more"):
        ObjectiveConfig(z_loss=-0.1)
