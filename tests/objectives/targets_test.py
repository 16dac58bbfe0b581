"""Stored targets: loss and gradients beside the definition, and that sampled ones have no bias where top-k's have."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import objectives_lab
import plain_transformer
from data.pipeline import TaughtBatch
from model import transformer
from model.config import ModelConfig
from objectives.build import build
from objectives.config import DistillConfig, FeaturesConfig, ObjectiveConfig, TargetsConfig
from objectives.interface import mean
from objectives_lab import T, V
from train.compress import draw, largest, place_keys

K = 5
MODEL = ModelConfig(V, num_layers=2, d_model=16, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=24, init_std=0.3)


@pytest.fixture(scope="module")
def params():
    """No scale is 1, so that each counts."""
    random = np.random.default_rng(1)
    abstract = transformer.abstract(MODEL)
    return jax.tree.map(lambda leaf: random.normal(0, 0.4, leaf.shape).astype(np.float32), abstract)


def make_batch(rows=2, seed=0):
    """Distributions of five ids at most, beside the tokens."""
    batch, random = objectives_lab.make_batch(rows=rows, seed=seed), np.random.default_rng(seed + 1000)
    ids = np.argsort(random.random((rows, T, V)))[..., :K].astype(np.int32)
    used = np.arange(K) < random.integers(1, K + 1, (rows, T, 1))
    counts = random.multinomial(20, np.full(K, 1 / K), (rows, T)) * used
    probs = (counts / np.maximum(counts.sum(-1, keepdims=True), 1) * (batch.weights_BT[..., None] > 0)).astype(
        np.float32
    )
    return TaughtBatch(*batch, ids, probs)


def value(params, batch, objective, temperature=1.0, model=MODEL, counts=None, progress=(0, 1)):
    """What is minimised, and the metrics."""
    step, steps = progress
    total = build(model, objective, steps, temperature=temperature)
    counts = total.counts(batch) if counts is None else counts
    loss, metrics = total.loss(params, batch, counts, step)
    return loss, {name: mean(metrics.sums[name], counts[name]) for name in counts}


graded = jax.jit(jax.value_and_grad(value, has_aux=True), static_argnums=(2, 3, 4))


def plain(params, batch, weight, temperature, z_loss, model):
    """The definition, with whole distributions, in float64."""
    rows = [jnp.asarray(field) for field in batch[:5]]
    hidden_BTD, _, _ = jax.vmap(lambda *row: plain_transformer._row(model, params, row))(*rows)
    logits_BTV = hidden_BTD @ params["embedding"].T
    if model.final_soft_cap:
        logits_BTV = model.final_soft_cap * jnp.tanh(logits_BTV / model.final_soft_cap)
    teacher_BTV = np.zeros((*batch.tokens_BT.shape, V))
    for at in np.ndindex(*batch.teacher_ids_BTk.shape):
        teacher_BTV[at[0], at[1], batch.teacher_ids_BTk[at]] += batch.teacher_probs_BTk[at]
    log_BTV, soft_BTV = (jax.nn.log_softmax(logits_BTV / t) for t in (1.0, temperature))
    hard_BT = -jnp.take_along_axis(log_BTV, batch.targets_BT[..., None], -1)[..., 0]
    soft_BT = -(teacher_BTV * soft_BTV).sum(-1)
    z_BT = z_loss * jax.nn.logsumexp(logits_BTV, -1) ** 2
    each_BT = (1 - weight) * hard_BT + weight * temperature**2 * soft_BT + z_BT
    hit_BT = jnp.equal(logits_BTV.argmax(-1), batch.targets_BT)
    shown = {"loss": hard_BT, "accuracy": hit_BT, "teacher_loss": soft_BT, "z_loss": z_BT}
    total = batch.weights_BT.sum()
    return (each_BT * batch.weights_BT).sum() / total, {
        name: (nats_BT * batch.weights_BT).sum() / total for name, nats_BT in shown.items()
    }


@pytest.mark.parametrize(
    ("weight", "temperature", "z_loss", "cap"),
    [(0.7, 1.0, 0.0, None), (0.4, 1.0, 0.01, 4.0), (0.4, 2.0, 0.01, 4.0)],
)
def test_loss_and_gradients_are_those_of_the_definition_in_float64(params, weight, temperature, z_loss, cap):
    model = dataclasses.replace(MODEL, final_soft_cap=cap)
    objective, batch = ObjectiveConfig(z_loss=z_loss, targets=TargetsConfig(weight)), make_batch()
    (loss, metrics), gradients = graded(params, batch, objective, temperature, model)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, np.float64), params)
        asked = batch, weight, temperature, z_loss, model
        whole = jax.jit(jax.value_and_grad(lambda params: plain(params, *asked), has_aux=True))
        (expected, shown), expected_gradients = jax.tree.map(np.asarray, whole(wide))
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert metrics.keys() == {"loss", "accuracy", "teacher_loss"} | ({"z_loss"} if z_loss else set())
    for name in metrics:
        assert float(metrics[name]) == pytest.approx(float(shown[name]), rel=1e-5, abs=1e-5), name
    for (path, found), right in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected_gradients), strict=True
    ):
        np.testing.assert_allclose(found, right, atol=1e-5 * max(1, np.abs(right).max()), rtol=0, err_msg=str(path))


def test_a_weight_may_follow_a_schedule(params):
    """At its beginning as the weight there; the next token's loss is that of a run without a teacher."""
    falling, batch = ((0.0, 1.0), (0.5, 0.25)), make_batch()
    for step, weight in ((0, 1.0), (5, 0.25)):
        own, shown = value(params, batch, ObjectiveConfig(targets=TargetsConfig(falling)), progress=(step, 10))
        expected = (1 - weight) * shown["loss"] + weight * shown["teacher_loss"]
        assert float(own) == pytest.approx(float(expected), rel=1e-5)
        _, alone = value(params, batch, ObjectiveConfig())
        assert float(shown["loss"]) == pytest.approx(float(alone["loss"]), rel=1e-6)


def test_parts_of_a_batch_add_up(params):
    objective, batch = ObjectiveConfig(targets=TargetsConfig(0.5)), make_batch(rows=4)
    counts = build(MODEL, objective).counts(batch)
    halves = [TaughtBatch(*(field[part] for field in batch)) for part in (slice(0, 2), slice(2, 4))]
    whole, _ = value(params, batch, objective)
    parts = sum(float(value(params, half, objective, counts=counts)[0]) for half in halves)
    assert parts == pytest.approx(float(whole), rel=1e-5)


@pytest.mark.parametrize(("draws", "part"), [(1_000, 0.03), pytest.param(10_000, 0.01, marks=pytest.mark.slow)])
def test_draws_have_no_bias_and_the_largest_have(draws, part):
    """Gradients of the output layer, over draws of every place: the 99% interval lies within a part of the norm.

    Along the gradient of the whole distribution; and the mean of all draws is no further from it than chance brings.
    """
    random = np.random.default_rng(0)
    x_XD, w_VD = random.normal(0, 1, (64, 16)).astype(np.float32), random.normal(0, 0.3, (V, 16)).astype(np.float32)
    teacher_XV = jax.nn.softmax(random.normal(0, 2, (64, V)).astype(np.float32))

    def gradient(estimate_XV):
        """Of the cross-entropy of softmax(x w^T) in w."""
        slope_XV = estimate_XV.sum(-1, keepdims=True) * jax.nn.softmax(x_XD @ w_VD.T) - estimate_XV
        return slope_XV.T @ x_XD

    def spread(ids_Xk, probs_Xk):
        return jnp.zeros((64, V)).at[jnp.arange(64)[:, None], ids_Xk].add(probs_Xk)

    exact_VD = gradient(teacher_XV)
    square = (exact_VD**2).sum()

    @jax.jit
    def sampled(draw_number):
        keys = place_keys(0, jnp.full(64, draw_number, jnp.uint32), jnp.arange(64))
        error_VD = gradient(spread(draw(teacher_XV, keys, 50), 1 / 50)) - exact_VD
        return error_VD, (error_VD * exact_VD).sum() / square

    def add(total_VD, draw_number):
        error_VD, along = sampled(draw_number)
        return total_VD + error_VD, (along, (error_VD**2).sum() / square)

    total_VD, (along_N, square_N) = jax.lax.scan(add, jnp.zeros_like(exact_VD), jnp.arange(draws, dtype=jnp.uint32))
    along_N = np.asarray(along_N, np.float64)
    half = 2.576 * along_N.std() / draws**0.5
    assert abs(along_N.mean()) + half < part
    away = float(jnp.sqrt((total_VD**2).sum() / square)) / draws
    chance = float(jnp.sqrt(square_N.mean() / draws))
    assert away < min(part, 1.3 * chance)
    biased_VD = gradient(spread(*largest(teacher_XV, 5))) - exact_VD
    assert float(jnp.sqrt((biased_VD**2).sum() / square)) > 0.1


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (1.5, "weight=1.5 must lie in 0 to 1"),
        (-0.5, "weight=-0.5 must be 0 or more"),
        (((0.0, 0.5), (1.0, 2.0)), "must lie in 0 to 1"),
        (((0.5, 0.5), (0.2, 0.1)), "ascending from 0 to 1"),
    ],
)
def test_weights_that_cannot_be_are_refused(weight, message):
    with pytest.raises(ValueError, match=message):
        TargetsConfig(weight)


def test_two_teachers_of_the_same_tokens_are_refused():
    taught = TargetsConfig(weight=0.5)
    with pytest.raises(ValueError, match="both share the cross-entropy with a teacher; make one of them 0"):
        ObjectiveConfig(targets=taught, distill=DistillConfig(teacher="runs/large"))
    ObjectiveConfig(targets=taught, distill=DistillConfig("runs/large", weight=0.0, features=FeaturesConfig(1.0)))
