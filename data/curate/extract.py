"""The main text of HTML pages: trafilatura as FineWeb has it, resiliparse where speed counts, or all visible text."""

import dataclasses
import json
from typing import ClassVar, Literal

import pyarrow as pa

from core.config import require
from data.curate.step import Outcome, replace
from data.parser import MEMORY_MB, SECONDS, parser
from data.sources.html import visible_text
from data.sources.page import HTML


@dataclasses.dataclass(frozen=True)
class Extract:
    """Documents whose `meta` says that they are HTML become their main text; all others are as they were.

    Each worker has a child that parses, so that a page which hangs or crashes a parser costs that page only.
    """

    version: ClassVar[int] = 1
    method: Literal["trafilatura", "resiliparse", "visible"] = "trafilatura"
    seconds: float = SECONDS  # of the processor, a page; the median page takes trafilatura 0.015
    memory_mb: int = MEMORY_MB  # of address space of the child, which takes 400 itself

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
        for page, meta in zip(batch.column("text"), batch.column("meta").to_pylist()):
            text = reason = None
            if '"media_type"' in meta and (parsed := json.loads(meta)).get("media_type") == HTML:
                del parsed["media_type"]
                text, reason = self._main_text(page)
                meta = json.dumps(parsed)
            found.append(page.as_py() if text is None or reason else text)
            metas.append(meta)
            reasons.append(reason)
        return Outcome(replace(replace(batch, "text", found), "meta", metas), reasons)

    def text(self, page: str) -> tuple[str, str | None]:
        """A page's text, or why it has none."""
        if self.method == "visible":
            return visible_text(page), None
        return parser(self.method, self.seconds, self.memory_mb).text(page)

    def _main_text(self, page: pa.StringScalar) -> tuple[str, str | None]:
        """The same of a page in a batch, whose bytes go to the child as they are."""
        if self.method == "visible":
            return self.text(page.as_py())
        return parser(self.method, self.seconds, self.memory_mb).text(memoryview(page.as_buffer()))
