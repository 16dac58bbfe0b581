"""Items of benchmarks from files, to look for in documents: JSON, JSON lines, CSV, Parquet, text."""

import collections
import contextlib
import csv
import gzip
import io
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from core.errors import UserError

PACKED = ("", ".gz", ".zst")
MAX_BYTES = 1 << 30  # of a file of JSON or text, unpacked
MAX_LINE_BYTES = 64 << 20
ROWS = 64  # of a Parquet file in memory

# What a file that is not what its name says makes its reader raise.
DAMAGE = (
    OSError, EOFError, ValueError, RecursionError, csv.Error, zlib.error, zstandard.ZstdError, pa.ArrowException,
)  # fmt: skip


class ItemFile(NamedTuple):
    """A file of items, by the name that a report gives it."""

    name: str
    path: Path


def item_files(paths: tuple[str, ...]) -> list[ItemFile]:
    """The files, and those of the folders, in name order: a name is the file's, without endings.

    Where several are alike, their folders' names stand before them; in one folder they keep their endings.
    """
    found: list[Path] = []
    for root in (Path(path).expanduser() for path in paths):
        if not root.exists():
            raise UserError(f"{root} does not exist; give a file or folder of items")
        below = sorted(filter(_may_hold_items, root.rglob("*"))) if root.is_dir() else [root]
        readable = [path for path in below if _reader(path) and path.is_file()]
        if not readable:
            raise UserError(f"{root} holds no items; they are in files of {_kinds()}")
        found += readable
    return [ItemFile(name, path) for path, name in _names(list(dict.fromkeys(found))).items()]


def _names(paths: list[Path]) -> dict[Path, str]:
    """A name for each, which no other has."""
    whole = {path: Path(os.path.abspath(path)) for path in paths}
    in_folder = collections.Counter((path.parent, _stem(path)) for path in whole.values())
    own = {path: _stem(at) if in_folder[at.parent, _stem(at)] == 1 else at.name for path, at in whole.items()}
    names = dict(own)
    for folders in range(1, max((len(path.parts) for path in whole.values()), default=0)):
        alike = collections.Counter(names.values())
        if len(alike) == len(names):
            break
        for path in names:
            if alike[names[path]] > 1:
                names[path] = "_".join([*whole[path].parts[1:-1][-folders:], own[path]])
    alike = collections.Counter(names.values())  # `a_b/c` and `a/b_c` may still be
    return {path: name if alike[name] == 1 else str(path) for path, name in names.items()}


def _kinds() -> str:
    """The endings that are read, for an error."""
    packed = ", ".join(end for end in READERS if end not in UNPACKED)
    return f"{packed}, each also .gz or .zst, or {', '.join(UNPACKED)}"


def read_items(path: Path, fields: tuple[str, ...]) -> Iterator[list[str]]:
    """The strings of each item, at any depth; with `fields` only those below a key of such a name."""
    for record in read_records(path):
        yield list(_strings(record, fields, wanted=not fields))


def read_records(path: Path) -> Iterator[Any]:
    """What a file holds, one by one."""
    try:
        yield from _reader(path)(path)
    except DAMAGE as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error})") from error


def _may_hold_items(path: Path) -> bool:
    """Not what lies beside them: every paragraph of a licence would be one."""
    return not path.name.lower().startswith((".", "license", "licence", "readme"))


def _stem(path: Path) -> str:
    return path.name[: -len(_ending(path))]


def _reader(path: Path) -> Callable[[Path], Iterator[Any]] | None:
    """By the ending of the name."""
    ending = _ending(path)
    return READERS[ending.removesuffix(".gz").removesuffix(".zst")] if ending else None


def _ending(path: Path) -> str:
    """Of those that are read, or nothing."""
    name = path.name.lower()
    known = (f"{end}{packed}" for end in READERS for packed in (PACKED if end not in UNPACKED else ("",)))
    return next(filter(name.endswith, known), "")


def _strings(value: Any, fields: tuple[str, ...], wanted: bool) -> Iterator[str]:
    if isinstance(value, str) and wanted:
        yield value
    elif isinstance(value, dict):
        for key, below in value.items():
            yield from _strings(below, fields, wanted or key in fields)
    elif isinstance(value, list):
        for below in value:
            yield from _strings(below, fields, wanted)


@contextlib.contextmanager
def _unpacked(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as raw:
        name = path.name.lower()
        if name.endswith(".gz"):
            yield gzip.GzipFile(fileobj=raw)
        elif name.endswith(".zst"):
            unpack = zstandard.ZstdDecompressor(max_window_size=1 << 27)
            yield io.BufferedReader(unpack.stream_reader(raw, read_across_frames=True), 1 << 20)
        else:
            yield raw


def _whole(path: Path) -> str:
    with _unpacked(path) as file:
        payload = file.read(MAX_BYTES + 1)
    if len(payload) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES:,} bytes; as .jsonl or .parquet it is read a record at a time")
    return payload.decode("utf-8-sig")


def _json(path: Path) -> Iterator[Any]:
    """A list is one of items; of an object each value is an item or a list of them."""
    value = json.loads(_whole(path))
    for one in value.values() if isinstance(value, dict) else [value]:
        yield from one if isinstance(one, list) else [one]


def _jsonl(path: Path) -> Iterator[Any]:
    with _unpacked(path) as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(f"a line of more than {MAX_LINE_BYTES:,} bytes")
            if line.strip():
                yield json.loads(line)


def _csv(path: Path) -> Iterator[Any]:
    """Rows by the names of the first, which is an item too: some benchmarks come without names."""
    csv.field_size_limit(MAX_LINE_BYTES)
    with _unpacked(path) as file:
        rows = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""))
        names = next(rows, [])
        yield names
        for row in rows:
            yield [{name: value} for name, value in itertools.zip_longest(names, row, fillvalue="")]


def _parquet(path: Path) -> Iterator[Any]:
    with path.open("rb") as raw:
        for batch in pq.ParquetFile(raw).iter_batches(batch_size=ROWS, use_threads=False):
            yield from batch.to_pylist()


def _text(path: Path) -> Iterator[Any]:
    """A paragraph is an item."""
    lines: list[str] = []
    for line in [*_whole(path).splitlines(), ""]:
        if line.strip():
            lines.append(line)
        elif lines:
            yield "\n".join(lines)
            lines = []


UNPACKED = (".parquet",)  # those that are never .gz or .zst
READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet, ".txt": _text}
