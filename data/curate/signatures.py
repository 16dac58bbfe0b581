"""Files of MinHash signatures: one row for each document, in Parquet.

id, order    of the document, and the hash of its id by which all documents are ordered
chars        of its text
minhash      the signature, null where it has too few words; the settings that made it are in the file's metadata
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.errors import UserError
from core.files import atomic_write
from data.curate.minhash import COLUMN, MinHash
from data.document import id_hash

DECIDES = ("version", "method", "ngrams", "buckets", "hashes_per_bucket", "seed")  # whether signatures compare
ROWS = 4096  # of a row group: 3.7 MB


def schema(step: MinHash) -> pa.Schema:
    """Of the files of a step."""
    columns = [("id", pa.string()), ("order", pa.uint64()), ("chars", pa.int64())]
    width = pa.binary(8 * step.buckets * step.hashes_per_bucket)
    return pa.schema([*columns, (COLUMN, width)], {name: str(getattr(step, name)) for name in DECIDES})


class SignatureWriter:
    """Writes a file of signatures, whole or not at all."""

    def __init__(self, path: Path, step: MinHash):
        self.path, self.schema = path, schema(step)

    def __enter__(self) -> "SignatureWriter":
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(atomic_write(self.path))
            self.writer = stack.enter_context(pq.ParquetWriter(file, self.schema, compression="none"))
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *failure: object) -> bool | None:
        return self.stack.__exit__(*failure)

    def take(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Writes the signatures of a batch that the step has made; the batch without them goes on."""
        ids = batch.column("id").to_pylist()
        order = pa.array(np.array([id_hash(one, "order") for one in ids], np.uint64))
        columns = [batch.column("id"), order, pc.utf8_length(batch.column("text")).cast(pa.int64())]
        rows = pa.RecordBatch.from_arrays([*columns, batch.column(COLUMN)], schema=self.schema)
        self.writer.write_batch(rows, row_group_size=ROWS)
        return batch.drop_columns([COLUMN])


def settings(files: list[Path]) -> dict[str, str]:
    """Those that made all the files, which must be the same ones."""
    found: dict[str, str] = {}
    for path in files:
        with _readable(path):
            own = {key.decode(): value.decode() for key, value in (pq.read_schema(path).metadata or {}).items()}
        if any(name not in own for name in DECIDES):
            raise UserError(f"{path} is no file of MinHash signatures; curate again")
        found = found or own
        for name in DECIDES:
            if own[name] != found[name]:
                raise UserError(
                    f"{path} has MinHash signatures of {name}={own[name]}, {files[0]} of {name}={found[name]}, which "
                    "cannot be compared; curate both with the same settings"
                )
    return found


def read(path: Path) -> Iterator[pa.RecordBatch]:
    """The rows of a file, a row group at a time."""
    with _readable(path), pq.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=ROWS)


def numbers(batch: pa.RecordBatch) -> np.ndarray:
    """[documents, hashes]"""
    column = batch.column(COLUMN)
    width = column.type.byte_width // 8
    whole = np.frombuffer(column.buffers()[1], "<u8").reshape(-1, width)
    return whole[column.offset : column.offset + len(column)]


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}); curate again") from error
