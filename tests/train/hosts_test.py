"""Several processes that train as one: another number of them, a stop, a loss, a freeze, and what they refuse."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from chaos.kills import free_port

from lab import ROOT, launch, smoke
from train.hosts import of_what_follows
from train.metrics import read_metrics


def start(workdir, corpus, count, *flags, own=(), verb=("train",)):
    """`count` processes; `own` are flags of the last alone, without a verb they go through the whole recipe."""
    together = [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={count}"]
    command = [sys.executable, str(ROOT / "launch.py"), *verb, *smoke(workdir, corpus, *FLAGS, *flags), *together]
    return [
        subprocess.Popen(
            [*command, f"--process={number}", *(own if number == count - 1 else ())],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for number in range(count)
    ]


FLAGS = ("--config.batch.rows=24", "--config.train.log_every=1", "--config.train.eval_every=0")


def srun(workdir, corpus, count, *flags, verb="train"):
    """`count` processes with what srun sets; only where they meet is said by a flag."""
    meet = f"--coordinator=127.0.0.1:{free_port()}"
    command = [
        sys.executable,
        str(ROOT / "launch.py"),
        *([verb] if verb else []),
        *smoke(workdir, corpus, *flags),
        meet,
    ]
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **SLURM, "SLURM_STEP_NUM_TASKS": str(count), "SLURM_PROCID": str(number)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for number in range(count)
    ]


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "n[1-3]",
    "SLURM_STEP_TASKS_PER_NODE": "3",
}


def ends(processes):
    """Exit codes and what was written to standard error, by the way printed whole for a test that fails."""
    told = [process.communicate(timeout=600)[1] for process in processes]
    print(*told, sep="\n--- next process\n")
    return [process.returncode for process in processes], told


def losses(workdir):
    rows = read_metrics(workdir / "train" / "metrics.jsonl")
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def heldout(workdir):
    rows = read_metrics(workdir / "train" / "metrics.jsonl")
    found = [row["heldout_bits_per_byte"] for row in rows if "heldout_bits_per_byte" in row]
    assert len(found) == 2
    return found


@pytest.fixture
def workdir(finished, tmp_path):
    """Tokens, not yet trained on."""
    return with_tokens(tmp_path / "run", finished)


def with_tokens(folder, finished):
    folder.mkdir()
    for name in ("curated", "tokenizer", "tokens"):
        (folder / name).symlink_to(finished / name)
    return folder


def trained_alone(folder, finished, corpus, *flags):
    """The same run of one process with one device."""
    command = ["train", *smoke(with_tokens(folder, finished), corpus, *FLAGS, *flags)]
    result = launch(*command)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize(
    "axes",
    [
        {"fsdp": 2, "context": 2},  # each process holds a part of every row
        *(
            pytest.param(axes, marks=pytest.mark.slow)
            for axes in (
                {"fsdp": 4},
                {"context": 4},
                {"fsdp": 2, "tensor": 2},
                {"tensor": 2, "context": 2},
                {"replica": 2, "fsdp": 2},
            )
        ),
    ],
    ids=lambda axes: "-".join(f"{name}{size}" for name, size in axes.items()),
)
def test_two_processes_of_two_devices_train_as_one_device(workdir, finished, corpus, tmp_path, monkeypatch, axes):
    """Through the whole recipe: process 0 prepares, all train and evaluate, process 0 does the rest."""
    asked = ("--config.train.steps=20", "--config.train.eval_every=12")  # and after the last
    alone = trained_alone(tmp_path / "alone", finished, corpus, *asked)
    # XLA ends a process whose devices wait for each other for 40 s, which a busy machine can make them.
    patience = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    monkeypatch.setenv("XLA_FLAGS", f"--xla_force_host_platform_device_count=2 {patience}")
    mesh = [*(f"--config.mesh.{name}={size}" for name, size in axes.items()), "--config.train.microbatches=2"]
    codes, told = ends(start(workdir, corpus, 2, *asked, "--rebuild", *mesh, verb=()))
    assert codes == [0, 0], told
    assert (workdir / "eval" / "eval.json").exists()
    assert (workdir / "report" / "report.html").exists()
    assert (workdir / "export" / "config.json").exists()
    assert heldout(workdir) == pytest.approx(heldout(alone), rel=2e-6)
    split = " x ".join(f"{name} {size}" for name, size in axes.items())
    assert f"4 cpu of 2 hosts, {split}" in told[0], told
    ours, theirs = losses(workdir), losses(alone)
    assert sorted(ours) == list(range(1, 21))
    assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=2e-6)


@pytest.mark.slow  # five processes
def test_stopped_on_two_hosts_it_continues_on_three(workdir, finished, corpus, tmp_path):
    steps = "--config.train.steps=36"
    two = start(workdir, corpus, 2, steps)
    while not losses(workdir):
        assert all(process.poll() is None for process in two), ends(two)
        time.sleep(0.02)
    two[1].send_signal(signal.SIGTERM)
    codes, told = ends(two)
    assert codes == [143, 143], told
    assert "stopped by SIGTERM; the same command continues" in told[0]
    saved = max(int(path.name) for path in (workdir / "train" / "checkpoints").iterdir())
    codes, told = ends(start(workdir, corpus, 3, steps))
    assert codes == [0, 0, 0], told
    assert f"from step {saved}" in told[0]
    alone = trained_alone(tmp_path / "alone", finished, corpus, steps)
    ours, theirs = losses(workdir), losses(alone)
    assert sorted(ours) == list(range(1, 37))
    early = [step for step in ours if step <= saved + 20]  # later, differences of rounding have grown
    assert [ours[step] for step in early] == pytest.approx([theirs[step] for step in early], abs=1e-4)


@pytest.mark.parametrize(
    ("flags", "own", "message"),
    [
        ([], ["--config.optim.learning_rate=0.5"], "were started with different configs or flags"),
        (["--config.batch.rows=9"], [], "config batch.rows=9 is not a multiple of the 2 devices of 2 hosts"),
    ],
)
def test_what_several_processes_refuse(workdir, corpus, flags, own, message):
    codes, told = ends(start(workdir, corpus, 2, *flags, own=own))
    assert codes == [2, 2], told
    assert message in told[0] + told[1]


def test_hosts_that_share_no_folder_are_refused(workdir, finished, corpus, tmp_path):
    other = with_tokens(tmp_path / "other", finished)
    codes, told = ends(start(workdir, corpus, 2, own=[f"--workdir={other}"]))
    assert codes == [2, 2], told
    assert f"process 1 on {socket.gethostname()}: {other} is not where process 0 writes" in told[1]
    assert f"process 1 on {socket.gethostname()} ended: {other} is not where" in told[0]
    assert not [*workdir.glob(".shared-*")]


def joined(workdir):
    return (workdir / "train").exists()


@pytest.mark.parametrize(
    ("sent", "when"), [(signal.SIGKILL, joined), pytest.param(signal.SIGSTOP, losses, marks=pytest.mark.slow)]
)
def test_a_process_that_is_killed_or_frozen_is_named_by_the_others(workdir, corpus, sent, when):
    flags = (*FLAGS, "--config.train.steps=2000", "--config.train.silent_seconds=8")
    three = srun(workdir, corpus, 3, *flags)
    while not when(workdir):
        assert all(process.poll() is None for process in three), ends(three)
        time.sleep(0.02)
    three[1].send_signal(sent)
    codes, told = ends([three[0], three[2]])
    three[1].kill()
    three[1].communicate()
    assert codes == [2, 2]
    what = "ended; start all" if sent == signal.SIGKILL else "does not answer for 8 s; start all"
    for words in told:
        assert f"process 1 on {socket.gethostname()} {what} processes again with the same command" in words
    assert "slurm: process 0 of 3" in told[0]
    lines = [line for line in told[1].splitlines() if not line.startswith("[Gloo]")]
    assert len(lines) == 1, told[1]  # process 0 alone tells how the run goes


def test_verbs_before_and_after_training_are_the_work_of_process_0(finished, corpus):
    codes, told = ends(srun(finished, corpus, 2, verb="curate"))
    assert codes == [0, 0], told
    assert "is up to date" in told[0]
    assert told[1] == f"process 1 on {socket.gethostname()}: process 0 runs curate alone\n"


def test_a_config_that_is_wrong_is_told_by_each_with_its_name(finished, corpus):
    codes, told = ends(srun(finished, corpus, 2, "--config.train.steps=-1"))
    assert codes == [2, 2], told
    assert told[0].startswith("launch.py: config train: steps=-1")
    assert told[1].startswith(f"launch.py: process 1 on {socket.gethostname()}: config train: steps=-1")


def test_what_follows_training_does_not_change_the_run_again():
    """Process 0 starts once more, alone, and its devices need not be those of the config's mesh."""
    command = ["python", "launch.py", "--rebuild", "--amend", "--skip", "3:5", "--skip=7:8", "--config=x.py"]
    assert of_what_follows(command) == ["python", "launch.py", "--config=x.py"]
