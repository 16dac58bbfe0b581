"""A script in a process of its own that answers requests over a pipe: for what strangers wrote and may not end well.

The script gets the number of its end of the pipe as its first argument and is never imported by this program. What it
may take of memory and of the processor it limits itself, before it reads what it is asked.
"""

import contextlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import weakref
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

from core.page import printable

MAX_REPLY = 1 << 30
# For glibc, so that what is freed stays with the process: a page of 170 KB took 0.65 ms on its way through buffers
# made anew (on a virtual machine, where the first touch of memory is slow), and takes 0.1.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": 32 << 20, "MALLOC_TRIM_THRESHOLD_": 128 << 20, "MALLOC_TOP_PAD_": 16 << 20}


class ChildDied(Exception):
    """What a child said last, and how it ended: an exit code, or a signal as a negative number."""

    def __init__(self, said: str, code: int):
        super().__init__(printable(said)[:200] or str(code))
        self.said, self.code = said, code


class Child:
    """The process, until it is asked too much."""

    def __init__(self, script: Path):
        self.connection, theirs = multiprocessing.Pipe()
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the child); a pipe that fills would block
        # -P: or the modules of the script's folder would stand before the standard library's, `tokenize` among them.
        command = [sys.executable, "-P", str(script), str(theirs.fileno())]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": self.stderr}
        # The order of sets, which libraries go through, is that of every other process.
        environment = {**os.environ, "PYTHONHASHSEED": "0", **{name: str(size) for name, size in KEEP_MEMORY.items()}}
        with theirs:
            # A session of its own, since Ctrl-C is not for it: it ends when the pipe closes, however we do.
            self.process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], start_new_session=True, env=environment, **streams
            )
        self.close = weakref.finalize(self, _close, self.process, self.connection, self.stderr)

    def ask(self, request: bytes | memoryview, seconds: float) -> bytes:
        """The reply. Raises TimeoutError where there is none in time, ChildDied; of both the child has ended."""
        try:
            self.connection.send_bytes(request)
            if not self.connection.poll(seconds):
                self.close()
                raise TimeoutError
            return self.connection.recv_bytes(MAX_REPLY)
        except (BrokenPipeError, ConnectionResetError, EOFError):
            raise self._died() from None

    def _died(self) -> ChildDied:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.stderr.seek(0)
        said = self.stderr.read(1 << 20).decode("utf-8", "replace").strip().splitlines()
        self.close()
        return ChildDied(said[-1] if said else "", self.process.returncode)


def _close(process: subprocess.Popen, connection: Connection, stderr: IO[bytes]) -> None:
    connection.close()
    process.kill()
    process.wait()
    stderr.close()
