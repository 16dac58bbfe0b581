"""Kill it anywhere, type the same command again: the run ends as if nothing had happened, to the bit."""

import json
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from chaos.kills import PHASES, Lab, differences, disturbed_run, free_port

from core.files import read_json
from lab import ROOT, launch, smoke
from train.metrics import read_metrics

STEPS = 24


def losses(workdir):
    rows = read_metrics(workdir / "train" / "metrics.jsonl")
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def weights(workdir):
    return read_json(workdir / "export" / "manifest.json")["summary"]["weights"]


def start(workdir, corpus, *arguments):
    command = [sys.executable, str(ROOT / "launch.py"), *smoke(workdir, corpus, *arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(process, workdir, step, timeout=120):
    """Until a step is logged; fails with the output where the process ends before."""
    deadline = time.monotonic() + timeout
    while step not in losses(workdir) if (workdir / "train").exists() else True:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "no step logged in time"
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_continues(finished, corpus, tmp_path, number, code):
    workdir = tmp_path / "run"
    process = start(workdir, corpus)
    wait_for(process, workdir, 4)
    process.send_signal(number)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == code, output
    assert "Traceback" not in output
    assert f"stopped by {number.name}; the same command continues" in output
    saved = max(int(path.name) for path in (workdir / "train" / "checkpoints").iterdir())
    assert 4 <= saved < STEPS
    result = launch(*smoke(workdir, corpus))
    assert result.returncode == 0, result.stderr
    assert f"from step {saved}" in result.stderr
    assert weights(workdir) == weights(finished)
    assert losses(workdir) == {**losses(finished), **losses(workdir)}
    assert max(losses(workdir)) == STEPS


@pytest.mark.slow
def test_killed_in_every_phase_it_still_ends_the_same(finished, corpus, tmp_path, monkeypatch):
    """A sample of `make chaos`: eight SIGKILLs of one run, then equal to the undisturbed run in every bit."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    lab = Lab(tmp_path, corpus, source=finished)
    lab.prepare()
    chance = random.Random(0)
    phases = [*PHASES, "saving", "committing"]
    kills, failure = disturbed_run(lab, tmp_path / "run", phases, chance)
    assert failure is None
    assert len(kills) >= 6  # a slow machine may let a life end before its kill
    assert differences(lab, tmp_path / "run") == 0


@pytest.mark.slow  # hosts_test has a loss and a stop in less
def test_two_processes_end_together_and_continue(finished, corpus, tmp_path, monkeypatch):
    """A sample of `make chaos`: one process of two is killed; the other stops by itself and says why."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    lab = Lab(tmp_path, corpus, processes=2, port=free_port(), steps=30, source=finished)
    lab.prepare()
    kills, failure = disturbed_run(lab, tmp_path / "run", ["saving"], random.Random(0))
    assert failure is None
    assert kills
    assert all(kill.told for kill in kills if kill.survivor_seconds is not None)
    assert differences(lab, tmp_path / "run") == 0


def test_a_killed_save_leaves_no_half_checkpoint(finished, corpus, tmp_path):
    """Folders of a save that never committed are not taken for checkpoints."""
    workdir = tmp_path / "run"
    process = start(workdir, corpus)
    wait_for(process, workdir, 2)
    checkpoints = workdir / "train" / "checkpoints"
    while not any(path.name.isdigit() for path in checkpoints.glob("*")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.005)
    process.kill()
    process.communicate()
    saved = max(int(path.name) for path in checkpoints.glob("*") if path.name.isdigit())
    half = checkpoints / ".23.part"
    (half / "state").mkdir(parents=True)
    result = launch(*smoke(workdir, corpus))
    assert result.returncode == 0, result.stderr
    if saved < STEPS:  # the steps are quick; the kill may come after the last
        assert f"from step {saved}" in result.stderr
        assert not half.exists()
    assert weights(workdir) == weights(finished)


def test_a_second_run_does_nothing(finished, corpus):
    before = {
        path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file() and path.suffix != ".lock"
    }
    result = launch(*smoke(finished, corpus))
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("is up to date") == 6
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_metrics_are_complete(finished):
    rows = read_metrics(finished / "train" / "metrics.jsonl")
    logged = [row for row in rows if "loss" in row]
    assert [row["step"] for row in logged] == [1, *range(2, STEPS + 1, 2)]
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    evaluated = [row["step"] for row in rows if "heldout_bits_per_byte" in row]
    assert evaluated == [20, 24]  # every 20 steps and after the last
    assert logged[-1]["loss"] < logged[0]["loss"]
    json.dumps(rows)
