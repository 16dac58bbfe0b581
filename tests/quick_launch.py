"""launch.py without the 4 s that importing JAX takes: a server imports once and forks for each command.

Not as in a process of its own: all have one PYTHONHASHSEED, and end without the interpreter's shutdown. The run that
tests share (`finished`) is made by a real one.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

MODULES = (
    "launch", "jax", "matplotlib.pyplot", "train.loop", "train.start", "train.teach", "train.export",
    "evals.evaluate", "evals.report", "evals.terminal", "data.curate.engine", "data.tokenize",
)  # fmt: skip
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(list(MODULES))


def _read_by_imports() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(("JAX_", "XLA_", "GLIBC_"))}


STARTED_WITH = _read_by_imports()


def can_launch_quickly() -> bool:
    """What imports read of the environment has not changed."""
    return _read_by_imports() == STARTED_WITH


def quick_launch(arguments: list[str], timeout: int) -> subprocess.CompletedProcess:
    """As `subprocess.run` of launch.py with captured text."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("stdout", "stderr")]
        for path in outputs:
            path.touch()
        process = SERVER.Process(target=_run, args=(arguments, outputs, os.getcwd(), dict(os.environ)))
        process.start()
        try:
            process.join(timeout)
        finally:
            late = process.is_alive()
            process.kill()
            process.join()
            said = [path.read_text() for path in outputs]
        if late:
            raise subprocess.TimeoutExpired(arguments, timeout, *said)
        return subprocess.CompletedProcess(arguments, process.exitcode, *said)


def _run(arguments: list[str], outputs: list[Path], directory: str, environment: dict[str, str]) -> None:
    """In the process of its own."""
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    missing = [name for name in MODULES if name not in sys.modules]
    assert not missing, f"the server could not import {missing}"
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    import launch

    sys.argv = [launch.__file__, *arguments]
    sys.orig_argv = [sys.executable, *sys.argv]
    sys.exit(launch.main(arguments))
