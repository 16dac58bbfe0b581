"""What a step of curation is: a frozen dataclass whose fields are its settings, called with a batch of documents.

`version` goes up when its decisions change, so that a corpus made by the older code is not taken for a new one. Most
steps look at one text at a time and are a `TextRule`; a step that changes texts or adds columns is called with the
Arrow batch itself.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple, Protocol

import pyarrow as pa

from core.errors import explain
from data.document import SCHEMA


class Outcome(NamedTuple):
    """What became of a batch: `None` keeps a document, a reason drops it."""

    batch: pa.RecordBatch  # as many rows; columns beyond those of a document end up in its `meta`
    reasons: list[str | None]
    details: list[str | None] | None = None  # of the reasons; written for each document, not counted


class Step(Protocol):
    """A pure function of a batch with the columns of `data.document.SCHEMA` and what earlier steps added.

    A step may also have `prepare()`, called once before workers start; and what decides beside its settings:
    `files()`, and `packages`, names whose versions count.
    """

    version: ClassVar[int]

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        """The batch as it goes on, and what of it is dropped."""


class StepFailed(Exception):
    """What a step did that is its author's to mend, as it goes on after the step's name."""


class TextRule:
    """A step that looks at each text alone: a subclass has `reason`."""

    def reason(self, text: str) -> str | None:
        """Why the text is dropped, or None."""
        raise NotImplementedError

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        """All texts, one by one."""
        ids, reasons = batch.column("id").to_pylist(), []
        with _telling(lambda: f"document {ids[len(reasons)]}"):
            for text in texts(batch):
                reasons.append(self.reason(text))
        return Outcome(batch, reasons)


def call(step: Step, batch: pa.RecordBatch) -> Outcome:
    """What the step gives for a batch. Raises `StepFailed` where the step does, or gives something else."""
    with _telling(lambda: f"the batch that begins with document {batch.column('id')[0].as_py()}"):
        found = step(batch)
    if not isinstance(found, Outcome):
        raise StepFailed(f"gave a {type(found).__name__} instead of an Outcome")
    for name, kind in (("batch", pa.RecordBatch), ("reasons", list), ("details", list | None)):
        if not isinstance(getattr(found, name), kind):
            raise StepFailed(f"gave an Outcome whose `{name}` is a {type(getattr(found, name)).__name__}")
    _require_whole(found, batch)
    return found


def _require_whole(found: Outcome, batch: pa.RecordBatch) -> None:
    """Refuses what is not an answer for each document of the batch."""
    changed, reasons, details = found
    if not changed.num_rows == len(reasons) == batch.num_rows:
        raise StepFailed(f"gave {changed.num_rows} documents and {len(reasons)} reasons of {batch.num_rows}")
    if details is not None and len(details) != len(reasons):
        raise StepFailed(f"gave {len(details)} details of {len(reasons)} reasons")
    for field in SCHEMA:
        at = changed.schema.get_field_index(field.name)
        if at < 0 or changed.schema.field(at).type != field.type or changed.column(at).null_count:
            raise StepFailed(f"gave a batch without a {field.type} {field.name} of every document")
    for what, values in (("reason", reasons), ("detail", details or ())):
        for row, value in enumerate(values):
            if not isinstance(value, str | None):
                of = f"of document {batch.column('id')[row].as_py()}"
                raise StepFailed(f"gave {_short(value)} as the {what} {of}, which is neither text nor None")


@contextlib.contextmanager
def _telling(where: Callable[[], str]) -> Iterator[None]:
    """Makes `StepFailed` of an exception, but for one that can be told to the user as it is."""
    try:
        yield
    except Exception as error:
        if isinstance(error, StepFailed) or explain(error) is not None:
            raise
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise StepFailed(f"failed on {where()} ({said}); --debug shows where in the code") from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def texts(batch: pa.RecordBatch) -> list[str]:
    """Of all documents."""
    return batch.column("text").to_pylist()


def replace(batch: pa.RecordBatch, name: str, values: list) -> pa.RecordBatch:
    """The batch with another column of this name, or one more."""
    column = pa.array(values, batch.schema.field(name).type if name in batch.schema.names else None)
    if name in batch.schema.names:
        return batch.set_column(batch.schema.names.index(name), name, column)
    return batch.append_column(name, column)
