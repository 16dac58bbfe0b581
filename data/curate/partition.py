"""One partition of the input: its documents through the steps, in batches, into sorted runs of bounded memory."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from core.errors import UserError
from core.files import write_json
from data.curate.extract import Extract
from data.curate.plain import ExactDuplicates
from data.curate.recipe import build_recipe
from data.curate.step import Outcome
from data.document import SCHEMA, Document, DocumentWriter, Dropped, id_hash

BATCH_ROWS, BATCH_CHARS = 256, 8 << 20  # a batch ends at the first of both
RUN_CHARS = 64 << 20  # of documents that a worker holds before it writes a sorted run


def curate_partition(items: Iterable[Document | Dropped], recipe: tuple[dict[str, Any], ...], mark: Path) -> None:
    """Writes the documents that stay as runs sorted by hash of id, and what was dropped.

    The .json is written last: it is the mark of done.
    """
    steps = {name: step for name, step in build_recipe(recipe).items() if not isinstance(step, ExactDuplicates)}
    if not any(isinstance(step, Extract) for step in steps.values()):
        steps = {"extract": Extract(method="visible"), **steps}  # the other steps are for texts, not for pages
    dropped: list[dict[str, Any]] = []
    runs: dict[str, int] = {}
    kept: list[Document] = []
    room = RUN_CHARS

    def write_run() -> None:
        path = mark.with_name(f"{mark.stem}-{len(runs):03d}.parquet")
        with DocumentWriter(path) as writer:
            for document in sorted(kept, key=order):
                writer.add(document)
        runs[path.name] = path.stat().st_size
        kept.clear()

    for documents in _batches(items, dropped):
        batch, lost = through(steps, to_batch(documents))
        dropped += map(vars, lost)
        for document in from_batch(batch):
            kept.append(document)
            room -= len(document.text)
        if room < 0:
            write_run()
            room = RUN_CHARS
    if kept:
        write_run()
    write_json(mark, {"dropped": dropped, "runs": runs})


def through(steps: dict[str, Any], batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[Dropped]]:
    """A batch through the steps: what stays, and what was dropped by which."""
    dropped = []
    for name, step in steps.items():
        if not batch.num_rows:
            break
        changed, reasons, details = Outcome(*step(batch))
        if not changed.num_rows == len(reasons) == batch.num_rows:
            raise UserError(
                f"step {name} gave {changed.num_rows} documents and {len(reasons)} reasons of {batch.num_rows}"
            )
        if not changed.column("text").equals(batch.column("text")):
            _require_no_conversation(name, batch, changed, reasons)
        if any(reasons):
            columns = (batch.column(column).to_pylist() for column in ("id", "source", "text"))
            rows = zip(reasons, details or [None] * len(reasons), *columns)
            dropped += [
                Dropped(identifier, source, reason, len(text.encode()), name, detail or "")
                for reason, detail, identifier, source, text in rows
                if reason
            ]
            changed = changed.filter(pa.array([not reason for reason in reasons]))
        batch = changed
    return batch, dropped


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
    """The documents; what steps added beyond their columns goes into `meta`."""
    added = [name for name in batch.schema.names if name not in SCHEMA.names]
    for row in batch.to_pylist():
        meta = json.loads(row.pop("meta")) | {name: row.pop(name) for name in added}
        yield Document(**row, meta=meta)


def order(document: Document) -> tuple[int, str]:
    """The order of all documents: by a hash of the id."""
    return id_hash(document.id, "order"), document.id


def _batches(items: Iterable[Document | Dropped], dropped: list[dict[str, Any]]) -> Iterator[list[Document]]:
    """Documents in batches of bounded size; what the source could not read goes to `dropped`."""
    documents: list[Document] = []
    room = BATCH_CHARS
    for item in items:
        if isinstance(item, Dropped):
            dropped.append(vars(item))
            continue
        documents.append(item)
        room -= len(item.text)
        if len(documents) == BATCH_ROWS or room < 0:
            yield documents
            documents, room = [], BATCH_CHARS
    if documents:
        yield documents
