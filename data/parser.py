"""Text of pages and markup by parsers that hang, crash or take all memory on some: they work in a child.

The child, `data/parser_child.py`, keeps to its limits by itself. What it did not survive is given to a fresh one, so
that no page's fate depends on those before it.
"""

import functools
import json
import signal
from pathlib import Path

from core.errors import UserError
from data.child import Child, ChildDied
from data.packages import package

SCRIPT = Path(__file__).with_name("parser_child.py")
START_SECONDS = 120.0  # of a child: its imports take one, on a busy machine many
SECONDS, MEMORY_MB = 10.0, 2048  # of the processor, a page, and of address space, of which 400 are the child's own
BLAMED = ("extract_memory", "extract_crash")  # on the pages before, too


class Parser:
    """The child of this process with one method, a new one wherever the last has ended."""

    def __init__(self, method: str, seconds: float = SECONDS, memory_mb: int = MEMORY_MB):
        self.method, self.seconds, self.memory_mb = method, seconds, memory_mb
        self.child: Child | None = None

    def text(self, page: str | memoryview) -> tuple[str, str | None]:
        """The text of a page, which may be in UTF-8 already, or the reason that there is none."""
        payload = page.encode("utf-8", "replace") if isinstance(page, str) else page
        fresh = self.child is None
        text, reason = self._ask(payload)
        if reason in BLAMED:
            self.close()
            if not fresh:
                text, reason = self._ask(payload)
                if reason in BLAMED:
                    self.close()
        return text, reason or (None if text.strip() else "extract_empty")

    def close(self) -> None:
        """Ends the child; the next page gets another."""
        if self.child is not None:
            self.child.close()
            self.child = None

    def _ask(self, page: bytes | memoryview) -> tuple[str, str | None]:
        self.child = self.child or self._begin()
        try:
            # The child keeps to its time by itself; after this long it waits for something without working.
            reply = self.child.ask(page, 60 + 20 * self.seconds)
        except TimeoutError:
            self.child = None
            return "", "extract_timeout"
        except ChildDied as died:
            self.child = None
            return "", "extract_timeout" if died.code == -signal.SIGPROF else "extract_crash"
        return ("", reply[1:].decode()) if reply[:1] == b"-" else (reply[1:].decode(), None)

    def _begin(self) -> Child:
        package(self.method)  # each has the name of its package
        child = Child(SCRIPT)
        settings = {"method": self.method, "seconds": self.seconds, "memory_mb": self.memory_mb}
        try:
            child.ask(json.dumps(settings).encode(), START_SECONDS)
        except (TimeoutError, ChildDied) as error:
            why = str(error) or f"it took more than {START_SECONDS:.0f} s"
            raise UserError(f"the process that runs {self.method} on pages does not start ({why})") from None
        return child


parser = functools.cache(Parser)  # one of each in a process
