"""launch.py without the 4 s that importing JAX takes: a server imports once and forks for each command.

No backend is up before the fork, and the command has output of its own.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([
    "launch", "jax", "matplotlib.pyplot", "train.loop", "train.start", "train.teach", "train.export",
    "evals.evaluate", "evals.report", "evals.terminal", "data.curate.engine", "data.tokenize",
])  # fmt: skip


def _read_by_imports() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(("JAX_", "XLA_", "GLIBC_"))}


STARTED_WITH = _read_by_imports()


def quick_launch(arguments: list[str], timeout: int) -> subprocess.CompletedProcess:
    """As `subprocess.run` of launch.py with captured text; what imports read must not have changed."""
    assert _read_by_imports() == STARTED_WITH
    with tempfile.TemporaryDirectory() as folder:
        process = SERVER.Process(target=_run, args=(arguments, folder, os.getcwd(), dict(os.environ)))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(arguments, timeout)
        said = [(Path(folder) / name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(arguments, process.exitcode, *said)


def _run(arguments: list[str], folder: str, directory: str, environment: dict[str, str]) -> None:
    """In the process of its own."""
    import launch

    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    sys.exit(launch.main(arguments))
