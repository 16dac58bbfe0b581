"""Parquet files with a column `text` or `messages`, as Hugging Face publishes them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import UserError
from data.conversations import VARIABLES, from_record
from data.document import Document, Dropped
from data.sources import record

ROWS = 64  # in memory at a time; a row may be a book
READ_BYTES = 1 << 20
DETAIL = 200  # characters of what Arrow says of a file


def read(path: Path, name: str, columns: Mapping[str, str] | None = None) -> Iterator[Document | Dropped]:
    """A document a row, with what else are columns of strings: `id`, `url`, `language`, `license`, `date`.

    An `id` may be an integer. `columns` has names that the file gives to `text` and these.
    """
    columns = columns or {}
    with path.open("rb") as raw:  # Arrow itself opens no path that is not UTF-8
        try:
            # Buffered: a page at a time is in memory rather than a row group. Workers are processes: no threads.
            file = pq.ParquetFile(raw, pre_buffer=False, buffer_size=READ_BYTES)
            names = file.schema_arrow.names
            talk = "messages" in names and "text" not in (*names, *columns)
            for number, row in enumerate(_records(file) if talk else _rows(file, path, columns)):
                place = f"{name}:{number + 1}"
                yield _conversation(row, place) if talk else record.to_document(row, place, "parquet")
        except pa.ArrowMemoryError as error:
            raise UserError(f"{path} does not fit into memory ({error}); lower data.workers, or remove it") from error
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk, while Arrow's have none
                raise
            said = " ".join(str(error).split())[:DETAIL]
            yield Dropped(name, "parquet", "damaged_file", path.stat().st_size, detail=said)


def _records(file: pq.ParquetFile) -> Iterator[dict[str, Any] | None]:
    """Rows with `messages` and what else a conversation has; None for a row whose strings are not UTF-8."""
    known = (*record.FIELDS, "messages", "chat_template_kwargs", *VARIABLES)
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
    row = {**row, "id": record.as_id(row.get("id"))}
    given = {key: row[key] for key in record.FIELDS if isinstance(row.get(key), str) and row[key]}
    return Document(**{"id": place, "url": place, "text": found[0], "source": "parquet", "meta": found[1], **given})


def _rows(file: pq.ParquetFile, path: Path, columns: Mapping[str, str]) -> Iterator[record.Record]:
    """Rows with their strings as bytes."""
    schema = file.schema_arrow
    strings = [field.name for field in schema if _is_string(field.type)]
    integers = [field.name for field in schema if pa.types.is_integer(field.type)]
    names = record.choose(strings, schema.names, columns, f"{path} has no column", ", nor `messages`", integers)
    for batch in file.iter_batches(batch_size=ROWS, columns=sorted({*names.values()}), use_threads=False):
        values = [_bytes(batch.column(theirs)) for theirs in names.values()]
        yield from (dict(zip(names, row)) for row in zip(*values))


def _bytes(column: pa.Array) -> list[bytes | None]:
    """Strings as they are in the file; integers as text."""
    return (column if _is_string(column.type) else column.cast(pa.string())).cast(pa.large_binary()).to_pylist()


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
