"""Parquet files with a `text` column, as Hugging Face publishes them."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import UserError
from data.document import Document, Dropped

FIELDS = ("id", "url", "language", "license")
ROWS = 64  # in memory at a time; a row may be a book
READ_BYTES = 1 << 20


def read(path: Path, name: str) -> Iterator[Document | Dropped]:
    """A document a row. `id`, `url`, `language` and `license` are taken where they are columns of strings."""
    with path.open("rb") as raw:  # Arrow itself opens no path that is not UTF-8
        try:
            for number, row in enumerate(_rows(raw, path)):
                yield _document(row, f"{name}:{number + 1}")
        except pa.ArrowException as error:
            raise UserError(f"{path} is damaged ({str(error).splitlines()[0]}); mend or remove it") from error


def _rows(raw: IO[bytes], path: Path) -> Iterator[dict[str, bytes | None]]:
    """Rows with their strings as bytes: a file may hold any bytes as strings, and one bad row is not the file."""
    # Buffered, so that a page at a time is in memory rather than a row group. Workers are processes: no threads.
    file = pq.ParquetFile(raw, pre_buffer=False, buffer_size=READ_BYTES)
    schema = file.schema_arrow
    strings = [field.name for field in schema if _is_string(field.type)]
    if "text" not in strings:
        raise UserError(f"{path} has no column `text` of strings; it has {', '.join(schema.names)}")
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
