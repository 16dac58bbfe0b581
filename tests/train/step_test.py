import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.config import BatchConfig
from data.pipeline import Batch
from model.config import ModelConfig
from optim.config import OptimConfig
from train.config import TrainConfig
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
    assert metrics.keys() == {"loss", "learning_rate", "grad_norm", "max_logit"}
    assert float(metrics["learning_rate"]) == pytest.approx(1e-2)
    assert float(metrics["grad_norm"]) > 0


def test_every_array_of_the_state_has_a_layout():
    shardings = state_shardings(program().abstract, make_mesh())
    assert all(isinstance(leaf, jax.sharding.NamedSharding) for leaf in jax.tree.leaves(shardings))
    assert len(jax.tree.leaves(shardings)) == len(jax.tree.leaves(program().abstract))


def test_a_parameter_without_a_rule_is_noticed():
    with pytest.raises(AssertionError, match="no sharding rule for params/surprise"):
        state_shardings({"params": {"surprise": jnp.zeros(3)}}, make_mesh())
