"""FLOPs of what is minimised, beside what XLA counts of its compiled forward pass and of its gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from data.pipeline import Batch
from model import transformer
from model.config import Kernels, ModelConfig, MultiToken
from objectives.build import build
from objectives.config import DistillConfig, FeaturesConfig, MultiTokenConfig, ObjectiveConfig, TargetsConfig

T = 64
# Kernels that write all logits and maps at once: XLA counts the body of a loop once. So one layer and one module.
MODEL = ModelConfig(
    512, num_layers=1, d_model=128, num_heads=4, num_kv_heads=4, head_dim=32, d_ff=512, no_rope_every=0,
    kernels=Kernels(attention="reference", cross_entropy="reference", rope="reference"),
)  # fmt: skip
TEACHER = dataclasses.replace(MODEL, d_model=192, num_heads=6, num_kv_heads=6, d_ff=768)
# At a temperature of 1 XLA sees that the student's logits are those of the next token, and computes them once.
DISTILL = DistillConfig(teacher="there", weight=0.5, temperature=2.0)
CASES = {
    "next token": (MultiToken(), None),
    "parallel": (MultiToken("parallel", 2), None),
    "sequential": (MultiToken("sequential", 2), None),
    "teacher": (MultiToken(), TEACHER),
    "teacher and modules": (MultiToken("sequential", 2), TEACHER),
}


def counted(total, graded):
    """FLOPs a token by XLA."""
    place = jax.ShapeDtypeStruct((4, T), jnp.int32)
    batch = Batch(place, place, place, place, jax.ShapeDtypeStruct((4, T), jnp.float32))
    teacher = total.teacher and transformer.abstract(total.teacher)

    def loss(params, batch, teacher):
        return total.loss(params, batch, total.counts(batch), 0, teacher)[0]

    run = jax.jit(jax.grad(loss) if graded else loss)
    lowered = run.lower(transformer.abstract(total.model), batch, teacher)
    return lowered.compile().cost_analysis()["flops"] / (4 * T)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("graded", [False, True], ids=["forward", "gradient"])
def test_flops_match_what_xla_counts(name, graded):
    """Within what norms, softmax and the like take. Of one module XLA sees what it would compute again."""
    modules, teacher = CASES[name]
    model = dataclasses.replace(MODEL, multi_token=modules)
    total = build(model, ObjectiveConfig(distill=DISTILL), 1, teacher)
    taught = total.teacher_flops_per_token(T)
    stated = total.flops_per_token(T) - taught
    assert counted(total, graded) == pytest.approx(taught + (stated if graded else stated / 3), rel=0.06)


def test_every_pass_over_the_output_layer_counts():
    one = 6 * MODEL.vocab_size * MODEL.d_model
    asked = {
        0: [ObjectiveConfig(), ObjectiveConfig(targets=TargetsConfig(0.5))],
        2: [ObjectiveConfig(multi_token=MultiTokenConfig(trunk=(0.5, 0.25)))],
    }
    for further, configs in asked.items():
        for config in configs:
            assert build(MODEL, config).flops_per_token(T) == MODEL.flops_per_token(T) + further * one
    softened = build(MODEL, ObjectiveConfig(targets=TargetsConfig(0.5)), temperature=2.0)
    assert softened.flops_per_token(T) == MODEL.flops_per_token(T) + one


def test_a_teacher_whose_distributions_nobody_asks_for_has_no_output_layer():
    inside = dataclasses.replace(DISTILL, weight=0.0, features=FeaturesConfig(weight=1.0))
    silent, speaking = (build(MODEL, ObjectiveConfig(distill=one), 1, TEACHER) for one in (inside, DISTILL))
    product = 2 * TEACHER.vocab_size * TEACHER.d_model
    assert speaking.teacher_flops_per_token(T) == TEACHER.flops_per_token(T) / 3
    assert silent.teacher_flops_per_token(T) == TEACHER.flops_per_token(T) / 3 - product
    assert silent.flops_per_token(T) == MODEL.flops_per_token(T) + silent.teacher_flops_per_token(T)
