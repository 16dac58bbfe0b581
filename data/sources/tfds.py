"""Datasets that TFDS prepared on this machine, read without TensorFlow.

    tfds:/data/c4/en/3.1.0            the folder of a dataset, or one above it; what could be a name is none: ./c4
    tfds:c4/en:3.1.0@train[:10%]      by name, below TFDS_DATA_DIR or ~/tensorflow_datasets; config and version where
                                      there are several; a split as TFDS writes it, else `train`

Nothing is downloaded or prepared. Records are tf.train.Example in ArrayRecord or TFRecord files; features that are
single strings are read, one in another as `translation/en`, and for ids integers. Parquet files of TFDS 4.9.10 lack
records: of 1,000 in a shard its writer kept 400.
"""

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python import array_record_module
from google.protobuf.message import DecodeError

from core.errors import UserError
from core.files import hash_file
from core.progress import say
from data.document import Document, Dropped
from data.packages import package
from data.sources import record, tfrecord
from data.sources.folder import partition_bytes

PREFIX = "tfds:"
NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[\w.+-]+))?(:(?P<version>[\w.*]+))?")
VERSION = re.compile(r"\d+\.\d+\.\d+")
INFO, FEATURES = "dataset_info.json", "features.json"
THEIRS = "tensorflow_datasets."  # begins the names of classes that a dataset may ask for
CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # of these in its description
RECORDS = 64  # in memory at a time


class Piece(NamedTuple):
    """Records of a file that a worker reads: from `first` up to `end`."""

    file: str  # its name in the dataset's folder
    first: int
    end: int


class Dataset(NamedTuple):
    """A dataset on this machine, and what is read of it."""

    folder: Path
    format: str  # of its files
    splits: list[str]
    pieces: list[tuple[Piece, int]]  # with their sizes in bytes
    features: list[str]
    strings: list[str]  # features that are single strings
    integers: list[str]  # and those that are single integers


def is_tfds(path: str) -> bool:
    """True for what this module reads."""
    return path.startswith(PREFIX)


def inputs(root: str) -> dict[str, Any]:
    """What the documents depend on: name, size and time of change of every file, and what describes them."""
    dataset, chosen = _open(root), _split(root)
    if not chosen and (others := [split for split in dataset.splits if split != "train"]):
        say(f"data.path={root}: the split train is read, not {', '.join(others)} (@all reads every one)")
    stats = {piece.file: (dataset.folder / piece.file).stat() for piece, _ in dataset.pieces}
    files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()]
    described = {name: hash_file(dataset.folder / name) for name in (INFO, FEATURES)}
    return {"split": chosen or "train", "files": files, **described}


def partitions(root: str) -> list[list[Piece]]:
    """Records that workers read on their own: those of small files together, of a large file in several parts."""
    pieces = _open(root).pieces
    most = partition_bytes(sum(size for _, size in pieces))
    groups: list[list[Piece]] = []
    room = 0
    for piece, size in itertools.chain.from_iterable(_parts(*piece, most) for piece in pieces):
        if not groups or size > room:
            groups.append([])
            room = most
        groups[-1].append(piece)
        room -= size
    return groups


def read(root: str, partition: list[Piece], columns: Mapping[str, str] | None = None) -> Iterator[Document | Dropped]:
    """The documents of some records; `columns` has names that the dataset gives to `text` and others."""
    dataset = _open(root)
    parse = package("tensorflow_datasets.proto", "tfds").tf_example_pb2.Example.FromString
    what = f"data.path={root} has no feature"
    names = record.choose(dataset.strings, dataset.features, columns or {}, what, integers=dataset.integers)
    for file, first, end in partition:
        path = dataset.folder / file
        try:
            for number, found in enumerate(READERS[dataset.format](path, first, end), first + 1):
                yield _document(found, f"{file}:{number}", names, parse)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror or error})") from error


def _open(root: str) -> Dataset:
    where, split = _find(root), _split(root) or "train"
    _require_known_classes(where / FEATURES, root)
    tfds = package("tensorflow_datasets", "tfds")
    try:
        info = tfds.builder_from_directory(where).info
        kinds = dict(_flat(info.features.get_tensor_info()))
        single = {name: np.dtype(kind.np_dtype).kind for name, kind in kinds.items() if kind.shape == ()}
        splits, form = sorted(info.splits), info.file_format.value
        wanted = info.splits[split].file_instructions
    except Exception as error:  # what TFDS makes of the words of strangers: a dozen kinds
        raise UserError(f"data.path={root}: TFDS does not open {where} ({_line(error)})") from error
    if form not in READERS:
        raise UserError(
            f"data.path={root} has files of the format {form}, which is not read; prepare it again with `tfds build "
            "--file_format=array_record`"
        )
    pieces = [_piece(where, one, root) for one in wanted if one.take > 0]
    if not pieces:
        raise UserError(f"data.path={root}: its split {split} has no records; choose with @ of {', '.join(splits)}")
    strings, integers = (sorted(name for name, kind in single.items() if kind in of) for of in ("OSU", "iu"))
    return Dataset(where, form, splits, pieces, sorted(kinds), strings, integers)


def _split(root: str) -> str:
    """What stands behind the last @; a path may have others before it."""
    _, at, split = root.rpartition("@")
    return split.strip() if at and "/" not in split else ""


def _find(root: str) -> Path:
    """The folder of the dataset, which holds what describes it."""
    place = root.removeprefix(PREFIX)
    place = place.rpartition("@")[0] if _split(root) else place
    named = NAME.fullmatch(place)
    if named is None:
        return _latest(Path(place).expanduser(), "*", root)
    where = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    return _latest(where / named["name"] / (named["config"] or ""), named["version"] or "*", root)


def _latest(base: Path, version: str, root: str) -> Path:
    """The dataset of the highest version in or below a folder, which may have one config."""
    if (base / INFO).is_file():
        return base
    below = [path.parent for depth in ("", "*/") for path in base.glob(f"{depth}{version}/{INFO}")]
    below = [path for path in below if VERSION.fullmatch(path.name)]
    if not below:
        raise UserError(
            f"data.path={root}: nothing like it is prepared in {base}; `tfds build NAME --file_format=array_record` "
            "prepares a dataset, TFDS_DATA_DIR says where they lie"
        )
    several = sorted({str(path.parent.relative_to(base)) for path in below})
    if len(several) > 1:
        raise UserError(f"data.path={root}: {base} holds several, name one of {', '.join(several)}")
    return max(below, key=lambda path: [int(number) for number in path.name.split(".")])


def _require_known_classes(path: Path, root: str) -> None:
    """Refuses features of other packages: TFDS would import whatever module a dataset names."""
    try:
        described = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"data.path={root}: {path} is missing; TFDS 4 or newer writes it, prepare it again") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"data.path={root}: {path} is not readable JSON; prepare it again") from error
    for key, value in _walk(described):
        if key in CLASS_KEYS and isinstance(value, str) and not value.startswith(THEIRS):
            raise UserError(f"data.path={root}: {path} names the class {value[:200]!r}, which is none of TFDS's")


def _walk(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Keys and values of all that JSON holds."""
    todo = [[tree]]
    while todo:
        value = todo.pop()
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield key, one
            if isinstance(one, dict | list):
                todo.append(one)


def _flat(features: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Features in features as an Example names them."""
    if isinstance(features, Mapping):
        for key, inner in features.items():
            yield from _flat(inner, f"{name}/{key}" if name else key)
    else:
        yield name, features


def _piece(folder: Path, instruction: Any, root: str) -> tuple[Piece, int]:
    """What TFDS says is to be read of a file."""
    path = Path(instruction.filename)
    if path.resolve().parent != folder.resolve():
        raise UserError(f"data.path={root}: {path} leads out of {folder} and is not read")
    if not path.is_file():
        raise UserError(f"data.path={root}: {path} is missing; copy or prepare the dataset again")
    size = path.stat().st_size * instruction.take // instruction.examples_in_shard
    return Piece(path.name, instruction.skip, instruction.skip + instruction.take), size


def _parts(piece: Piece, size: int, most: int) -> Iterator[tuple[Piece, int]]:
    """A piece in parts of at most so many bytes, if all its records are alike; and their sizes."""
    records = piece.end - piece.first
    count = max(1, min(-(-size // most), records))
    bounds = [piece.first + records * number // count for number in range(count + 1)]
    for first, end in itertools.pairwise(bounds):
        yield Piece(piece.file, first, end), size // count


def _document(
    found: bytes | tfrecord.Unread, place: str, names: Mapping[str, str], parse: Callable[[bytes], Any]
) -> Document | Dropped:
    if isinstance(found, tfrecord.Unread):
        return Dropped(place, "tfds", found.reason, found.size)
    try:
        features = parse(found).features.feature
    except DecodeError:
        return Dropped(place, "tfds", "not_example", len(found))
    values = {ours: _values(features[theirs]) for ours, theirs in names.items() if theirs in features}
    return record.to_document({ours: one[0] for ours, one in values.items() if len(one) == 1}, place, "tfds")


def _values(feature: Any) -> list[bytes]:
    """Strings as they are; integers as text."""
    return list(feature.bytes_list.value) or [str(value).encode() for value in feature.int64_list.value]


def _array_records(path: Path, first: int, end: int) -> Iterator[bytes | tfrecord.Unread]:
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        there = reader.num_records()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({_line(error)}); fetch or prepare it again") from error
    if there < end:  # a truncated file opens as an empty one
        raise UserError(f"{path} is damaged (it has {there:,} records of {end:,}); fetch or prepare it again")
    for start in range(first, end, RECORDS):
        numbers = list(range(start, min(start + RECORDS, end)))
        try:
            yield from reader.read(numbers)
        except (RuntimeError, ValueError):  # one that is damaged costs itself alone
            yield from (_array_record(reader, number) for number in numbers)


def _array_record(reader: array_record_module.ArrayRecordReader, number: int) -> bytes | tfrecord.Unread:
    try:
        return reader.read([number])[0]
    except (RuntimeError, ValueError):
        return tfrecord.Unread("damaged_record", 0)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


READERS = {"array_record": _array_records, "tfrecord": tfrecord.read}
