"""Processes that take turns, and what they measure of themselves. The standard library alone.

A side is a process: what to do on a line in (for those that read batches, a number of seconds), what it measured as
JSON on a line out. Between turns it waits for its standard input.
"""

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path


def cpu_seconds() -> float:
    """Of all threads of this process, and of its workers."""
    total = time.process_time()
    for worker in multiprocessing.active_children():
        with contextlib.suppress(OSError):  # gone meanwhile
            fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def machine_seconds() -> float:
    """CPU time that all cores have spent on anything, since the machine started."""
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def wait_until_quiet(patience: float, share: float = 0.1) -> None:
    """Returns after a second in which less than `share` of the cores was in use, or after `patience` seconds."""
    began = time.monotonic()
    while time.monotonic() - began < patience:
        before = machine_seconds()
        time.sleep(1)
        if machine_seconds() - before < share * os.cpu_count():
            return


def resident_mb() -> float:
    """Memory of this process, pages of libraries included and workers not."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def say(**values: object) -> None:
    print(json.dumps(values), flush=True)


def serve(batches: Iterator[object], padding: Callable[[object], float], **about: object) -> None:
    """Reads batches for as long as each line says.

    CPU time is counted from the end of one turn to the end of the next, since readers go on ahead between them.
    """
    say(padding=sum(padding(next(batches)) for _ in range(20)) / 20, **about)
    before = cpu_seconds()
    for line in sys.stdin:
        began, count = time.perf_counter(), 0
        while (wall := time.perf_counter() - began) < float(line):
            next(batches)
            count += 1
        after = cpu_seconds()
        say(batches=count, wall=wall, cpu=after - before, resident_mb=resident_mb())
        before = after


class Side:
    """A process that answers line by line, as `serve` does."""

    def __init__(self, *command: str, threads: int = 1, **environment: str):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(threads), **environment}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.about = self._read()
        self.turns: list[dict] = []

    def turn(self, what: object) -> dict:
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        self.turns.append(self._read())
        return self.turns[-1]

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{' '.join(self.process.args)} ended early")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
