"""The one record of curation, its Arrow schema, and the Parquet shards that hold it."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import UserError
from core.files import atomic_write

SCHEMA = pa.schema([
    ("id", pa.string()),
    ("text", pa.string()),
    ("source", pa.string()),
    ("url", pa.string()),
    ("language", pa.string()),
    ("license", pa.string()),
    ("meta", pa.string()),  # JSON
])  # fmt: skip


@dataclass(frozen=True)
class Document:
    """A text with where it came from. `id` is unique in a corpus and stable from run to run."""

    id: str
    text: str
    source: str  # the kind of input, for mixtures and reports
    url: str = ""
    language: str = ""  # ISO 639-1, empty when unknown
    license: str = ""  # SPDX where there is one
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Dropped:
    """A document that did not make it, and why. Sources yield it for what they cannot read."""

    id: str
    source: str
    reason: str
    size: int  # bytes of UTF-8, or of the file where it could not be decoded
    step: str = ""  # of the recipe; empty where the source could not read it
    detail: str = ""


def id_hash(identifier: str, salt: str) -> int:
    """64 uniform bits of a document's id: one salt for the order of documents, another for held-out ones."""
    digest = hashlib.blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=8, salt=salt.encode())
    return int.from_bytes(digest.digest(), "big")


ROW_GROUP, ROW_GROUP_CHARS = 256, 1 << 20  # held in memory by a writer or a reader; the first of both ends it


class DocumentWriter:
    """Writes one Parquet shard, whole or not at all, a row group at a time."""

    def __init__(self, path: Path):
        self.path, self.rows, self.room = path, [], ROW_GROUP_CHARS

    def __enter__(self) -> "DocumentWriter":
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(atomic_write(self.path))
            self.writer = pq.ParquetWriter(file, SCHEMA, compression="zstd")
            stack.push(self._finish)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *failure: object) -> bool | None:
        return self.stack.__exit__(*failure)

    def add(self, document: Document) -> None:
        """Adds a document; the order of calls is the order in the shard."""
        self.rows.append({**vars(document), "meta": json.dumps(document.meta)})
        self.room -= len(document.text)
        if len(self.rows) == ROW_GROUP or self.room <= 0:
            self._flush()

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        """Completes a shard that went well; `atomic_write`, next on the stack, removes any other."""
        try:
            if kind is None:
                self._flush()
                self.writer.close()
        finally:
            self.writer.is_open = False  # or, when collected, it would write its footer into a closed file

    def _flush(self) -> None:
        if self.rows:
            self.writer.write_table(pa.Table.from_pylist(self.rows, schema=SCHEMA))
            self.rows, self.room = [], ROW_GROUP_CHARS


def read_documents(path: Path) -> Iterator[Document]:
    """The documents of one shard, in order, a row group at a time."""
    try:
        shard = pq.ParquetFile(path)
        for number in range(shard.num_row_groups):
            for row in shard.read_row_group(number, use_threads=False).to_pylist():
                yield Document(**{**row, "meta": json.loads(row["meta"])})
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}); curate again") from error
