"""What a step of curation is: a frozen dataclass whose fields are its settings, called with a batch of documents.

`version` goes up when its decisions change, so that a corpus made by the older code is not taken for a new one. Most
steps look at one text at a time and are a `TextRule`; a step that changes texts or adds columns is called with the
Arrow batch itself.
"""

from typing import ClassVar, NamedTuple, Protocol

import pyarrow as pa


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


class TextRule:
    """A step that looks at each text alone: a subclass has `reason`."""

    def reason(self, text: str) -> str | None:
        """Why the text is dropped, or None."""
        raise NotImplementedError

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        """All texts, one by one."""
        return Outcome(batch, [self.reason(text) for text in texts(batch)])


def texts(batch: pa.RecordBatch) -> list[str]:
    """Of all documents."""
    return batch.column("text").to_pylist()


def replace(batch: pa.RecordBatch, name: str, values: list) -> pa.RecordBatch:
    """The batch with another column of this name, or one more."""
    column = pa.array(values, batch.schema.field(name).type if name in batch.schema.names else None)
    if name in batch.schema.names:
        return batch.set_column(batch.schema.names.index(name), name, column)
    return batch.append_column(name, column)
