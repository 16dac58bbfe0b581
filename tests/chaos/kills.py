"""Kills a real training run again and again, and compares what comes out with the run that nobody disturbed.

A life is the time from the start of the command to SIGKILL. Each aims at a phase: while starting, while restoring a
checkpoint, between steps, while a checkpoint is written, around the rename that commits it, or anywhere.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lab import ROOT, launch, smoke
from train.metrics import read_metrics

PHASES = ("starting", "restoring", "stepping", "saving", "committing", "anywhere")
# A process that dies before it has joined the others is waited for (`train.peers.Patience.start`).
PHASES_OF_SEVERAL = PHASES[1:]
STEPS, SAVE_EVERY = 60, 3
PATIENCE = 60  # seconds to wait for a phase that does not come
SURVIVOR_SECONDS = 30  # in which the other process must have stopped
LOST = "ended; start all processes again with the same command"  # behind the name of the process


@dataclass
class Lab:
    """Where the runs are made: finished documents and tokens, the undisturbed run, and a corpus."""

    folder: Path
    corpus: Path
    processes: int = 1
    port: int = 29400
    steps: int = STEPS
    source: Path | None = None  # where the same documents have been tokenized already
    reference: Path = field(init=False)

    def __post_init__(self):
        self.reference = self.folder / f"reference-{self.processes}"

    def prepare(self) -> None:
        """Makes the tokens and the undisturbed run, unless they are there."""
        if self.source is None:
            self.source = self.folder / "source"
            for verb in ("curate", "tokenize"):
                result = launch(verb, *self.arguments(self.source))
                assert result.returncode == 0, result.stderr
        if not (self.reference / "done").exists():
            self.fresh(self.reference)
            codes = [life.wait(timeout=300) for life in self.start(self.reference)]
            assert codes == [0] * self.processes, output(self.reference)
            (self.reference / "done").touch()

    def arguments(self, workdir: Path) -> list[str]:
        """Flags of every command."""
        keys = {
            "batch.rows": 12,
            "train.steps": self.steps,
            "train.checkpoint_every": SAVE_EVERY,
            "train.log_every": 1,
            "train.eval_every": 0,
        }
        return smoke(workdir, self.corpus, *(f"--config.{key}={value}" for key, value in keys.items()))

    def fresh(self, workdir: Path) -> Path:
        """A workdir that is about to be trained."""
        shutil.rmtree(workdir, ignore_errors=True)
        workdir.mkdir(parents=True)
        for name in ("curated", "tokenizer", "tokens"):
            shutil.copytree(self.source / name, workdir / name)
        return workdir

    def start(self, workdir: Path) -> list[subprocess.Popen]:
        """All processes of the run, each with a log."""
        command = [sys.executable, str(ROOT / "launch.py"), "train", *self.arguments(workdir)]
        lives = []
        for number in range(self.processes):
            several = [f"--coordinator=127.0.0.1:{self.port}", f"--processes={self.processes}", f"--process={number}"]
            with (workdir / f"{number}.log").open("ab") as log:
                lives.append(
                    subprocess.Popen([*command, *(several if self.processes > 1 else [])], stdout=log, stderr=log)
                )
        return lives


@dataclass
class Kill:
    """What happened at one kill."""

    phase: str
    killed: str  # which processes
    survivor_seconds: float | None = None
    told: bool | None = None  # the survivor said why it stopped


def kill_once(lab: Lab, workdir: Path, phase: str, chance: random.Random) -> Kill | None:
    """One life of a run; None where it ended by itself before the phase came."""
    lives = lab.start(workdir)
    whose = [[0]] if lab.processes == 1 else [[0], [1], [0, 1]]
    victims = chance.choice(whose)
    try:
        if not wait_for(phase, workdir, lives, chance):
            for life in lives:
                assert life.wait(timeout=PATIENCE) == 0, output(workdir)
            return None
        logs = {number: workdir / f"{number}.log" for number in range(lab.processes) if number not in victims}
        before = {number: log.read_text().count(LOST) for number, log in logs.items()}
        began = time.monotonic()
        for victim in victims:
            lives[victim].send_signal(signal.SIGKILL)
        kill = Kill(phase, "both" if len(victims) > 1 else str(victims[0]))
        for number, log in logs.items():
            code = lives[number].wait(timeout=SURVIVOR_SECONDS)
            kill.survivor_seconds = time.monotonic() - began
            kill.told = code == 2 and log.read_text().count(LOST) > before[number]
        return kill
    finally:
        for life in lives:
            life.kill()
            life.wait()


def wait_for(phase: str, workdir: Path, lives: list[subprocess.Popen], chance: random.Random) -> bool:
    """Sleeps into the phase; False where a process ended before."""
    checkpoints, metrics = workdir / "train" / "checkpoints", workdir / "train" / "metrics.jsonl"
    before = metrics.stat().st_size if metrics.exists() else 0
    maps = Path(f"/proc/{lives[0].pid}/maps")
    left = parts(checkpoints)  # by the life before

    def part(name: str) -> bool:
        return any((checkpoints / folder / name).exists() for folder, _ in parts(checkpoints) - left)

    def joined() -> bool:
        """The checkpoint library is loaded, which is after all processes have met."""
        return "tensorstore" in maps.read_text()

    # What must be seen first, and for how many seconds at most to wait then.
    begins: dict[str, tuple[Callable[[], bool], float]] = {
        "starting": (lambda: True, 1.5),
        "restoring": (joined, 1.0),
        "stepping": (lambda: metrics.exists() and metrics.stat().st_size > before, 0.2),
        "saving": (lambda: part(""), 0.06),
        "committing": (lambda: part("record.json"), 0.004),
        "anywhere": (lambda: len(lives) == 1 or joined(), 5.0),
    }
    begun, longest = begins[phase]
    deadline = time.monotonic() + PATIENCE
    while not begun():
        if any(life.poll() is not None for life in lives):
            return False
        assert time.monotonic() < deadline, f"{phase} does not come\n{output(workdir)}"
        time.sleep(0 if phase == "committing" else 0.001)
    time.sleep(chance.uniform(0, longest))
    return all(life.poll() is None for life in lives)


def parts(checkpoints: Path) -> set[tuple[str, int]]:
    """Checkpoints that are being written, or were when a life ended."""
    found = set()
    for path in checkpoints.glob(".*.part"):
        with contextlib.suppress(FileNotFoundError):  # committed meanwhile
            found.add((path.name, path.stat().st_ctime_ns))
    return found


def disturbed_run(lab: Lab, workdir: Path, phases: list[str], chance: random.Random) -> tuple[list[Kill], str | None]:
    """A run killed once in each of the phases, then left to end: the kills that hit, and why it did not end well."""
    lab.fresh(workdir)
    kills: list[Kill] = []
    try:
        for phase in phases:
            if (kill := kill_once(lab, workdir, phase, chance)) is not None:
                kills.append(kill)
        codes = [life.wait(timeout=300) for life in lab.start(workdir)]
        assert codes == [0] * lab.processes, output(workdir)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        return kills, str(error)
    return kills, None


def differences(lab: Lab, workdir: Path) -> int:
    """How many bytes of the final state, and how many logged losses, differ from the undisturbed run."""
    count = 0
    for ours, theirs in zip(final_arrays(workdir, lab.steps), final_arrays(lab.reference, lab.steps)):
        count += int((ours != theirs).sum())
    ours, theirs = ({row["step"]: row["loss"] for row in rows_of(run)} for run in (workdir, lab.reference))
    assert len(ours) == lab.steps
    return count + sum(ours[step] != theirs[step] for step in theirs)


def rows_of(workdir: Path) -> list[dict]:
    """The logged steps."""
    return [row for row in read_metrics(workdir / "train" / "metrics.jsonl") if "loss" in row]


def final_arrays(workdir: Path, steps: int) -> list[np.ndarray]:
    """Every array of the last checkpoint as raw bits, read without the code under test."""
    import jax
    import orbax.checkpoint as ocp

    path = (workdir / "train" / "checkpoints" / str(steps) / "state").absolute()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(path).item_metadata.tree
        wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = reader.restore(path, ocp.args.PyTreeRestore(restore_args=wanted))
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    assert len(leaves) > 10
    return [np.frombuffer(leaf.tobytes(), np.uint8) for leaf in leaves]


def output(workdir: Path) -> str:
    """What all processes of a run wrote."""
    return "\n".join(path.read_text(errors="replace") for path in sorted(workdir.glob("*.log")))[-4000:]


def free_port() -> int:
    """A port that is free with the one after it, which the processes of a run use too."""
    while True:
        with socket.socket() as first, socket.socket() as second, contextlib.suppress(OSError, OverflowError):
            first.bind(("127.0.0.1", 0))
            second.bind(("127.0.0.1", first.getsockname()[1] + 1))
            return first.getsockname()[1]


def environment(cache: Path) -> None:
    """Compiled programs are kept between lives, as users may ask of JAX: most of a life is then not compiling."""
    os.environ.update({"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)})
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
