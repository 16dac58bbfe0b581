"""Every mesh trains as one device does: a process of its own, with virtual CPU devices."""

import types
from pathlib import Path

import pytest

from lab import on_devices

SCRIPT = """
import dataclasses, sys
import jax, numpy as np
sys.path.insert(0, {tests!r})
from train.config import MeshConfig
from train.run import make_program
from train.sharding import make_mesh
from mesh_test import RUN, batch_of

def losses(devices, mesh, **train):
    run = dataclasses.replace(RUN, mesh=mesh, train=dataclasses.replace(RUN.train, **train))
    program = make_program(run, make_mesh(mesh, jax.devices()[:devices]))
    state, found = program.init(), []
    for step in range(20):
        state, metrics = program.step(state, batch_of(step))
        found.append(float(metrics["loss"]))
    return found

one = losses(1, MeshConfig())
for devices, mesh, train in {cases!r}:
    found = losses(devices, MeshConfig(**mesh), **train)
    np.testing.assert_allclose(found, one, rtol=2e-6, err_msg=repr((devices, mesh, train)))
    print("as one device:", devices, mesh, train)
"""

FEW = (
    (4, {"replica": 2, "fsdp": 2}, {"microbatches": 2}),
    (4, {"tensor": 2, "context": 2}, {}),
)
ALL = (
    *((1, {}, {"microbatches": n}) for n in (2, 4)),
    *((n, {"fsdp": n}, {}) for n in (2, 4, 8)),
    *((n, {"tensor": n}, {}) for n in (2, 4)),
    *((n, {"context": n}, {}) for n in (2, 4, 8)),
    (2, {"replica": 2}, {}),
    (8, {"replica": 2, "fsdp": 4}, {"microbatches": 2}),
    (8, {"fsdp": 2, "tensor": 4}, {}),
    (8, {"fsdp": 4, "context": 2}, {"microbatches": 2}),
    (8, {"fsdp": 2, "tensor": 2, "context": 2}, {"microbatches": 2}),
    (8, {"replica": 2, "fsdp": 2, "context": 2}, {}),
)


def batch_of(step):
    """Two documents a row, some tokens without a weight."""
    import numpy as np

    from data.pipeline import Batch

    random = np.random.default_rng(step)
    tokens = random.integers(0, 64, (16, 17)).astype(np.int32)
    second = np.arange(16) >= random.integers(1, 16, (16, 1))
    positions = np.arange(16) - np.where(second, second.argmax(1)[:, None], 0)
    weights = (random.random((16, 16)) < 0.8).astype(np.float32)
    return Batch(tokens[:, :-1], tokens[:, 1:], second.astype(np.int32), positions.astype(np.int32), weights)


def make_run():
    """Four heads of keys and values too, so that `tensor` may be 4."""
    from data.config import BatchConfig
    from model.config import ModelConfig
    from optim.config import OptimConfig
    from train.config import TrainConfig
    from train.run import Run

    model = ModelConfig(64, num_layers=2, d_model=32, num_heads=4, num_kv_heads=4, head_dim=8, d_ff=64)
    optim = OptimConfig(learning_rate=1e-3, warmup_steps=1, decay_fraction=0.0)
    return Run(model, BatchConfig(rows=16, row_length=16), optim, TrainConfig(steps=50), seed=0)


def train_on(cases):
    """Runs the script with eight devices."""
    script = SCRIPT.format(tests=str(Path(__file__).parent), cases=cases)
    assert on_devices(8, script, timeout=1800).count("as one device:") == len(cases)


def test_meshes_train_as_one_device():
    train_on(FEW)


@pytest.mark.slow
def test_all_meshes_train_as_one_device():
    train_on(ALL)


RUN = make_run()


def test_compiled_programs_are_kept_on_accelerators(tmp_path, monkeypatch):
    import jax

    from train.loop import _keep_compiled

    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        _keep_compiled(tmp_path)
        assert jax.config.jax_compilation_cache_dir is None
        monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
        _keep_compiled(tmp_path)
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compile_cache")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(("platform", "slices"), [("tpu", 2), ("gpu", 1), ("cpu", 1)])
def test_slices_are_a_tpus(platform, slices):
    """A GPU's slice_index is its host's, and hosts of GPUs are no slices."""
    from train.config import MeshConfig
    from train.sharding import abstract_mesh, count_slices

    devices = [types.SimpleNamespace(platform=platform, slice_index=number // 4) for number in range(8)]
    assert count_slices(devices) == slices
    assert abstract_mesh(MeshConfig(), 8, slices).shape["replica"] == slices
