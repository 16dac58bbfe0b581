"""Token shards: one ArrayRecord record a document, and beside each shard an index of its documents.

    train-00000.array_record     ids of a document, little-endian uint16 or uint32
    train-00000.index.parquet    id, source, tokens and bytes of each document, in the same order

Tokens are stored once, per document; rows of any length are views of them (`data/rows.py`).
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python import array_record_module

from core.errors import UserError
from core.files import atomic_write, hash_file

# Uncompressed records of one document: 56k random reads a second, where blocks of 64 under zstd give 3k.
WRITER_OPTIONS = "group_size:1,uncompressed"


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned type that holds every id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


@dataclass(frozen=True)
class TokenDocument:
    """One document on its way into a shard."""

    id: str
    source: str
    ids: list[int]
    bytes: int  # of the text in UTF-8


def write_shard(path: Path, documents: Iterable[TokenDocument], dtype: np.dtype) -> dict:
    """Writes a shard and its index; returns what the manifest records of them."""
    index: dict[str, list] = {"id": [], "source": [], "tokens": [], "bytes": []}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    writer = array_record_module.ArrayRecordWriter(str(part), WRITER_OPTIONS)
    for document in documents:
        writer.write(np.asarray(document.ids, dtype).tobytes())
        index["id"].append(document.id)
        index["source"].append(document.source)
        index["tokens"].append(len(document.ids))
        index["bytes"].append(document.bytes)
    writer.close()
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    with atomic_write(index_path(path)) as file:
        pq.write_table(pa.table(index), file)
    return {
        "name": path.name,
        "size": path.stat().st_size,
        "hash": hash_file(path),
        "documents": len(index["id"]),
        "tokens": sum(index["tokens"]),
        "bytes": sum(index["bytes"]),
    }


def index_path(path: Path) -> Path:
    """Where the index of a shard lies."""
    return path.with_suffix(".index.parquet")


class TokenShards:
    """Random access to the documents of a split, numbered through all its shards."""

    def __init__(self, folder: Path, shards: list[dict], dtype: str):
        """Opens the shards a manifest lists; raises UserError where a file disagrees with it."""
        self.dtype = np.dtype(dtype)
        self.readers, lengths, self.document_ids, document_bytes = [], [], [], []
        for shard in shards:
            if not shard["documents"]:
                continue
            path = folder / shard["name"]
            index = _open_index(path)
            reader = _open_reader(path, shard)
            if reader.num_records() != shard["documents"] or len(index) != shard["documents"]:
                raise UserError(
                    f"{path} holds {reader.num_records()} records, its index {len(index)}, its manifest says "
                    f"{shard['documents']}; tokenize again"
                )
            self.readers.append(reader)
            lengths.append(index["tokens"].to_numpy())
            document_bytes.append(index["bytes"].to_numpy())
            self.document_ids += index["id"].to_pylist()
        if not self.readers:
            raise UserError(f"{folder} holds no documents; give more text")
        self.lengths = np.concatenate(lengths).astype(np.int64)
        self.bytes = np.concatenate(document_bytes).astype(np.int64)
        self.starts = np.cumsum([0, *(len(part) for part in lengths)])

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, documents: np.ndarray) -> list[np.ndarray]:
        """Token ids of the documents with these numbers, in the order asked."""
        shard_of = np.searchsorted(self.starts, documents, side="right") - 1
        found: list[np.ndarray | None] = [None] * len(documents)
        for shard in np.unique(shard_of):
            places = np.flatnonzero(shard_of == shard)
            records = self.readers[shard].read((documents[places] - self.starts[shard]).tolist())
            for place, record in zip(places, records):
                found[place] = np.frombuffer(record, self.dtype)
        return found


def _open_index(path: Path) -> pa.Table:
    try:
        return pq.read_table(index_path(path))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{index_path(path)} cannot be read ({str(error).splitlines()[0]}); tokenize again") from None


def _open_reader(path: Path, shard: dict) -> array_record_module.ArrayRecordReader:
    # A truncated ArrayRecord opens as empty, so its size is checked first.
    size = path.stat().st_size if path.exists() else 0
    if size != shard["size"]:
        raise UserError(f"{path} has {size:,} bytes, its manifest says {shard['size']:,}; tokenize again")
    try:
        return array_record_module.ArrayRecordReader(str(path))
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read ({error}); tokenize again") from None
