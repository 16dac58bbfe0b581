"""What a teacher gives: its losses and gradients, and what cannot be."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import plain_transformer
from core.config import parse
from core.errors import UserError
from model import transformer
from model.config import ModelConfig
from objectives import transfer
from objectives.build import build
from objectives.config import AttentionConfig, DistillConfig, FeaturesConfig, ObjectiveConfig
from objectives.interface import mean
from objectives.transfer import spread
from objectives_lab import make_batch

STUDENT = ModelConfig(
    vocab_size=48, num_layers=2, d_model=16, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=24, tied_head=False
)
TEACHER = ModelConfig(vocab_size=48, num_layers=3, d_model=24, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=40)


def inside(**signals):
    """Without the teacher's logits."""
    return DistillConfig(teacher="t", weight=0.0, **signals)


KINDS = {
    "forward": DistillConfig(weight=1.0, temperature=2.0),
    "reverse": DistillConfig(weight=0.6, temperature=2.0, divergence="reverse_kl"),
    "mean": DistillConfig(weight=0.6, temperature=2.0, divergence="jensen_shannon"),
    "maps": inside(attention=AttentionConfig(maps=0.7, layers=((1, 1), (2, 3)))),
    "values": inside(attention=AttentionConfig(values=0.7, layers=((2, 3), (2, 2)))),
    "features": inside(features=FeaturesConfig(weight=0.7, layers=((1, 2), (2, 3)))),
    "all": DistillConfig(
        teacher="t",
        weight=0.5,
        attention=AttentionConfig(0.3, 0.2, ((2, 3),)),
        features=FeaturesConfig(0.1, ((1, 1),)),
    ),
}
PARTS = ("reverse", "maps", "values", "features")  # "all" has the last three; divergence_test.py has the first
every_kind = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in PARTS else kind for kind in KINDS]
)


@functools.cache
def params_of(model, seed, distill=None):
    """No scale is 1, so that each counts; with `distill` those of its objectives too."""
    random = np.random.default_rng(seed)
    abstract = transformer.abstract(model)
    if distill is not None:
        abstract |= jax.eval_shape(lambda: build(model, ObjectiveConfig(distill=distill), teacher=TEACHER).own(0))
    return jax.tree.map(lambda leaf: random.normal(0, 0.4, leaf.shape).astype(np.float32), abstract)


def value(params, teacher, batch, distill, model=STUDENT, taught_by=TEACHER):
    """What is minimised, and the metrics."""
    total = build(model, ObjectiveConfig(distill=distill), teacher=taught_by)
    counts = total.counts(batch)
    loss, metrics = total.loss(params, batch, counts, teacher=teacher)
    return loss, {name: mean(metrics.sums[name], counts[name]) for name in counts}


graded = jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True), static_argnums=(3, 4, 5))


@functools.cache
def plain(kind):
    """The definition, compiled once for batches of one shape."""

    def loss(params, teacher, batch):
        return plain_transformer.distilled(STUDENT, params, TEACHER, teacher, batch, KINDS[kind])

    return jax.jit(jax.value_and_grad(loss))


@every_kind
@pytest.mark.parametrize("packed", [True, False])
def test_loss_and_gradients_are_those_of_the_definition_in_float64(kind, packed):
    distill, batch = KINDS[kind], make_batch(packed)
    params, teacher = params_of(STUDENT, 1, distill), params_of(TEACHER, 2)
    (loss, _), (gradients, of_teacher) = graded(params, teacher, batch, distill)
    with jax.enable_x64(True):
        wide, wide_teacher = jax.tree.map(lambda a: jax.numpy.asarray(a, np.float64), (params, teacher))
        expected, expected_gradients = jax.tree.map(np.asarray, plain(kind)(wide, wide_teacher, batch))
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    for (path, found), right in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected_gradients), strict=True
    ):
        assert np.abs(right).max() > 0, path
        np.testing.assert_allclose(found, right, atol=1e-5 * max(1, np.abs(right).max()), rtol=0, err_msg=str(path))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(of_teacher))


def test_a_z_loss_is_added_whole():
    """Whatever part of the cross-entropy gives way to the teacher."""
    batch, totals = make_batch(), {}
    for z_loss in (0.0, 1e-2):
        total = build(STUDENT, ObjectiveConfig(z_loss=z_loss, distill=DistillConfig(weight=0.9)), teacher=TEACHER)
        counts = total.counts(batch)
        totals[z_loss], metrics = total.loss(params_of(STUDENT, 1), batch, counts, teacher=params_of(TEACHER, 2))
    expected = float(mean(metrics.sums["z_loss"], counts["z_loss"]))
    assert expected > 0.01
    assert float(totals[1e-2] - totals[0.0]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["maps", "values"])
def test_blocks_of_tokens_are_as_all_at_once(kind, monkeypatch):
    """Blocks of 5 of the 12 tokens, the last filled up, and of all rows at once."""
    distill, batch = KINDS[kind], make_batch()
    given = params_of(STUDENT, 1, distill), params_of(TEACHER, 2), batch, distill
    whole = graded(*given)
    monkeypatch.setattr(transfer, "BLOCK_LOGITS", 0)
    monkeypatch.setattr(transfer, "LEAST_TOKENS", 5)
    again = jax.jit(jax.value_and_grad(lambda *args: value(*args, distill), argnums=(0, 1), has_aux=True))
    in_blocks = again(*given[:3])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-6), in_blocks, whole)


LOGITS = [kind for kind in KINDS if kind not in ("maps", "values", "features", "all")]


@pytest.mark.parametrize("kind", [*LOGITS, "all"])
def test_the_metric_loss_is_the_cross_entropy_alone(kind):
    params, batch = params_of(STUDENT, 1, KINDS[kind]), make_batch()
    _, metrics = value(params, params_of(TEACHER, 2), batch, KINDS[kind])
    alone = build(STUDENT, ObjectiveConfig())
    plain, _ = alone.loss(params, batch, alone.counts(batch))
    assert float(metrics["loss"]) == pytest.approx(float(plain), rel=1e-6)


@pytest.mark.parametrize("kind", [*LOGITS, "maps", "values"])
def test_from_oneself_there_is_nothing_to_learn(kind):
    distill = dataclasses.replace(KINDS[kind], weight=1.0)
    if kind not in LOGITS:
        distill = dataclasses.replace(
            distill, attention=dataclasses.replace(distill.attention, layers=((1, 1), (2, 2)))
        )
    params = params_of(STUDENT, 1)
    (_, metrics), (gradients, _) = graded(params, params, make_batch(), distill, STUDENT, STUDENT)
    for name in metrics.keys() - {"loss"}:
        assert float(metrics[name]) == pytest.approx(0, abs=2e-6)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients)) < 2e-6


def test_soft_caps_of_both_are_applied_before_the_temperature():
    """As if the capped logits were divided: by hand, from both models' own logits."""
    student, teacher = (dataclasses.replace(m, final_soft_cap=c) for m, c in ((STUDENT, 2.0), (TEACHER, 3.0)))
    params, teacher_params, batch = params_of(STUDENT, 1), params_of(TEACHER, 2), make_batch(packed=False)
    _, metrics = value(params, teacher_params, batch, DistillConfig(temperature=2.0), student, teacher)
    logits = (
        transformer.logits(
            m, p, transformer.apply(m, p, batch.tokens_BT, batch.segment_ids_BT, batch.positions_BT).hidden_BTD
        )
        for m, p in ((student, params), (teacher, teacher_params))
    )
    log_p, log_q = (np.float64(jax.nn.log_softmax(of / 2)) for of in logits)
    expected = (np.exp(log_q) * (log_q - log_p)).sum(-1).mean()
    assert float(metrics["distill_loss"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": -0.1}, "weight=-0.1 must be 0 or more"),
        ({"weight": 1.5}, "weight=1.5 must be at most 1: the rest is the cross-entropy's"),
        ({"weight": ((0.0, 0.5), (1.0, 2.0))}, "must be at most 1"),
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"temperature": float("inf")}, "temperature=inf must be positive"),
        ({"features": FeaturesConfig(1.0)}, "attention and features need a teacher"),
        ({"teacher": "t", "weight": 0.0}, "a teacher needs a weight above 0 somewhere"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DistillConfig(**change)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FeaturesConfig(-1.0), r"weight=-1.0 must be 0 or more"),
        (lambda: AttentionConfig(values=float("nan")), r"values=nan must be 0 or more"),
        (lambda: AttentionConfig(layers=((1, 1),)), r"layers=\(\(1, 1\),\) need a weight above 0"),
        (lambda: FeaturesConfig(1.0, ((1, 2), (1, 2))), "names a pair twice"),
    ],
)
def test_weights_and_layers_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_unknown_divergence_is_refused():
    with pytest.raises(UserError, match=r"objective.distill.divergence='forward' is not a choice"):
        parse(ObjectiveConfig, {"distill": {"divergence": "forward"}}, "objective")


def test_layers_spread_over_both_depths():
    assert spread(2, 4) == ((1, 2), (2, 4))
    assert spread(1, 36) == ((1, 36),)
    assert spread(12, 36) == ((3, 9), (6, 18), (9, 27), (12, 36))
