"""Files that steps make once from lists and items, for all processes and runs of a machine: `~/.cache/quintet`."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from core.progress import say


def made_once(names: list[str], make: Callable[[list[Path]], None], what: str) -> list[Path]:
    """The files of these names, which `make` writes where one is missing; their names say what they are made from.

    Whoever else asks meanwhile waits and finds them. A worker on another machine makes them there. `what` is said.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quintet"
    paths = [folder / name for name in names]
    if not _are_there(paths):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f".{names[0]}.lock").open("a") as lock:  # it stays: others may wait for this very file
            fcntl.lockf(lock, fcntl.LOCK_EX)
            if not _are_there(paths):
                say(f"curate: {what} are hashed into {folder}, once")
                make(paths)
    return paths


def _are_there(paths: list[Path]) -> bool:
    return all(path.exists() for path in paths)
