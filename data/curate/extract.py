"""The main text of HTML pages: trafilatura as FineWeb has it, resiliparse where speed counts, or all visible text."""

import dataclasses
import functools
import json
import signal
from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa

from core.config import require
from core.errors import UserError
from data.child import Child, ChildDied
from data.curate.step import Outcome, replace, texts
from data.packages import package
from data.sources.html import visible_text
from data.sources.page import HTML

EXTRACTOR = Path(__file__).with_name("extractor.py")
START_SECONDS = 120.0  # of a child: its imports take one, on a busy machine many
BLAMED = ("extract_memory", "extract_crash")  # on the pages before, too


@dataclasses.dataclass(frozen=True)
class Extract:
    """Documents whose `meta` says that they are HTML become their main text; all others are as they were.

    Each worker has a child that parses, so that a page which hangs or crashes a parser costs that page only. What the
    child did not survive is given to a fresh one, so that no page's fate depends on those before it.
    """

    version: ClassVar[int] = 1
    method: Literal["trafilatura", "resiliparse", "visible"] = "trafilatura"
    seconds: float = 10.0  # of the processor, a page; the median page takes trafilatura 0.015
    memory_mb: int = 2048  # of address space of the child, which takes 400 itself

    def __post_init__(self):
        require(self.seconds > 0, f"seconds={self.seconds} must be positive")
        require(self.memory_mb >= 1024, f"memory_mb={self.memory_mb} must be at least 1024")

    @property
    def packages(self) -> tuple[str, ...]:
        """Those whose versions decide."""
        return () if self.method == "visible" else (self.method,)

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        """The batch with texts in the place of pages."""
        found, metas, reasons = [], [], []
        for page, meta in zip(texts(batch), batch.column("meta").to_pylist()):
            text, reason = page, None
            if '"media_type"' in meta and (parsed := json.loads(meta)).get("media_type") == HTML:
                del parsed["media_type"]
                text, reason = self.text(page)
                meta = json.dumps(parsed)
            found.append(page if reason else text)
            metas.append(meta)
            reasons.append(reason)
        return Outcome(replace(replace(batch, "text", found), "meta", metas), reasons)

    def text(self, page: str) -> tuple[str, str | None]:
        """A page's text, or why it has none."""
        if self.method == "visible":
            return visible_text(page), None
        text, reason = _child(self).text(page.encode("utf-8", "replace"))
        return text, reason or (None if text.strip() else "extract_empty")


class _Extractor:
    """The child of this process, a new one wherever the last has ended."""

    def __init__(self, step: Extract):
        self.step = step
        self.child: Child | None = None

    def text(self, page: bytes) -> tuple[str, str | None]:
        """The text of a page, or a reason."""
        fresh = self.child is None
        text, reason = self._ask(page)
        if reason in BLAMED:
            self._end()
            if not fresh:
                text, reason = self._ask(page)
                if reason in BLAMED:
                    self._end()
        return text, reason

    def _ask(self, page: bytes) -> tuple[str, str | None]:
        self.child = self.child or self._begin()
        try:
            # The child keeps to its time by itself; after this long it waits for something without working.
            reply = self.child.ask(page, 60 + 20 * self.step.seconds)
        except TimeoutError:
            self.child = None
            return "", "extract_timeout"
        except ChildDied as died:
            self.child = None
            return "", "extract_timeout" if died.code == -signal.SIGPROF else "extract_crash"
        return ("", reply[1:].decode()) if reply[:1] == b"-" else (reply[1:].decode(), None)

    def _begin(self) -> Child:
        for name in self.step.packages:
            package(name)
        child = Child(EXTRACTOR)
        try:
            child.ask(json.dumps(dataclasses.asdict(self.step)).encode(), START_SECONDS)
        except (TimeoutError, ChildDied) as error:
            why = str(error) or f"it took more than {START_SECONDS:.0f} s"
            raise UserError(f"step extract: the process for {self.step.method} does not start ({why})") from None
        return child

    def _end(self) -> None:
        if self.child is not None:
            self.child.close()
            self.child = None


@functools.cache
def _child(step: Extract) -> _Extractor:
    return _Extractor(step)
