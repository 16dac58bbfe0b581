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
MAX_ROW_BYTES = 64 << 20  # as of a line of JSON
BATCH_BYTES = 256 << 20  # that rows take together even where each is all that a row group lists of different ones
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
            for number, (row, size) in enumerate(_records(file) if talk else _rows(file, path, columns)):
                place = f"{name}:{number + 1}"
                if size > MAX_ROW_BYTES:
                    yield Dropped(place, "parquet", "row_too_long", size)
                else:
                    yield _conversation(row, place) if talk else record.to_document(row, place, "parquet")
        except pa.ArrowMemoryError as error:
            raise UserError(f"{path} does not fit into memory ({error}); lower data.workers, or remove it") from error
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk, while Arrow's have none
                raise
            said = " ".join(str(error).split())[:DETAIL]
            yield Dropped(name, "parquet", "damaged_file", path.stat().st_size, detail=said)


def _batches(file: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Few rows at a time: a row group of 2 MB may say once what each of its million rows has."""
    for number in range(file.num_row_groups):
        rows = min(ROWS, max(1, BATCH_BYTES // max(1, file.metadata.row_group(number).total_byte_size)))
        yield from file.iter_batches(batch_size=rows, row_groups=[number], columns=columns, use_threads=False)


def _records(file: pq.ParquetFile) -> Iterator[tuple[dict[str, Any] | None, int]]:
    """Rows with `messages` and what else a conversation has, and their bytes.

    None for a row whose strings are not UTF-8, or that is too long.
    """
    known = (*record.FIELDS, "messages", "chat_template_kwargs", *VARIABLES)
    columns = [name for name in file.schema_arrow.names if name in known]
    for batch in _batches(file, columns):
        for row in (batch.slice(row, 1) for row in range(len(batch))):
            try:
                yield row.to_pylist()[0] if row.nbytes <= MAX_ROW_BYTES else None, row.nbytes
            except UnicodeDecodeError:
                yield None, row.nbytes


def _conversation(row: dict[str, Any] | None, place: str) -> Document | Dropped:
    found = "undecodable" if row is None else from_record(row)
    if isinstance(found, str):
        return Dropped(place, "parquet", found, 0)
    row = {**row, "id": record.as_id(row.get("id"))}
    given = {key: row[key] for key in record.FIELDS if isinstance(row.get(key), str) and row[key]}
    return Document(**{"id": place, "url": place, "text": found[0], "source": "parquet", "meta": found[1], **given})


def _rows(file: pq.ParquetFile, path: Path, columns: Mapping[str, str]) -> Iterator[tuple[record.Record, int]]:
    """Rows with their strings as bytes, and how many these are."""
    schema = file.schema_arrow
    strings = [field.name for field in schema if _is_string(field.type)]
    integers = [field.name for field in schema if pa.types.is_integer(field.type)]
    names = record.choose(strings, schema.names, columns, f"{path} has no column", ", nor `messages`", integers)
    for batch in _batches(file, sorted({*names.values()})):
        values = [_bytes(batch.column(theirs)) for theirs in names.values()]
        yield from ((dict(zip(names, row)), sum(len(value or b"") for value in row)) for row in zip(*values))


def _bytes(column: pa.Array) -> list[bytes | None]:
    """Strings as they are in the file; integers as text."""
    return (column if _is_string(column.type) else column.cast(pa.string())).cast(pa.large_binary()).to_pylist()


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
