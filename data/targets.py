"""Stored targets: a teacher's distributions of the next token, a few ids each, beside the token shards.

    targets/train-00000.array_record     the distributions of the documents of tokens/train-00000.array_record

Every token of a document but its last has one, that of the token after it. A record holds those of up to 1,024
places that follow one another in a document, so that what is read for a row does not depend on how long documents
are. Records come in the order of the token shard; their number follows from the lengths of the documents. Behind each
stand four bytes, a checksum that begins with the one of the document's tokens.

Of n random draws a place keeps the ids that were drawn, those drawn more than once first, and how often these were:
at most 152 bytes of 50 draws. Of the k largest probabilities it keeps ids and float16. Ids take two bytes, or three
where the vocabulary has more than 65,536.

P places, U ids of all of them, k ids of a place; unused ones have id 0 and probability 0.
"""

import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python import array_record_module

from core.errors import UserError
from core.files import first_difference, hash_file, read_stage
from data.config import Method
from data.curate.engine import added_folders
from data.packing import Piece
from data.shards import WRITER_OPTIONS, TokenShards
from data.tokenize import TOKENS

TARGETS = "targets"
PLACES = 1024  # of a record
CHECKSUM = 4  # bytes


class Form(NamedTuple):
    """What is kept of a distribution."""

    method: Method
    tokens: int  # drawn, or the largest
    vocab_size: int

    @property
    def id_bytes(self) -> int:
        """Of an id."""
        return 2 if self.vocab_size <= 1 << 16 else 3


class Distributions(NamedTuple):
    """Of P places."""

    ids_Pk: np.ndarray
    probs_Pk: np.ndarray | None = None  # of the k largest; ids that were drawn come as they were drawn


def encode(form: Form, given: Distributions) -> bytes:
    """The record of up to PLACES places, without its checksum."""
    if form.method == "top_k":
        return _id_bytes(form, given.ids_Pk.ravel()) + given.probs_Pk.astype("<f2").tobytes()
    sorted_Pk = np.sort(given.ids_Pk, axis=1)
    first_Pk = np.ones(sorted_Pk.shape, bool)
    first_Pk[:, 1:] = sorted_Pk[:, 1:] != sorted_Pk[:, :-1]
    place_U, begin_U = np.nonzero(first_Pk)
    count_U = np.diff(np.append(place_U * form.tokens + begin_U, sorted_Pk.size))
    order_U = np.argsort(2 * place_U + (count_U == 1), kind="stable")
    count_U = count_U[order_U]
    unique_P = first_Pk.sum(1)
    repeated_P = np.bincount(place_U[order_U][count_U > 1], minlength=len(unique_P))
    head = np.stack([unique_P - 1, repeated_P]).astype(np.uint8).tobytes()
    counts = (count_U[count_U > 1] - 1).astype(np.uint8).tobytes()
    return head + _id_bytes(form, sorted_Pk[first_Pk][order_U]) + counts


def decode(form: Form, record: bytes, places: int) -> Distributions:
    """The inverse, ids in int32 and probabilities in float32. Raises ValueError for what `encode` did not make."""
    k = form.tokens
    if form.method == "top_k":
        ids, probs = _split(record, places * k * form.id_bytes)
        probs_Pk = np.frombuffer(probs, "<f2").astype(np.float32).reshape(places, k)
        return Distributions(_ids(form, ids).reshape(places, k), probs_Pk)
    head, rest = _split(record, 2 * places)
    unique_P, repeated_P = np.frombuffer(head, np.uint8).reshape(2, places).astype(np.int32)
    unique_P += 1
    ids, counts = _split(rest, int(unique_P.sum()) * form.id_bytes)
    ids_Pk, count_Pk = np.zeros((places, k), np.int32), np.zeros((places, k), np.float32)
    used_Pk = np.arange(k) < unique_P[:, None]
    ids_Pk[used_Pk] = _ids(form, ids)
    count_Pk[used_Pk] = 1
    count_Pk[np.arange(k) < repeated_P[:, None]] += np.frombuffer(counts, np.uint8)
    return Distributions(ids_Pk, count_Pk / k)


def _id_bytes(form: Form, ids_U: np.ndarray) -> bytes:
    return np.ascontiguousarray(ids_U.astype("<u4")[:, None].view(np.uint8)[:, : form.id_bytes]).tobytes()


def _ids(form: Form, record: bytes) -> np.ndarray:
    wide_U4 = np.zeros((len(record) // form.id_bytes, 4), np.uint8)
    wide_U4[:, : form.id_bytes] = np.frombuffer(record, np.uint8).reshape(-1, form.id_bytes)
    return wide_U4.view("<i4")[:, 0]


def _split(record: bytes, size: int) -> tuple[memoryview, memoryview]:
    whole = memoryview(record)
    return whole[:size], whole[size:]


def records_of(lengths: np.ndarray) -> np.ndarray:
    """How many records documents of so many tokens have."""
    return -(-np.maximum(lengths - 1, 0) // PLACES)


def write_targets(path: Path, form: Form, documents: Iterable[tuple[int, Distributions]]) -> dict[str, Any]:
    """Writes the targets of a token shard, by the checksum of each document; returns what the manifest records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    writer, places, size = array_record_module.ArrayRecordWriter(str(part), WRITER_OPTIONS), 0, 0
    for crc32, given in documents:
        places += len(given.ids_Pk)
        for number, first in enumerate(range(0, len(given.ids_Pk), PLACES)):
            own = Distributions(*(None if field is None else field[first : first + PLACES] for field in given))
            record = encode(form, own)
            size += len(record) + CHECKSUM
            writer.write(record + _checksum(record, crc32, number))
    writer.close()
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    hashes = {"size": path.stat().st_size, "hash": hash_file(path)}
    return {"name": path.name, **hashes, "places": places, "bytes": size}


def _checksum(record: bytes, crc32: int, number: int) -> bytes:
    """Of the `number`-th record of a document, whose tokens have the sum `crc32`."""
    return zlib.crc32(record, (crc32 + number) % (1 << 32)).to_bytes(CHECKSUM, "little")


class Targets:
    """Random access to the stored targets of the documents of token shards, by the same numbers."""

    def __init__(self, shards: TokenShards, form: Form, manifests: list[dict[str, Any]]):
        """`manifests` are those of each generation; raises UserError where a file disagrees with its own."""
        self.shards, self.form = shards, form
        sizes = [{own["name"]: own["size"] for own in manifest["summary"]["shards"]} for manifest in manifests]
        self.records = records_of(shards.lengths)
        self.first_record = np.cumsum(self.records) - self.records  # of each document, through all shards
        self.paths = [path.parent.with_name(TARGETS) / path.name for path in shards.paths]
        self.readers = []
        for number, (path, start) in enumerate(zip(self.paths, shards.starts.tolist())):
            generation = int(np.searchsorted(shards.generation_starts, start, side="right")) - 1
            expected = int(self.records[start : int(shards.starts[number + 1])].sum())
            self.readers.append(_open(path, sizes[generation].get(path.name), expected))

    def row(self, pieces: list[Piece], row_length: int) -> Distributions:
        """Of every place of a row that is made of `pieces`; nothing where the next token is of another document."""
        shape = (row_length, self.form.tokens)
        row = Distributions(np.zeros(shape, np.int32), np.zeros(shape, np.float32))
        for piece in pieces:
            at = piece.start
            for part in self._parts(piece.document, piece.begin, piece.begin + piece.predicted):
                for field, values in zip(row, part):
                    field[at : at + len(values)] = values
                at += len(part.ids_Pk)
        return row

    def _parts(self, document: int, begin: int, end: int) -> Iterator[Distributions]:
        """Of the places begin .. end - 1 of a document, record by record."""
        for number in range(begin // PLACES, -(-end // PLACES)):
            first = number * PLACES
            whole = self._read(document, number)
            yield Distributions(*(field[max(begin - first, 0) : end - first] for field in whole))

    def _read(self, document: int, number: int) -> Distributions:
        """The `number`-th record of a document."""
        shard = int(np.searchsorted(self.shards.starts, document, side="right")) - 1
        before = self.first_record[int(self.shards.starts[shard])]
        places = min(PLACES, int(self.shards.lengths[document]) - 1 - number * PLACES)
        try:
            (stored,) = self.readers[shard].read([int(self.first_record[document] - before) + number])
            record, checksum = stored[:-CHECKSUM], stored[-CHECKSUM:]
            if checksum != _checksum(record, int(self.shards.crc32[document]), number):
                raise ValueError("a wrong checksum")
            return decode(self.form, record, places)
        except (RuntimeError, ValueError, IndexError) as error:
            name, reason = self.shards.document_id(document), str(error).splitlines()[0][:200]
            raise UserError(
                f"{self.paths[shard]}: the targets of document {name} are damaged ({reason}); remove it and run "
                "`launch.py teach` again"
            ) from error


def _open(path: Path, size: int | None, records: int) -> array_record_module.ArrayRecordReader:
    # A truncated ArrayRecord opens as empty, so its size is checked first.
    again = "remove it and run `launch.py teach` again"
    there = path.stat().st_size if path.exists() else 0
    if there != size:
        raise UserError(f"{path} has {there:,} bytes, its manifest says {size or 0:,}; {again}")
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read ({error}); {again}") from None
    if reader.num_records() != records:
        raise UserError(f"{path} holds {reader.num_records():,} records, its tokens have {records:,}; {again}")
    return reader


def open_targets(workdir: Path, shards: TokenShards, added: int = 0) -> Targets:
    """The stored targets of all training documents, those of `added` generations behind the first.

    Refuses those that were made for other token shards, for another tokenizer, or in another way in each generation.
    """
    manifests = [read_targets(folder) for folder in (workdir, *added_folders(workdir, added))]
    first, *others = (made_by(manifest["spec"]) for manifest in manifests)
    for number, other in enumerate(others, 1):
        if other != first:
            raise UserError(
                f"{workdir / f'added-{number}' / TARGETS} was made in another way than {workdir / TARGETS} "
                f"({first_difference(first, other)}); run `launch.py teach --rebuild`"
            )
    return Targets(shards, form_of(first), manifests)


def form_of(spec: dict[str, Any]) -> Form:
    """What stored targets keep of a distribution, by the spec of their stage."""
    return Form(spec["teach"]["method"], spec["teach"]["tokens"], spec["vocab_size"])


def made_by(spec: dict[str, Any]) -> dict[str, Any]:
    """The part of a spec that says how targets were made, not for which tokens."""
    return {name: value for name, value in spec.items() if name != "tokens"}


def read_targets(workdir: Path) -> dict[str, Any]:
    """The manifest of the stored targets of a folder; refuses those that are not of its token shards."""
    folder = workdir / TARGETS
    manifest = read_stage(folder, "teach")
    made_for = {name: manifest["spec"][name] for name in ("tokenizer", "tokens")}
    if made_for != (there := tokens_spec(workdir)):
        raise UserError(
            f"{folder} was made for other token shards ({first_difference(made_for, there)}); "
            "run `launch.py teach --rebuild`"
        )
    return manifest


def tokens_spec(workdir: Path) -> dict[str, Any]:
    """What stored targets belong to: the token shards of a folder in their order, and their tokenizer."""
    tokens = read_stage(workdir / TOKENS, "tokenize")
    shards = [shard["hash"] for shard in tokens["summary"]["train"]["shards"]]
    return {"tokenizer": tokens["spec"]["tokenizer"], "tokens": shards}
