"""QK-Clip within the step: what it saves, what it leaves alone, and that devices do not change it."""

import functools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from data.config import BatchConfig
from data.pipeline import Batch
from model.config import ModelConfig
from optim.config import AdaptiveConfig, GroupConfig, OptimConfig, QKClipConfig
from train.config import MeshConfig, TrainConfig
from train.run import Run, make_program
from train.sharding import make_mesh

# Sixteen random tokens and the same again: only attention can know the second half. With FAST, queries and keys learn
# twenty times as fast as all else, so that their logits blow up.
MODEL = ModelConfig(32, num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=64, no_rope_every=0)
OPTIM = OptimConfig(learning_rate=1e-2, warmup_steps=10, decay_fraction=0.0)
RUN = Run(replace(MODEL, init_std=0.18), BatchConfig(rows=16, row_length=32), OPTIM, TrainConfig(steps=200), seed=0)
FAST = {"heads": GroupConfig(pattern="layers/attention/(query|key)", multiplier=20.0)}


def copies(step):
    half = np.random.default_rng(step).integers(0, 32, (16, 16)).astype(np.int32)
    tokens = np.concatenate([half, half, half[:, :1]], axis=1)
    places = np.broadcast_to(np.arange(32, dtype=np.int32), (16, 32))
    return Batch(tokens[:, :-1], tokens[:, 1:], np.ones_like(places), places, (places >= 15).astype(np.float32))


def train(steps=30, devices=1, mesh=None, **changes):
    """The last state, and the metrics of every step."""
    run = replace(RUN, mesh=mesh or MeshConfig(), **changes)
    program = make_program(run, make_mesh(run.mesh, jax.devices()[:devices]))
    state, rows = program.init(), []
    for step in range(steps):
        state, metrics = program.step(state, copies(step))
        rows.append(metrics)
    return state, [{name: np.asarray(value) for name, value in row.items()} for row in rows]


def test_a_run_that_blows_up_trains_with_it():
    """Without, the second half is never known: guessing costs ln 32 = 3.47 nats. With it, it is.

    Of 8 seeds the first ended at 3.45 to 3.47; of the second's last 50 losses the median was 0.002 to 0.02 (3 seeds).
    It passes over one step too long, which this seed has with some roundings after 40 steps below 0.1.
    """
    optim = replace(OPTIM, groups=FAST)
    lost, saved = (train(200, optim=replace(optim, qk_clip=QKClipConfig(t)))[1] for t in (0.0, 20.0))
    assert max(row["max_logit"] for row in lost) > 500
    assert min(row["loss"] for row in lost) > 3.3
    assert np.median([row["loss"] for row in saved[-50:]]) < 0.5
    assert sum(row["qk_clipped_heads"] for row in saved) > 0
    assert all(row["max_logit_LN"].shape == (2, 4) for row in saved)


@functools.cache
def plain(optimizer):
    return train(optim=replace(OPTIM, optimizer=optimizer))


@pytest.mark.parametrize(
    ("optimizer", "changes"),
    [
        pytest.param("muon", {"qk_clip": QKClipConfig(100.0)}, marks=pytest.mark.slow),
        pytest.param("adamw", {"qk_clip": QKClipConfig(100.0)}, marks=pytest.mark.slow),
        pytest.param("adamw", {"qk_clip": QKClipConfig(100.0, "group")}, marks=pytest.mark.slow),
        pytest.param(
            "adamw",
            {"qk_clip": QKClipConfig(100.0), "adaptive": AdaptiveConfig(rate="all", slack=4.0)},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["muon", "query", "group", "adaptive"],
)
def test_a_run_below_the_threshold_is_the_same_to_the_bit(optimizer, changes):
    (state, rows), (other, others) = plain(optimizer), train(optim=replace(OPTIM, optimizer=optimizer, **changes))
    assert max(row["max_logit"] for row in rows) > 1.0  # it learns something
    assert sum(row["qk_clipped_heads"] for row in others) == 0
    assert [row["loss"] for row in rows] == [row["loss"] for row in others]
    jax.tree.map(np.testing.assert_array_equal, state.params, other.params)
    jax.tree.map(np.testing.assert_array_equal, *(s.opt_state.inner[1].inner_states for s in (state, other)))


SETTINGS = {
    "query": {"qk_clip": QKClipConfig(2.0)},
    "group": {"qk_clip": QKClipConfig(2.0, "group")},
    "adaptive": {
        "qk_clip": QKClipConfig(4.0),
        "adaptive": AdaptiveConfig(rate="heads", limit=4.0, slack=1.5, least_threshold=1.0),
    },
}
SCRIPT = """
import sys
import jax, numpy as np
sys.path.insert(0, {tests!r})
from qk_clip_test import MeshConfig, TrainConfig, OPTIM, SETTINGS, replace, train

for name in {names!r}:
    changes = SETTINGS[name]
    optim = replace(OPTIM, **changes)
    _, one = train(8, optim=optim)
    mesh, parts = MeshConfig(fsdp=2, tensor=2), TrainConfig(steps=200, microbatches=2)
    state, four = train(8, 4, mesh, optim=optim, train=parts)
    assert sum(row["qk_clipped_heads"] for row in one) > 0, name
    for a, b in zip(one, four):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_allclose(a[key], b[key], rtol=1e-4, err_msg=f"{{name}} {{key}}")
    query = state.params["layers"]["attention"]["query"]
    assert query.sharding.shard_shape(query.shape) == (2, 16, 2, 8), query.sharding
    print("as one device:", name)
"""


@pytest.mark.slow
@pytest.mark.parametrize("names", [["adaptive"], ["query", "group"]], ids=" and ".join)
def test_four_devices_clip_as_one(names):
    script = SCRIPT.format(tests=str(Path(__file__).parent), names=names)
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert result.stdout.count("as one device:") == len(names), result.stderr[-2000:]
