"""Several processes that train as one: another number of them, a stop, and what they refuse."""

import signal
import subprocess
import sys
import time

import pytest
from chaos.kills import free_port

from lab import ROOT, smoke
from train.metrics import read_metrics


def start(workdir, corpus, count, *flags, own=()):
    """`count` processes; `own` are flags of the last alone."""
    together = [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={count}"]
    command = [sys.executable, str(ROOT / "launch.py"), "train", *smoke(workdir, corpus, *FLAGS, *flags), *together]
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


def ends(processes):
    """Exit codes and what was written to standard error."""
    told = [process.communicate(timeout=200)[1] for process in processes]
    return [process.returncode for process in processes], told


def losses(workdir):
    rows = read_metrics(workdir / "train" / "metrics.jsonl")
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.fixture
def workdir(finished, tmp_path):
    """Tokens, not yet trained on."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("curated", "tokenizer", "tokens"):
        (folder / name).symlink_to(finished / name)
    return folder


def test_stopped_on_two_hosts_it_continues_on_three(workdir, finished, corpus, tmp_path):
    steps = "--config.train.steps=150"
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
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("curated", "tokenizer", "tokens"):
        (alone / name).symlink_to(finished / name)
    flags = [*FLAGS, steps]
    result = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), "train", *smoke(alone, corpus, *flags)], check=False
    )
    assert result.returncode == 0
    ours, theirs = losses(workdir), losses(alone)
    assert sorted(ours) == list(range(1, 151))
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
