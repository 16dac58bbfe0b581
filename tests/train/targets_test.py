"""Training with stored targets: parts of a batch, devices, and a real run."""

import dataclasses
import functools
import shutil

import numpy as np
import pytest
from steps_lab import assert_alike, assert_as_one_device, gradients

import objectives_lab
from data.config import BatchConfig
from data.pipeline import TaughtBatch
from lab import launch, smoke
from model.config import ModelConfig
from objectives.config import ObjectiveConfig, TargetsConfig
from optim.config import OptimConfig
from train.config import TeachConfig, TrainConfig
from train.metrics import read_metrics
from train.run import Run

KINDS = {"whole": TeachConfig(), "soft": TeachConfig(temperature=2.0)}


def make_run(kind, **changes):
    """Four heads of keys and values, so that `tensor` may split them."""
    model = ModelConfig(64, 2, 32, num_heads=4, num_kv_heads=4, head_dim=8, d_ff=64)
    optim = OptimConfig(learning_rate=1e-3, warmup_steps=1, decay_fraction=0.0)
    objective = ObjectiveConfig(targets=TargetsConfig(((0.0, 1.0), (1.0, 0.5))))
    batch, train = BatchConfig(rows=8, row_length=16), TrainConfig(steps=4)
    run = Run(model, batch, optim, train, seed=0, objective=objective, teach=KINDS[kind])
    return dataclasses.replace(run, **changes)


def batch_of(step):
    """Distributions of five ids beside the tokens."""
    random = np.random.default_rng(step)
    ids = random.integers(0, 64, (8, 16, 5)).astype(np.int32)
    probs = random.dirichlet(np.ones(5), (8, 16)).astype(np.float32)
    return TaughtBatch(*objectives_lab.batch_of(step), ids, probs)


alone = functools.cache(lambda kind: gradients(make_run(kind), batch_of(0)))


def test_parts_of_a_batch_count_as_the_whole():
    run = make_run("whole", train=TrainConfig(steps=4, microbatches=2))
    assert_alike(gradients(run, batch_of(0)), alone("whole"))


def test_meshes_compute_as_one_device(tmp_path):
    cases = ("whole", {"fsdp": 2, "context": 2}), ("soft", {"tensor": 2, "replica": 2})
    assert_as_one_device(__file__, cases, alone, tmp_path)


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


def test_a_student_trains_on_what_a_teacher_said(student, finished, corpus, tmp_path):
    """The same of a run as of its export. It evaluates without; then each way in which the targets can be wrong."""
    refused(launch("train", *flags(student, corpus, finished)), "targets is not finished; run `launch.py teach`")
    of_export = shutil.copytree(student, tmp_path / "of_export")
    result = launch("teach", *flags(of_export, corpus, finished / "export"))
    assert result.returncode == 0, result.stderr
    result = launch("teach", *flags(student, corpus, finished))
    assert result.returncode == 0, result.stderr
    assert bytes_of(student) == bytes_of(of_export)

    refused(
        launch("train", *flags(student, corpus, finished, "--config.teach.tokens=20")),
        "set config.teach back, or run `launch.py teach --rebuild`",
    )
    result = launch("train", *flags(student, corpus, finished))
    assert result.returncode == 0, result.stderr
    rows = [row for row in read_metrics(student / "train" / "metrics.jsonl") if "loss" in row]
    assert rows[-1]["step"] == 6
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.05
    assert rows[-1]["teacher_loss"] < rows[0]["teacher_loss"] - 0.05

    shutil.rmtree(student / "targets")
    for verb, said in (("train", "is up to date"), ("export", "")):
        result = launch(verb, *flags(student, corpus, finished))
        assert result.returncode == 0, result.stderr
        assert said in result.stderr
    shutil.rmtree(student / "train" / "checkpoints" / "6")
    refused(launch("train", *flags(student, corpus, finished)), "targets is not finished; run `launch.py teach`")
