"""Parquet files with a column `text` or `messages`, as Hugging Face publishes them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import UserError
from data.conversations import VARIABLES, from_record
from data.document import Document, Dropped

FIELDS = ("id", "url", "language", "license")
ROWS = 64  # in memory at a time; a row may be a book
READ_BYTES = 1 << 20


def read(path: Path, name: str) -> Iterator[Document | Dropped]:
    """A document a row. `id`, `url`, `language` and `license` are taken where they are columns of strings."""
    with path.open("rb") as raw:  # Arrow itself opens no path that is not UTF-8
        try:
            # Buffered: a page at a time is in memory rather than a row group. Workers are processes: no threads.
            file = pq.ParquetFile(raw, pre_buffer=False, buffer_size=READ_BYTES)
            names = file.schema_arrow.names
            talk = "messages" in names and "text" not in names
            for number, row in enumerate(_records(file) if talk else _rows(file, path)):
                yield (_conversation if talk else _document)(row, f"{name}:{number + 1}")
        except pa.ArrowException as error:
            raise UserError(f"{path} is damaged ({str(error).splitlines()[0]}); mend or remove it") from error


def _records(file: pq.ParquetFile) -> Iterator[dict[str, Any] | None]:
    """Rows with `messages` and what else a conversation has; None for a row whose strings are not UTF-8."""
    known = (*FIELDS, "messages", "chat_template_kwargs", *VARIABLES)
    columns = [name for name in file.schema_arrow.names if name in known]
    for batch in file.iter_batches(batch_size=ROWS, columns=columns, use_threads=False):
        for row in range(len(batch)):
            try:
                yield batch.slice(row, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield None


def _conversation(row: dict[str, Any] | None, place: str) -> Document | Dropped:
    found = "undecodable" if row is None else from_record(row)
    if isinstance(found, str):
        return Dropped(place, "parquet", found, 0)
    given = {key: row[key] for key in FIELDS if isinstance(row.get(key), str) and row[key]}
    return Document(**{"id": place, "url": place, "text": found[0], "source": "parquet", "meta": found[1], **given})


def _rows(file: pq.ParquetFile, path: Path) -> Iterator[dict[str, bytes | None]]:
    """Rows with their strings as bytes: a file may hold any bytes as strings, and one bad row is not the file."""
    schema = file.schema_arrow
    strings = [field.name for field in schema if _is_string(field.type)]
    if "text" not in strings:
        raise UserError(f"{path} has no column `text` of strings, nor `messages`; it has {', '.join(schema.names)}")
    columns = ["text", *(key for key in FIELDS if key in strings)]
    for batch in file.iter_batches(batch_size=ROWS, columns=columns, use_threads=False):
        values = (column.cast(pa.large_binary()).to_pylist() for column in batch.columns)
        yield from (dict(zip(batch.schema.names, row)) for row in zip(*values))


def _document(row: dict[str, bytes | None], place: str) -> Document | Dropped:
    """One row's text, with those of its other fields that can be used."""
    payload = row.pop("text")
    if payload is None:
        return Dropped(place, "parquet", "no_text", 0)
    text = _decode(payload)
    if text is None:
        return Dropped(place, "parquet", "undecodable", len(payload))
    given = {key: value for key, payload in row.items() if payload and (value := _decode(payload))}
    return Document(**{"id": place, "url": place, "text": text, "source": "parquet", **given})


def _decode(payload: bytes) -> str | None:
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
