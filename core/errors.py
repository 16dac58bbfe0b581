"""Errors a user can cause: one line that names the thing and the remedy, exit code 2."""

import difflib
import errno
import os
import re
import signal
from collections.abc import Iterable
from types import FrameType
from typing import NamedTuple


class UserError(Exception):
    """Something the user can mend. `launch.py` prints it as one line and exits with 2."""


class Stopped(BaseException):
    """A signal ended the run in good order; `launch.py` exits with 128 + its number (143, 130).

    Not an `Exception`, since the handler of SIGTERM raises it anywhere, also inside a library's `except Exception`.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.exit_code = 128 + number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.exit_code - 128).name}; the same command continues"


def suggest(key: str, known: Iterable[str]) -> str:
    """The nearest known name, or all of them, as the end of a message."""
    known = sorted(known)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"


class Explained(NamedTuple):
    """How an error is told."""

    line: str
    exit_code: int


MAX_LINE = 2000  # characters of a message

# What the operating system refuses and the user can mend.
DISK = {
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the system allows",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.ENOTDIR: "a file stands where a folder is expected",
    errno.EEXIST: "a file stands where a folder is expected",
    errno.ENAMETOOLONG: "the name is too long",
}


def explain(error: BaseException) -> Explained | None:
    """One line and an exit code; None for what is not the user's to mend, which keeps its traceback.

    Libraries wrap what the operating system said in errors of their own, so stated causes are searched too.
    """
    if isinstance(error, KeyboardInterrupt):
        return Explained(str(Stopped(signal.SIGINT)), 130)
    if isinstance(error, Stopped):
        return Explained(str(error), error.exit_code)
    cause: BaseException | None = error
    while cause is not None:
        line = str(cause) if isinstance(cause, UserError) else _explain_memory(cause) or _explain_disk(cause)
        if line is not None:
            return Explained(_one_line(line), 2)
        cause = cause.__cause__
    return None


def _one_line(text: str) -> str:
    """Names and values from files of strangers may be long, or move the cursor of a terminal."""
    words = " ".join(text.split())
    if len(words) > MAX_LINE:
        words = f"{words[: MAX_LINE // 2]} ... {words[-MAX_LINE // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


def _explain_memory(error: BaseException) -> str | None:
    """What JAX says when an array or a compiled step does not fit."""
    if not isinstance(error, RuntimeError) or "RESOURCE_EXHAUSTED" not in str(error):
        return None
    asked = re.search(r"[Oo]ut of memory[^\n.]*", str(error))
    said = asked[0] if asked else "it is used up"
    return f"the device has too little memory ({said}); fewer or shorter rows, eval.context or model.remat need less"


def _explain_disk(error: BaseException) -> str | None:
    if isinstance(error, OSError) and error.errno in DISK:
        name = os.fsdecode(error.filename) if error.filename is not None else "the workdir"
        return f"{name}: {DISK[error.errno]}"
    # TensorStore, Arrow and ArrayRecord give the system's words: "[OS error 28: ENOSPC No space left on device]".
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        if os.strerror(number).lower() in str(error).lower():
            path = re.search(r"[\"' ](/[^\"']+)[\"']", str(error))
            return f"{path[1] if path else 'the workdir'}: {DISK[number]}"
    return None


def raise_on_sigterm() -> None:
    """From here on SIGTERM raises `Stopped`, so that open files are closed and temporary ones removed."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(number)

    signal.signal(signal.SIGTERM, stop)
