import contextlib
import functools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from core.errors import UserError
from data.config import BatchConfig
from data.pipeline import Batch
from model.config import ModelConfig
from objectives.config import ObjectiveConfig
from optim.config import OptimConfig
from train.checkpoint import Checkpoints
from train.config import MeshConfig, TrainConfig
from train.run import Run, make_program
from train.sharding import make_mesh, state_shardings

MODEL = ModelConfig(vocab_size=64, num_layers=2, d_model=32, num_heads=2, num_kv_heads=1, head_dim=16, d_ff=32)
RUN = Run(
    MODEL,
    BatchConfig(rows=4, row_length=16),
    OptimConfig(learning_rate=1e-2, warmup_steps=1, decay_fraction=0.0),
    TrainConfig(steps=50),
    seed=0,
)


def make_batch(seed=0):
    random = np.random.default_rng(seed)
    tokens = random.integers(0, 64, (4, 17)).astype(np.int32)
    ones = np.ones((4, 16), np.int32)
    positions = np.broadcast_to(np.arange(16, dtype=np.int32), (4, 16))
    return Batch(tokens[:, :-1], tokens[:, 1:], ones, positions, np.ones((4, 16), np.float32))


@functools.cache
def program():
    return make_program(RUN, make_mesh())


def test_the_step_learns_a_batch_by_heart():
    state, first = program().step(program().init(), make_batch())
    for _ in range(40):
        state, metrics = program().step(state, make_batch())
    assert float(first["loss"]) == pytest.approx(np.log(64), rel=0.05)
    assert float(metrics["loss"]) < 0.5
    assert int(state.step) == 41


def test_the_step_is_pure():
    results = [program().step(program().init(), make_batch()) for _ in range(2)]
    for a, b in zip(*map(jax.tree.leaves, results)):
        np.testing.assert_array_equal(a, b)


def test_the_old_state_is_donated():
    state = program().init()
    program().step(state, make_batch())
    assert state.params["embedding"].is_deleted()


def test_metrics_say_what_happened():
    _, metrics = program().step(program().init(), make_batch())
    ours = {"clipped_share", "clipped_tensors", "skipped_steps", "nonfinite_in_a_row"}
    assert metrics.keys() == {"loss", "accuracy", "learning_rate", "grad_norm", "max_logit"} | ours
    assert float(metrics["learning_rate"]) == pytest.approx(1e-2)
    assert float(metrics["grad_norm"]) > 0


def test_every_array_of_the_state_has_a_layout():
    shardings = state_shardings(program().abstract, make_mesh())
    assert all(isinstance(leaf, jax.sharding.NamedSharding) for leaf in jax.tree.leaves(shardings))
    assert len(jax.tree.leaves(shardings)) == len(jax.tree.leaves(program().abstract))


def test_a_parameter_without_a_rule_is_noticed():
    with pytest.raises(AssertionError, match="no sharding rule for params/surprise"):
        state_shardings({"params": {"surprise": jnp.zeros(3)}}, make_mesh())


def _first_moment(state):
    """Of the embedding's group."""
    return state.opt_state.inner[1].inner_states["adamw"].inner_state.mu


def test_an_offloaded_optimizer_changes_nothing(tmp_path):
    """Not a bit of the run; its moments lie in the memory of the host, are saved from there and restored to it."""
    away = make_program(replace(RUN, train=replace(RUN.train, offload_optimizer=True)), make_mesh())
    states = [part.init() for part in (program(), away)]
    for seed in range(3):
        states = [part.step(state, make_batch(seed))[0] for part, state in zip((program(), away), states)]
    here, there = states
    for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(there)):
        np.testing.assert_array_equal(a, b)
    assert _first_moment(there)["embedding"].sharding.memory_kind == "pinned_host"
    with contextlib.closing(Checkpoints(tmp_path, keep_last=1)) as checkpoints:
        checkpoints.save(there, 3, {})
    back = Checkpoints(tmp_path).restore(away.abstract, away.shardings, 3)
    assert _first_moment(back)["embedding"].sharding.memory_kind == "pinned_host"
    for a, b in zip(jax.tree.leaves(there), jax.tree.leaves(back)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("parts", [2, 4])
def test_microbatches_take_the_same_step(parts):
    """Rows with fewer weights count no more than in a batch of one part."""
    batch = make_batch()._replace(weights_BT=(np.arange(64).reshape(4, 16) % 5 < np.arange(1, 5)[:, None]) * 1.0)
    split = make_program(replace(RUN, train=replace(RUN.train, microbatches=parts)), make_mesh())
    (one, ours), (other, theirs) = (part.step(part.init(), batch) for part in (program(), split))
    assert float(ours["loss"]) == pytest.approx(float(theirs["loss"]), rel=2e-6)
    assert float(ours["max_logit"]) == pytest.approx(float(theirs["max_logit"]), rel=1e-6)
    for a, b in zip(jax.tree.leaves(one.opt_state), jax.tree.leaves(other.opt_state)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "remat",
    [
        "full",
        "branches",
        *(pytest.param(r, marks=pytest.mark.slow) for r in ("attention", "dots", "dots_without_batch")),
    ],
)
def test_what_is_computed_again_changes_no_gradient(remat):
    kept = make_program(replace(RUN, model=replace(RUN.model, remat=remat)), make_mesh())
    (_, ours), (_, theirs) = (part.step(part.init(), make_batch()) for part in (program(), kept))
    assert float(ours["grad_norm"]) == pytest.approx(float(theirs["grad_norm"]), rel=1e-5)


def test_a_z_loss_is_measured_apart_whatever_the_microbatches():
    asked = replace(RUN, objective=ObjectiveConfig(z_loss=1e-2))
    parts = (
        make_program(asked, make_mesh()),
        make_program(replace(asked, train=TrainConfig(steps=50, microbatches=2)), make_mesh()),
        program(),
    )
    one, split, without = (part.step(part.init(), make_batch())[1] for part in parts)
    assert float(one["z_loss"]) == pytest.approx(float(split["z_loss"]), rel=1e-5)
    assert float(one["z_loss"]) == pytest.approx(1e-2 * np.log(64) ** 2, rel=0.1)
    assert float(one["loss"]) == pytest.approx(float(without["loss"]), rel=1e-6)
    assert float(one["grad_norm"]) != float(without["grad_norm"])


MESHES = {
    "axes that leave nothing whole for fsdp": (
        {"mesh": MeshConfig(tensor=2)},
        "config mesh: tensor 2 is not the 1 devices; their product must divide 1",
    ),
    "a mesh that is not the devices": (
        {"mesh": MeshConfig(fsdp=3)},
        "config mesh: fsdp 3 is not the 1 devices; mesh.fsdp=1 is, or 0, which takes what the others leave",
    ),
    "rows that do not split": (
        {"train": TrainConfig(steps=50, microbatches=3)},
        "config batch.rows=4 is not a multiple of the 1 devices with 3 train.microbatches each; a multiple of 3 is",
    ),
}


@pytest.mark.parametrize("case", MESHES)
def test_what_cannot_be_split_is_told(case):
    changed, message = MESHES[case]
    run = replace(RUN, **changed)
    with pytest.raises(UserError, match=re.escape(message)):
        make_program(run, make_mesh(run.mesh))


def test_an_axis_that_does_not_divide_a_parameter_is_told():
    mesh = AbstractMesh((1, 1, 3, 1, 1), ("replica", "fsdp", "tensor", "context", "expert"))
    with pytest.raises(UserError, match="tensor=3 does not divide V=64 of params/embedding; what does: 1, 2"):
        state_shardings(program().abstract, mesh, MeshConfig(tensor=3))


def test_experts_are_reserved():
    with pytest.raises(ValueError, match="expert=2 must be 1"):
        MeshConfig(expert=2)
