"""Parquet files with a `text` column, as Hugging Face publishes them."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import UserError
from data.document import Document, Dropped

FIELDS = ("id", "url", "language", "license")


def read(path: Path, name: str) -> Iterator[Document | Dropped]:
    """A document a row. `id`, `url`, `language` and `license` are taken where they are columns of strings."""
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        if "text" not in schema.names or not _is_string(schema.field("text").type):
            raise UserError(f"{path} has no column `text` of strings; it has {', '.join(schema.names)}")
        columns = [
            "text",
            *(key for key in FIELDS if key in schema.names and _is_string(schema.field(key).type)),
        ]
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            for row in batch.to_pylist():
                number += 1
                place = f"{name}:{number}"
                text = row.pop("text")
                if text is None:
                    yield Dropped(place, "parquet", "no_text", 0)
                    continue
                given = {key: value for key, value in row.items() if value}
                yield Document(**{"id": place, "url": place, "text": text, "source": "parquet", **given})
    except pa.ArrowException as error:
        raise UserError(f"{path} is damaged ({str(error).splitlines()[0]}); mend or remove it") from error


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
