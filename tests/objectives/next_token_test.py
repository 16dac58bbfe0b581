import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.pipeline import Batch
from model import transformer
from model.config import ModelConfig
from objectives import next_token

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


def by_hand(params, batch):
    hidden = transformer.apply(CONFIG, params, batch.tokens_BT, batch.segment_ids_BT, batch.positions_BT).hidden_BTD
    log_probs = jax.nn.log_softmax(hidden @ params["embedding"].T)
    return -jnp.take_along_axis(log_probs, batch.targets_BT[..., None], -1)[..., 0] * batch.weights_BT


def test_loss_and_gradient_are_those_of_the_plain_formula(params):
    batch = make_batch()

    def plain(params):
        return by_hand(params, batch).sum() / batch.weights_BT.sum()

    (value, metrics), gradient = jax.value_and_grad(lambda p: next_token.loss(CONFIG, p, batch), has_aux=True)(params)
    expected, expected_gradient = jax.value_and_grad(plain)(params)
    assert value == pytest.approx(float(expected), rel=1e-5)
    assert metrics["predicted_tokens"] == batch.weights_BT.sum()
    for got, want in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient)):
        np.testing.assert_allclose(got, want, atol=2e-5, rtol=1e-3)


def test_token_nats_are_zero_where_nothing_is_predicted(params):
    batch = make_batch()
    nats = next_token.token_nats(CONFIG, params, batch)
    np.testing.assert_allclose(nats, by_hand(params, batch), atol=1e-4)
    assert (np.array(nats)[batch.weights_BT == 0] == 0).all()


def test_a_batch_without_targets_has_loss_zero(params):
    batch = make_batch()._replace(weights_BT=np.zeros((3, 20), np.float32))
    (value, _), gradient = jax.value_and_grad(lambda p: next_token.loss(CONFIG, p, batch), has_aux=True)(params)
    assert float(value) == 0.0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_a_row_without_targets_changes_nothing(params):
    """A stretch of what the user said is a row of weight 0 among others."""
    batch = make_batch()
    batch.weights_BT[1] = 0
    others = Batch(*(field[[0, 2]] for field in batch))
    assert float(next_token.loss(CONFIG, params, batch)[0]) == pytest.approx(
        float(next_token.loss(CONFIG, params, others)[0]), rel=1e-5
    )
