"""A step for the documents of one language alone: rules, thresholds and stop words differ by language."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.curate.step import Outcome, call, replace


@dataclasses.dataclass(frozen=True)
class Only:
    """The step sees the documents whose column `language` says so; the others pass as they are."""

    step: Any
    language: str

    @property
    def version(self) -> int:
        """Of the step."""
        return self.step.version

    @property
    def packages(self) -> tuple[str, ...]:
        """Of the step."""
        return getattr(self.step, "packages", ())

    def prepare(self) -> None:
        """Of the step."""
        if hasattr(self.step, "prepare"):
            self.step.prepare()

    def files(self) -> list[Path]:
        """Of the step."""
        return self.step.files() if hasattr(self.step, "files") else []

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        """The batch with what the step made of its own documents."""
        rows = np.flatnonzero([one == self.language for one in batch.column("language").to_pylist()])
        own = batch.take(pa.array(rows))
        if not own.num_rows:
            return Outcome(batch, [None] * batch.num_rows)
        changed, reasons, details = call(self.step, own)
        for name in changed.schema.names:
            new = name not in own.schema.names
            if new or not changed.column(name).equals(own.column(name)):
                before = [None] * batch.num_rows if new else batch.column(name).to_pylist()
                batch = replace(batch, name, list(_put(before, rows, changed.column(name).to_pylist())))
        none = [None] * batch.num_rows
        return Outcome(batch, list(_put(none, rows, reasons)), details and list(_put(none, rows, details)))


def _put(values: list, rows: np.ndarray, new: list) -> Iterator:
    """The values, but those of `rows` are the new ones."""
    at = dict(zip(rows.tolist(), new))
    return (at.get(place, value) for place, value in enumerate(values))
