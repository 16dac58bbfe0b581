"""What objectives cost, beside what XLA counts of their compiled forward pass and of its gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from data.pipeline import Batch
from model import transformer
from model.config import Kernels, ModelConfig, MultiToken
from objectives.build import build
from objectives.config import DistillConfig, MultiTokenConfig, ObjectiveConfig

T = 64
# Kernels that write all logits and maps at once: XLA counts the body of a loop once. So one layer and one module.
MODEL = ModelConfig(
    512, num_layers=1, d_model=128, num_heads=4, num_kv_heads=4, head_dim=32, d_ff=512, no_rope_every=0,
    kernels=Kernels(attention="reference", cross_entropy="reference", rope="reference"),
)  # fmt: skip
TEACHER = dataclasses.replace(MODEL, d_model=192, num_heads=6, num_kv_heads=6, d_ff=768)
DISTILL = DistillConfig(teacher="there", weight=0.5)
CASES = {
    "next token": ({}, {}, None),
    "parallel": ({"multi_token": MultiToken("parallel", 2)}, {}, None),
    "sequential": ({"multi_token": MultiToken("sequential", 2)}, {}, None),
    "trunk": ({}, {"multi_token": MultiTokenConfig(trunk=(0.5,))}, None),
    "teacher": ({}, {"distill": DISTILL}, TEACHER),
}


def made(name, temperature=1.0):
    changes, objective, teacher = CASES[name]
    model = dataclasses.replace(MODEL, **changes)
    return build(model, ObjectiveConfig(**objective), 1, teacher, temperature)


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


def test_print():
    for name in CASES:
        total = made(name)
        for graded in (False, True):
            print(name, graded, counted(total, graded), total.flops_per_token(T), total.teacher_flops_per_token(T))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("graded", [False, True])
def test_xla_counts_as_much(name, graded):
    pass
