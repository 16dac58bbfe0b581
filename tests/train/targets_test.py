"""Training with stored targets: parts of a batch, devices, and a real run whose teacher was killed on the way."""

import dataclasses
import functools
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from data.config import BatchConfig
from data.pipeline import TaughtBatch
from lab import ROOT, launch, on_devices, smoke
from model.config import ModelConfig
from objectives.config import ObjectiveConfig, TargetsConfig
from optim.config import OptimConfig
from train.config import TrainConfig
from train.metrics import read_metrics
from train.run import Run, make_program
from train.sharding import make_mesh


def make_run(**changes):
    """Four heads of keys and values, so that `tensor` may split them."""
    model = ModelConfig(64, 2, 32, num_heads=4, num_kv_heads=4, head_dim=8, d_ff=64)
    optim = OptimConfig(learning_rate=1e-3, warmup_steps=1, decay_fraction=0.0)
    objective = ObjectiveConfig(targets=TargetsConfig(((0.0, 1.0), (1.0, 0.5))))
    run = Run(model, BatchConfig(rows=8, row_length=16), optim, TrainConfig(steps=4), seed=0, objective=objective)
    return dataclasses.replace(run, **changes)


def batch_of(step):
    """Two documents a row, some tokens without a weight, distributions of five ids."""
    random = np.random.default_rng(step)
    tokens = random.integers(0, 64, (8, 17)).astype(np.int32)
    second = np.arange(16) >= random.integers(1, 16, (8, 1))
    positions = np.arange(16) - np.where(second, second.argmax(1)[:, None], 0)
    weights = (random.random((8, 16)) < 0.8).astype(np.float32)
    ids = random.integers(0, 64, (8, 16, 5)).astype(np.int32)
    probs = random.dirichlet(np.ones(5), (8, 16)).astype(np.float32)
    fields = (tokens[:, :-1], tokens[:, 1:], second.astype(np.int32), positions.astype(np.int32), weights)
    return TaughtBatch(*fields, ids, probs)


def metrics_of(run, devices=1):
    """Losses of every step."""
    program = make_program(run, make_mesh(run.mesh, jax.devices()[:devices]))
    state, found = program.init(), []
    for step in range(4):
        state, metrics = program.step(state, batch_of(step))
        found.append([float(metrics[name]) for name in ("loss", "teacher_loss", "grad_norm")])
    return found


alone = functools.cache(lambda: metrics_of(make_run()))


def test_parts_of_a_batch_train_as_the_whole():
    found = metrics_of(make_run(train=TrainConfig(steps=4, microbatches=2)))
    np.testing.assert_allclose(found, alone(), rtol=1e-5)


SCRIPT = """
import sys
import numpy as np
sys.path.insert(0, {tests!r})
from train.config import MeshConfig
from targets_test import alone, make_run, metrics_of

for mesh in {meshes!r}:
    found = metrics_of(make_run(mesh=MeshConfig(**mesh)), 4)
    np.testing.assert_allclose(found, alone(), rtol=1e-5, err_msg=str(mesh))
    print("as one device:", mesh)
"""


def test_meshes_train_as_one_device():
    meshes = ({"fsdp": 2, "context": 2}, {"tensor": 2, "replica": 2})
    script = SCRIPT.format(tests=str(Path(__file__).parent), meshes=meshes)
    assert on_devices(4, script, timeout=900).count("as one device:") == len(meshes)


@pytest.fixture
def student(finished, tmp_path):
    """A workdir with the documents and tokens of `finished`."""
    for name in ("curated", "tokenizer", "tokens"):
        shutil.copytree(finished / name, tmp_path / "run" / name)
    return tmp_path / "run"


def flags(workdir, corpus, teacher, *more):
    return smoke(
        workdir, corpus, f"--config.teach.teacher={teacher}", "--config.teach.dtype=float32",
        "--config.teach.context=64", "--config.objective.targets.weight=0.5", "--config.batch.packing=best_fit",
        "--config.train.steps=6", "--config.train.eval_every=0", "--config.optim.warmup_steps=1", *more,
    )  # fmt: skip


def bytes_of(workdir):
    return {path.name: path.read_bytes() for path in sorted((workdir / "targets").glob("*.array_record"))}


def refused(result, message):
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert message in result.stderr.strip().splitlines()[-1]


def test_a_teacher_that_is_killed_goes_on_and_a_student_trains_on_what_it_said(student, finished, corpus, tmp_path):
    """Equal bytes, of a run as of its export; then each way in which the targets can be wrong, in one line."""
    refused(launch("train", *flags(student, corpus, finished)), "targets is not finished; run `launch.py teach`")
    undisturbed = shutil.copytree(student, tmp_path / "undisturbed")
    result = launch("teach", *flags(undisturbed, corpus, finished / "export"))
    assert result.returncode == 0, result.stderr
    command = [sys.executable, str(ROOT / "launch.py"), "teach", *flags(student, corpus, finished)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not list(student.glob("targets/*.done.json")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = {path.name: path.stat().st_mtime_ns for path in (student / "targets").glob("*.array_record")}
    result = launch("teach", *flags(student, corpus, finished))
    assert result.returncode == 0, result.stderr
    assert 0 < len(done) < len(bytes_of(undisturbed))
    assert bytes_of(student) == bytes_of(undisturbed)
    assert all((student / "targets" / name).stat().st_mtime_ns == time for name, time in done.items())

    result = launch("train", *flags(student, corpus, finished))
    assert result.returncode == 0, result.stderr
    rows = [row for row in read_metrics(student / "train" / "metrics.jsonl") if "loss" in row]
    assert rows[-1]["step"] == 6
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.05
    assert rows[-1]["teacher_loss"] < rows[0]["teacher_loss"] - 0.05

    again = flags(undisturbed, corpus, finished / "export")
    refused(launch("train", *again, "--config.teach.tokens=20"), "targets was made from something else (teach.tokens")
    next((undisturbed / "targets").glob("*.array_record")).unlink()
    refused(launch("train", *again), "is missing or not")
