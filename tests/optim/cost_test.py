"""What an update costs, counted by hand."""

import pytest

from model import transformer
from model.presets import PRESETS
from optim.config import GroupConfig, MuonConfig, OptimConfig
from optim.cost import update_cost

MUON = OptimConfig(optimizer="muon")
PARAMS = transformer.abstract(PRESETS["smollm3-3b"])
# Five steps of a matrix, 10 (2 R R C + R R R): feed-forward, query and output, key and value.
MATRIX = tuple(10 * (2 * R * R * C + R**3) for R, C in ((2048, 11008), (2048, 2048), (512, 2048)))
ALL = 36 * sum(number * one for number, one in zip((3, 2, 2), MATRIX))


def test_every_matrix_is_counted_once():
    assert update_cost(PARAMS, MUON, {}).flops == ALL == pytest.approx(1.284e14, rel=1e-3)
    assert update_cost(PARAMS, MUON, {}).busiest == ALL
    assert update_cost(PARAMS, OptimConfig(), {"fsdp": 4}) == (0, 0)
    twelve = OptimConfig(optimizer="muon", muon=MuonConfig(coefficients="convergent"))
    assert update_cost(PARAMS, twelve, {}).flops == pytest.approx(ALL * 12 / 5)
    no_down = OptimConfig(
        optimizer="muon", groups={"down": GroupConfig(pattern="layers/feed_forward/down", optimizer="adamw")}
    )
    assert update_cost(PARAMS, no_down, {}).flops == ALL - 36 * MATRIX[0]


@pytest.mark.parametrize(
    ("mesh", "each"),
    [
        ({"replica": 8, "fsdp": 32}, (1, 1, 1)),  # of 108, 72 and 72
        ({"replica": 1, "fsdp": 4, "tensor": 1}, (27, 18, 18)),
        ({"fsdp": 32}, (4, 3, 3)),
        ({"fsdp": 4, "tensor": 2}, (14, 9, 9)),
        ({"replica": 3, "context": 2}, (18, 12, 12)),
        ({"fsdp": 3}, (36, 24, 24)),  # which does not divide D: every device has all of it, and takes a third
    ],
)
def test_devices_share_the_matrices(mesh, each):
    cost = update_cost(PARAMS, MUON, mesh)
    assert cost.flops == ALL
    assert cost.busiest == sum(number * one for number, one in zip(each, MATRIX))


def test_soap_is_counted_too():
    """Statistics, two rotations and a basis every ten steps, of both sides of query and output, one of the others."""
    own = update_cost(PARAMS, OptimConfig(optimizer="soap"), {})
    assert own.flops == own.busiest == pytest.approx(4.2e13, rel=0.02)
    split = update_cost(PARAMS, OptimConfig(optimizer="soap"), {"replica": 8, "fsdp": 32})
    assert split == (own.flops, own.flops / 32)


def test_heads_are_matrices_of_their_own():
    heads = OptimConfig(optimizer="muon", muon=MuonConfig(split="head"))
    head = 10 * (2 * 128 * 128 * 2048 + 128**3)
    want = 36 * (3 * MATRIX[0] + (16 + 16 + 4 + 4) * head)
    assert update_cost(PARAMS, heads, {}).flops == want
    # `tensor` splits heads, so that a device has its own whole ones.
    assert update_cost(PARAMS, heads, {"tensor": 4}).busiest == 36 * (3 * MATRIX[0] + 40 * head) / 4
