"""One partition of the input: its documents through the steps, in batches, into sorted runs of bounded memory."""

import contextlib
import datetime
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from core.errors import UserError
from core.files import atomic_write, write_json
from data.curate.extract import Extract
from data.curate.minhash import COLUMN, MinHash
from data.curate.plain import ExactDuplicates
from data.curate.recipe import build_recipe, find
from data.curate.signatures import SignatureWriter
from data.curate.step import StepFailed, call, replace
from data.curate.tally import PartTally, line_of
from data.document import SCHEMA, Document, DocumentWriter, Dropped, id_hash
from data.workers import advance

BATCH_ROWS, BATCH_CHARS = 256, 8 << 20  # a batch ends at the first of both
SIGNATURES = "signatures"
RUN_CHARS = 64 << 20  # of documents that a worker holds before it writes a sorted run


def curate_partition(items: Iterable[Document | Dropped], recipe: tuple[dict[str, Any], ...], mark: Path) -> int:
    """Writes the documents that stay as runs sorted by hash of id, what was dropped, and counts for the report.

    Where the recipe looks for near-duplicates, signatures of what stays too. The .json is written last: it is the
    mark of done. Returns how many documents were read.
    """
    steps = {name: step for name, step in build_recipe(recipe).items() if not isinstance(step, ExactDuplicates)}
    pages = None if find(steps, Extract) else Extract(method="visible")  # the other steps are for texts
    tally = PartTally(steps)
    runs, read = _Runs(mark), 0
    with contextlib.ExitStack() as stack:
        dropped = stack.enter_context(atomic_write(drops_of(mark), "w"))
        signatures = None
        if near := find(steps, MinHash):
            signatures = stack.enter_context(SignatureWriter(signatures_of(mark), near))
        for documents in _batches(items, dropped):
            batch = to_batch(documents)
            batch, lost = through(steps, pages(batch).batch if pages else batch, tally)
            dropped.writelines(map(line_of, lost))
            read += len(documents)
            advance(len(documents))
            if signatures and batch.num_rows:
                batch = signatures.take(batch)
            runs.add(from_batch(batch))
        runs.write()
    size = drops_of(mark).stat().st_size
    write_json(mark, {"dropped": size, "runs": runs.sizes, "tally": tally.plain()})
    return read


class _Runs:
    """Sorted runs of documents, each of bounded size."""

    def __init__(self, mark: Path):
        self.mark, self.kept, self.room = mark, [], RUN_CHARS
        self.sizes: dict[str, int] = {}  # of the files, by name

    def add(self, documents: Iterable[Document]) -> None:
        """Holds the documents, and writes a run when there are enough."""
        for document in documents:
            self.kept.append(document)
            self.room -= len(document.text)
        if self.room < 0:
            self.write()

    def write(self) -> None:
        """A run of what is held, if there is something."""
        if not self.kept:
            return
        path = self.mark.with_name(f"{self.mark.stem}-{len(self.sizes):03d}.parquet")
        with DocumentWriter(path) as writer:
            for document in sorted(self.kept, key=order):
                writer.add(document)
        self.sizes[path.name] = path.stat().st_size
        self.kept.clear()
        self.room = RUN_CHARS


def signatures_of(mark: Path) -> Path:
    """Where the signatures of a partition lie. They stay when parts go: later generations are compared with them."""
    return mark.parent.parent / SIGNATURES / f"{mark.stem}.minhash"


def drops_of(mark: Path) -> Path:
    """Where what a partition dropped lies, in the order in which it was, a line each."""
    return mark.with_name(f"{mark.stem}.dropped.jsonl")


def read_drops(path: Path) -> Iterator[Dropped]:
    """What `drops_of` has, an entry at a time."""
    with path.open("rb") as file:  # as text, a lone carriage return would end a line
        for line in file:
            yield Dropped(**json.loads(line))


def through(
    steps: dict[str, Any], batch: pa.RecordBatch, tally: PartTally | None = None
) -> tuple[pa.RecordBatch, list[Dropped]]:
    """A batch through the steps: what stays, and what was dropped by which; `tally` is shown every step.

    What steps added beyond the columns of a document is then in its `meta`.
    """
    dropped = []
    added: dict[str, str] = {}  # columns, by the step that did
    if tally is not None:
        tally.read(batch)
    for name, step in steps.items():
        if not batch.num_rows:
            break
        try:
            changed, reasons, details = call(step, batch)
        except StepFailed as error:
            raise UserError(f"step {name} {error}") from error
        if not changed.column("text").equals(batch.column("text")):
            _require_no_conversation(name, batch, changed, reasons)
        if tally is not None:
            tally.step(name, batch, changed, reasons)
        if any(reasons):
            columns = (batch.column(column).to_pylist() for column in ("id", "source", "text"))
            rows = zip(reasons, details or [None] * len(reasons), *columns)
            dropped += [
                Dropped(identifier, source, reason, len(text.encode()), name, detail or "")
                for reason, detail, identifier, source, text in rows
                if reason
            ]
            changed = changed.filter(pa.array([not reason for reason in reasons]))
        added |= {field.name: name for field in changed.schema if field not in batch.schema}
        batch = changed
    return _into_meta(batch, added), dropped


def _into_meta(batch: pa.RecordBatch, added: Mapping[str, str]) -> pa.RecordBatch:
    """Moves columns to `meta`, but for signatures, which are on their way to files of their own."""
    names = [name for name in batch.schema.names if name not in (*SCHEMA.names, COLUMN)]
    if not names:
        return batch
    columns = [_as_json(batch.column(name), f"step {added[name]}: its column {name}") for name in names]
    metas = [
        json.dumps(json.loads(meta) | dict(zip(names, values)))
        for meta, *values in zip(batch.column("meta").to_pylist(), *columns)
    ]
    return replace(batch.drop_columns(names), "meta", metas)


def _as_json(column: pa.Array, called: str) -> list[Any]:
    """Values as JSON says them; what it cannot say is refused."""
    if pa.types.is_timestamp(column.type):  # Python's have no nanoseconds
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    try:
        return list(map(_plain, column.to_pylist()))
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{called} of {column.type} does not fit into JSON ({error}); give text, numbers, dates or lists of them"
        ) from error


def _plain(value: Any) -> Any:
    """Dates and times in ISO 8601; null for NaN and infinity, which JSON does not have."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return list(map(_plain, value))
    if isinstance(value, dict):
        return {key: _plain(own) for key, own in value.items()}
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"{str(value)[:40]!r} is a {type(value).__name__}")


def _require_no_conversation(name: str, before: pa.RecordBatch, after: pa.RecordBatch, reasons: list) -> None:
    """What is trained on of a conversation are its messages in `meta`; a step that changes its text misses them."""
    columns = (before.column("text"), after.column("text"), before.column("id"), before.column("meta"))
    for old, new, identifier, meta, reason in zip(*(column.to_pylist() for column in columns), reasons):
        if new != old and reason is None and "messages" in json.loads(meta):
            raise UserError(
                f"step {name} changes the text of {identifier}, which is a conversation, and would not reach its "
                "messages; curate conversations without it"
            )


def to_batch(documents: list[Document]) -> pa.RecordBatch:
    """Documents as Arrow, their `meta` as JSON."""
    rows = [{**vars(document), "meta": json.dumps(document.meta)} for document in documents]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def from_batch(batch: pa.RecordBatch) -> Iterator[Document]:
    """The documents of a batch with their columns and no more."""
    for row in batch.to_pylist():
        yield Document(**{**row, "meta": json.loads(row["meta"])})


def order(document: Document) -> tuple[int, str]:
    """The order of all documents: by a hash of the id."""
    return id_hash(document.id, "order"), document.id


def _batches(items: Iterable[Document | Dropped], dropped: IO[str]) -> Iterator[list[Document]]:
    """Documents in batches of bounded size; what the source could not read is written to `dropped`."""
    documents: list[Document] = []
    room = BATCH_CHARS
    for item in items:
        if isinstance(item, Dropped):
            dropped.write(line_of(item))
            continue
        documents.append(item)
        room -= len(item.text)
        if len(documents) == BATCH_ROWS or room < 0:
            yield documents
            documents, room = [], BATCH_CHARS
    if documents:
        yield documents
