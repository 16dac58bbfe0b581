"""Token shards: one ArrayRecord record a document, and beside each shard an index of its documents.

    train-00000.array_record     ids of a document, little-endian uint16 or uint32
    train-00000.index.parquet    id, source, license, tokens, bytes and checksum of each document, in the same order

Tokens are stored once, per document; rows of any length are views of them (`data/rows.py`).

Of a conversation only some tokens are trained on. Its record goes on behind the ids with a bit for each, and the
index has two more columns: how many tokens are predicted, and the bytes of their text. They are null for ordinary
documents, and left out where a shard has no conversation.
"""

import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from array_record.python import array_record_module

from core.errors import UserError
from core.files import atomic_write, hash_file

# Uncompressed records of one document: 56k random reads a second, where blocks of 64 under zstd give 3k.
WRITER_OPTIONS = "group_size:1,uncompressed"
COLUMNS = ("id", "source", "license", "tokens", "bytes", "crc32", "predicted", "predicted_bytes")  # of an index


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
    trained: np.ndarray | None = None  # bool, which ids are trained on; None: all
    trained_bytes: int | None = None  # of their text
    license: str = ""

    def record(self, dtype: np.dtype) -> bytes:
        """What is stored."""
        record = np.asarray(self.ids, dtype).tobytes()
        return record if self.trained is None else record + np.packbits(self.trained).tobytes()

    @property
    def predicted(self) -> int | None:
        """How many tokens are trained on; the first has none before it to be predicted from."""
        return None if self.trained is None else int(np.count_nonzero(self.trained[1:]))


class Tokens(NamedTuple):
    """Ids of a document or of several end to end, and which are trained on."""

    ids: np.ndarray
    trained: np.ndarray | None  # bool; None: all

    def cut(self, begin: int, end: int) -> "Tokens":
        """Those from `begin` up to `end`."""
        return Tokens(self.ids[begin:end], None if self.trained is None else self.trained[begin:end])


def end_to_end(parts: list[Tokens]) -> Tokens:
    """Several as one."""
    ids = np.concatenate([part.ids for part in parts])
    if all(part.trained is None for part in parts):
        return Tokens(ids, None)
    trained = [np.ones(len(part.ids), bool) if part.trained is None else part.trained for part in parts]
    return Tokens(ids, np.concatenate(trained))


def write_shard(path: Path, documents: Iterable[TokenDocument], dtype: np.dtype) -> dict:
    """Writes a shard and its index; returns what the manifest records of them."""
    index: dict[str, list] = {"id": [], "source": [], "license": [], "tokens": [], "bytes": [], "crc32": []}
    masked: dict[str, list] = {"predicted": [], "predicted_bytes": []}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    writer = array_record_module.ArrayRecordWriter(str(part), WRITER_OPTIONS)
    for document in documents:
        record = document.record(dtype)
        writer.write(record)
        index["id"].append(document.id)
        index["source"].append(document.source)
        index["license"].append(document.license)
        index["tokens"].append(len(document.ids))
        index["bytes"].append(document.bytes)
        index["crc32"].append(zlib.crc32(record))
        masked["predicted"].append(document.predicted)
        masked["predicted_bytes"].append(document.trained_bytes)
    writer.close()
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    with atomic_write(index_path(path)) as file:
        if any(predicted is not None for predicted in masked["predicted"]):
            index |= {name: pa.array(values, pa.int64()) for name, values in masked.items()}
        pq.write_table(pa.table(index), file)
    return {
        "name": path.name,
        "size": path.stat().st_size,
        "hash": hash_file(path),
        "index_hash": hash_file(index_path(path)),
        "documents": len(index["id"]),
        "tokens": sum(index["tokens"]),
        "bytes": sum(index["bytes"]),
    }


def index_path(path: Path) -> Path:
    """Where the index of a shard lies."""
    return path.with_suffix(".index.parquet")


class TokenShards:
    """Random access to the documents of a split, numbered through all its shards.

    Generations of documents follow one another: what was added later comes in shards of its own, behind the others.
    """

    def __init__(self, folder: Path, shards: list[dict], dtype: str):
        """Opens the shards a manifest lists; raises UserError where a file disagrees with it."""
        self.dtype = np.dtype(dtype)
        self.readers: list[array_record_module.ArrayRecordReader] = []
        self.paths: list[Path] = []
        indexes, self.hashes = [], []
        generation_ends: dict[int, int] = {}
        for shard in shards:
            generation = shard.get("generation", 0)
            generation_ends.setdefault(generation, generation_ends.get(generation - 1, 0))
            if generation == len(self.hashes):
                self.hashes.append([])
            self.hashes[generation].append(shard["hash"])
            if not shard["documents"]:
                continue
            path = folder / shard["name"]
            index = _open_index(path, shard)
            reader = _open_reader(path, shard)
            if reader.num_records() != shard["documents"] or len(index) != shard["documents"]:
                raise UserError(
                    f"{path} holds {reader.num_records()} records, its index {len(index)}, its manifest says "
                    f"{shard['documents']}; tokenize again"
                )
            self.readers.append(reader)
            self.paths.append(path)
            indexes.append(index)
            generation_ends[generation] += shard["documents"]
        if not self.readers:
            raise UserError(f"{folder} holds no documents; give more text")
        self.starts = np.cumsum([0, *map(len, indexes)])
        self.generation_starts = np.array([0, *generation_ends.values()])
        index = pa.concat_tables(map(_with_all_columns, indexes))
        self.document_ids = index["id"]  # Arrow's, since a Python string takes 70 bytes more
        self.lengths = index["tokens"].to_numpy().astype(np.int64)
        self.bytes = index["bytes"].to_numpy().astype(np.int64)
        self.crc32 = index["crc32"].to_numpy()
        self.masked = index["predicted"].is_valid().to_numpy()  # conversations
        # Tokens that are targets, and the bytes of their text.
        predicted = index["predicted"].fill_null(0).to_numpy()
        self.predicted = np.where(self.masked, predicted, np.maximum(self.lengths - 1, 0))
        self.predicted_bytes = np.where(self.masked, index["predicted_bytes"].fill_null(0).to_numpy(), self.bytes)
        self.source_names, self.source_of = _names(index["source"])
        self.license_names, self.license_of = _names(index["license"])

    def __len__(self) -> int:
        return len(self.lengths)

    def document_id(self, document: int) -> str:
        """The id of a document by its number."""
        return self.document_ids[document].as_py()

    def find(self, identifier: str) -> int | None:
        """The number of a document by its id; None where it is not among these."""
        found = pc.index(self.document_ids, identifier).as_py()
        return found if found >= 0 else None

    def source(self, document: int) -> str:
        """The source of a document by its number."""
        return self.source_names[self.source_of[document]]

    def license(self, document: int) -> str:
        """The licence of a document by its number, empty where none is known."""
        return self.license_names[self.license_of[document]]

    def read(self, documents: np.ndarray) -> list[np.ndarray]:
        """Token ids of the documents with these numbers, in the order asked, each checked against its checksum."""
        return [tokens.ids for tokens in self.read_tokens(documents)]

    def read_tokens(self, documents: np.ndarray) -> list[Tokens]:
        """The same, with which of them are trained on."""
        shard_of = np.searchsorted(self.starts, documents, side="right") - 1
        found: list[Tokens | None] = [None] * len(documents)
        for shard in np.unique(shard_of).tolist():
            places = np.flatnonzero(shard_of == shard)
            records = self._read(shard, (documents[places] - self.starts[shard]).tolist())
            expected = self.crc32[documents[places]].tolist()
            for place, record, crc32 in zip(places.tolist(), records, expected):
                if zlib.crc32(record) != crc32:
                    name = self.document_id(int(documents[place]))
                    raise UserError(f"{self.paths[shard]}: document {name} is damaged; tokenize again")
                found[place] = self._tokens(record, int(documents[place]))
        return found

    def _tokens(self, record: bytes, document: int) -> Tokens:
        if not self.masked[document]:
            return Tokens(np.frombuffer(record, self.dtype), None)
        count = int(self.lengths[document])
        bits = np.frombuffer(record, np.uint8, offset=count * self.dtype.itemsize)
        return Tokens(np.frombuffer(record, self.dtype, count), np.unpackbits(bits, count=count).astype(bool))

    def _read(self, shard: int, records: list[int]) -> list[bytes]:
        try:
            return self.readers[shard].read(records)
        except (RuntimeError, ValueError, IndexError) as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError(f"{self.paths[shard]} is damaged ({reason}); tokenize again") from error


def _with_all_columns(index: pa.Table) -> pa.Table:
    """An index with the columns of conversations, also where it has none, and with licences."""
    nothing = {"license": pa.repeat("", len(index))}
    nothing |= {name: pa.nulls(len(index), pa.int64()) for name in ("predicted", "predicted_bytes")}
    columns = [index[name] if name in index.column_names else nothing[name] for name in COLUMNS]
    return pa.table(dict(zip(COLUMNS, columns)))


def _names(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """The names that there are, and which of them each document has."""
    encoded = column.dictionary_encode().unify_dictionaries().combine_chunks()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def _open_index(path: Path, shard: dict) -> pa.Table:
    # Parquet checks no sums by default: a flipped bit could be read as another length.
    try:
        if hash_file(index_path(path)) != shard["index_hash"]:
            raise UserError(f"{index_path(path)} is not the file its manifest names; tokenize again")
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
