"""Tokens beyond the next: their losses, gradients and bounds, of every kind."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import plain_transformer
from data.pipeline import Batch
from model import transformer
from model.config import ModelConfig, MultiToken
from objectives.build import build
from objectives.config import MultiTokenConfig, ObjectiveConfig
from objectives.interface import mean
from objectives.multi_token import targets_of
from objectives_lab import T, make_batch

PLAIN = ModelConfig(
    vocab_size=48, num_layers=2, d_model=16, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=24, init_std=0.3
)
KINDS = {
    "parallel": (MultiToken("parallel", 4), MultiTokenConfig(weight=0.7)),
    "sequential": (MultiToken("sequential", 3), MultiTokenConfig(weight=0.3)),
    "trunk": (MultiToken(), MultiTokenConfig(trunk=(0.5, 0.25))),
    "both": (MultiToken("sequential", 2), MultiTokenConfig(weight=0.3, trunk=(0.5,))),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
slow = pytest.mark.slow
MODULES = ("parallel", "sequential")


def case(kind):
    modules, weights = KINDS[kind]
    model = dataclasses.replace(PLAIN, multi_token=modules)
    return model, ObjectiveConfig(multi_token=weights)


@functools.cache
def params_of(kind):
    """No scale is 1, so that each counts."""
    random = np.random.default_rng(1)
    abstract = transformer.abstract(case(kind)[0])
    return jax.tree.map(lambda leaf: random.normal(0, 0.4, leaf.shape).astype(np.float32), abstract)


def value(params, batch, model, objective, counts=None, step=0, steps=1):
    """What is minimised, and the metrics."""
    total = build(model, objective, steps)
    counts = total.counts(batch) if counts is None else counts
    loss, metrics = total.loss(params, batch, counts, step)
    return loss, {name: mean(metrics.sums[name], counts[name]) for name in counts}


graded = jax.jit(jax.value_and_grad(value, has_aux=True), static_argnums=(2, 3))


@pytest.mark.parametrize(
    "kind", ["parallel", *(pytest.param(k, marks=slow) for k in ("sequential", "trunk")), "both"]
)
@pytest.mark.parametrize("packed", [True, False])
def test_loss_and_gradients_are_those_of_the_definition_in_float64(kind, packed):
    model, objective = case(kind)
    params, batch = params_of(kind), make_batch(packed)
    (loss, _), gradients = graded(params, batch, model, objective)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jax.numpy.asarray(a, np.float64), params)
        plain = jax.jit(jax.value_and_grad(lambda p: plain_transformer.losses(model, p, batch, objective)))
        expected, expected_gradients = jax.tree.map(np.asarray, plain(wide))
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    for (path, found), right in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected_gradients), strict=True
    ):
        assert np.abs(right).max() > 0, path
        np.testing.assert_allclose(found, right, atol=1e-5 * max(1, np.abs(right).max()), rtol=0, err_msg=str(path))


@every_kind
def test_the_next_token_loses_as_without_the_others(kind):
    model, objective = case(kind)
    own = {name: leaf for name, leaf in params_of(kind).items() if name != "multi_token"}
    _, metrics = value(params_of(kind), make_batch(), model, objective)
    alone, only = value(own, make_batch(), PLAIN, ObjectiveConfig())
    assert only.keys() == {"loss", "accuracy"}
    assert float(metrics["loss"]) == pytest.approx(float(alone), rel=1e-6)
    assert len(metrics) == 2 * {"parallel": 4, "sequential": 3, "trunk": 3, "both": 3}[kind]


@every_kind
def test_a_weight_scales_its_losses_alone(kind):
    """The total is the sum of what the metrics show, by their weights."""
    model, objective = case(kind)
    total, metrics = value(params_of(kind), make_batch(), model, objective)
    modules = [metrics[name] for name in metrics if name.startswith("loss_offset")]
    trunk = [metrics[name] for name in metrics if name.startswith("trunk_loss")]
    weights = objective.multi_token
    expected = metrics["loss"] + weights.weight * (np.mean(modules) if modules else 0)
    expected += sum(weight * loss for weight, loss in zip(weights.trunk, trunk))
    assert float(total) == pytest.approx(float(expected), rel=1e-5)


@every_kind
def test_accuracies_count_the_targets_that_are_likeliest(kind):
    model, objective = case(kind)
    params, batch = params_of(kind), make_batch()
    params = {**params, "embedding": 3 * params["embedding"]}  # of which a tied output layer is more decided
    _, metrics = value(params, batch, model, objective)
    expected = plain_transformer.accuracies(model, jax.tree.map(jax.numpy.asarray, params), batch, objective)
    assert {name for name in metrics if "accuracy" in name} == expected.keys()
    for name, share in expected.items():
        assert float(metrics[name]) == pytest.approx(share, abs=1e-6), name
    assert max(expected.values()) > 0


@pytest.mark.parametrize("kind", MODULES)
def test_a_z_loss_is_of_every_module_s_logits(kind):
    """By hand from the plain model's: the squared log of the normaliser of every token that counts."""
    (model, plain), factor = case(kind), 1e-2
    objective = dataclasses.replace(plain, z_loss=factor)
    params, batch = params_of(kind), make_batch()
    total, metrics = value(params, batch, model, objective)
    without, others = value(params, batch, model, plain)
    names = [name for name in metrics if name.startswith("z_loss")]
    assert names == ["z_loss", *(f"z_loss_offset_{offset}" for offset in range(2, model.multi_token.tokens + 1))]
    for name in others:
        assert float(metrics[name]) == pytest.approx(float(others[name]), rel=1e-5)
    wide = jax.tree.map(jax.numpy.asarray, params)
    for offset, _, logits_BTV in plain_transformer.every(model, wide, batch, plain, 0.0):
        lse_BT = np.asarray(jax.nn.logsumexp(logits_BTV, -1))
        places = [plain_transformer.targets(batch, row, offset)[0] for row in range(len(lse_BT))]
        squares = np.concatenate([lse_T[own] ** 2 for lse_T, own in zip(lse_BT, places)])
        name = "z_loss" if offset == 1 else f"z_loss_offset_{offset}"
        assert float(metrics[name]) == pytest.approx(factor * squares.mean(), rel=1e-3), name
    added = metrics["z_loss"] + plain.multi_token.weight * np.mean([metrics[name] for name in names[1:]])
    assert float(total) == pytest.approx(float(without) + float(added), rel=1e-5)


@pytest.mark.parametrize("kind", MODULES)
def test_the_largest_attention_logits_of_modules_stand_behind_the_trunk_s(kind):
    """A query head made three times as large, in one module, has three times the logit there and nowhere before."""
    model, objective = case(kind)
    batch, total = make_batch(), build(model, objective)

    def logits(params):
        return np.asarray(total.loss(params, batch, total.counts(batch))[1].max_logit_LN)

    params = jax.tree.map(jax.numpy.asarray, params_of(kind))
    query_MDNH = params["multi_token"]["layers"]["attention"]["query"]
    larger = jax.tree.map(lambda leaf: leaf, params)
    larger["multi_token"]["layers"]["attention"]["query"] = query_MDNH.at[0, :, 1].multiply(3.0)
    before_LN, after_LN = logits(params), logits(larger)
    assert before_LN.shape == (model.num_layers + model.multi_token.modules, model.num_heads)
    np.testing.assert_array_equal(before_LN[:2], after_LN[:2])
    np.testing.assert_allclose(after_LN[2], before_LN[2] * [1, 3], rtol=1e-5)


def test_targets_stay_within_documents_and_rows():
    """Two documents of 3 and 4 tokens, the second going on beyond the row's end; the last row place predicts it."""
    batch = Batch(
        np.array([[10, 11, 12, 20, 21, 22, 23]]), np.array([[11, 12, 20, 21, 22, 23, 24]]),
        np.array([[1, 1, 1, 2, 2, 2, 2]]), np.array([[0, 1, 2, 0, 1, 2, 3]]), np.array([[1, 1, 0, 1, 1, 1, 1.0]]),
    )  # fmt: skip
    expected = {
        1: [(0, 11), (1, 12), (3, 21), (4, 22), (5, 23), (6, 24)],
        2: [(0, 12), (3, 22), (4, 23), (5, 24)],
        3: [(3, 23), (4, 24)],
        4: [(3, 24)],
        5: [],
    }
    for offset, pairs in expected.items():
        targets, weights = targets_of(batch, offset)
        assert [(t, int(targets[0, t])) for t in np.flatnonzero(weights[0])] == pairs


@pytest.mark.parametrize("kind", [*MODULES, "trunk"])
def test_no_offset_sees_another_document_or_what_it_predicts(kind):
    """By zero gradient to the embedding: each place of a row has a token of its own, and one target counts."""
    model, objective = case(kind)
    model = dataclasses.replace(model, tied_head=False)  # else the output layer reaches every row of the table
    params = {**params_of(kind), "head": params_of(kind)["embedding"]}
    total, tokens = build(model, objective), np.arange(T + 1, dtype=np.int32)[None]
    segments = np.repeat([1, 2], [5, 7])[None].astype(np.int32)
    positions = np.array([[*range(5), *range(7)]], np.int32)

    @jax.jit
    def gradients(weights_1T):
        """Of every sum of nats."""
        batch = Batch(tokens[:, :-1], tokens[:, 1:], segments, positions, weights_1T)

        def sums(embedding):
            found = total.loss({**params, "embedding": embedding}, batch, total.counts(batch))[1].sums
            return {name: value for name, value in found.items() if "accuracy" not in name}

        return jax.jacrev(sums)(params["embedding"])

    for last in range(T):
        for name, gradient in gradients(np.eye(T, dtype=np.float32)[None, last]).items():
            offset = int(name.rpartition("_")[2]) if name != "loss" else 1
            place = last - offset + 1
            first = 0 if last < 5 else 5
            end = last + 1 if kind == "sequential" else place + 1  # up to the token before the one predicted
            end = end if place >= first else first
            end = min(end, place + 1) if name == "loss" else end
            assert set(np.flatnonzero(np.abs(gradient).sum(1)).tolist()) == set(range(first, end)), (name, place)


@pytest.mark.parametrize("kind", [*MODULES, "trunk"])
def test_another_document_changes_no_loss(kind):
    """Of a row of two, the second exchanged: those of the first stay to the bit."""
    model, objective = case(kind)
    batch = make_batch()
    weights = batch.weights_BT * (batch.segment_ids_BT == 1)
    changed = np.where(batch.segment_ids_BT == 1, batch.tokens_BT, (batch.tokens_BT + 1) % PLAIN.vocab_size)
    targets = np.where(weights > 0, batch.targets_BT, (batch.targets_BT + 1) % PLAIN.vocab_size)
    one = batch._replace(weights_BT=weights)
    other = one._replace(tokens_BT=changed, targets_BT=targets)
    # A prompt's token is in the targets too, with weight 0; modules read it there.
    other.targets_BT[:, :4] = batch.targets_BT[:, :4]
    (_, ours), (_, theirs) = (graded(params_of(kind), b, model, objective)[0] for b in (one, other))
    assert {name: float(x) for name, x in ours.items()} == {name: float(x) for name, x in theirs.items()}


def test_a_batch_without_targets_has_loss_zero():
    batch = make_batch()._replace(weights_BT=np.zeros((2, T), np.float32))
    model, objective = case("sequential")
    (loss, _), gradients = graded(params_of("sequential"), batch, model, objective)
    assert float(loss) == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiToken("parallel"), "tokens=1 must be 2 or more with kind=parallel"),
        (lambda: MultiToken(tokens=4), "tokens=4 needs a kind, parallel or sequential"),
        (lambda: MultiTokenConfig(weight=-1.0), "weight=-1.0 must be 0 or more, and above 0 somewhere"),
        (lambda: MultiTokenConfig(trunk=(0.0,)), r"trunk\[0\]=0.0 must be 0 or more, and above 0"),
        (lambda: MultiTokenConfig(weight=((0.5, 1.0), (0.2, 1.0))), "ascending from 0 to 1"),
        (lambda: MultiTokenConfig(weight=((0.5, float("nan")),)), "must be 0 or more"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
