"""Any folder of text, HTML, JSON lines, Parquet files, web archives and wikis, each file read by its ending."""

import collections
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, NoReturn

from core.errors import UserError
from core.files import MANIFEST
from core.progress import say
from data.document import Document, Dropped
from data.packages import versions
from data.sources import html, jsonl, parquet, text, warc, wiki

# A reader has `read(path, name)` and, where they decide what is read, the names of `packages`. Those of records,
# TABLES, are also told what the files call their columns.
READERS: dict[str, ModuleType] = {
    ".txt": text,
    ".md": text,
    ".html": html,
    ".htm": html,
    ".jsonl": jsonl,
    ".jsonl.gz": jsonl,
    ".jsonl.zst": jsonl,
    ".parquet": parquet,
    ".warc": warc,
    ".warc.gz": warc,
    ".warc.zst": warc,
    ".wet": warc,
    ".wet.gz": warc,
    ".arc": warc,
    ".arc.gz": warc,
    ".xml": wiki,
    ".xml.gz": wiki,
    ".xml.bz2": wiki,
}
TABLES = (jsonl, parquet)
FILES_PER_PARTITION = 256  # of small files
PARTITIONS = 64  # that a folder is divided into where their bytes then lie within these bounds
LEAST_BYTES, MOST_BYTES = 1 << 20, 64 << 20
ENDING = re.compile(r"\.[a-z0-9]{1,12}(?:\.(?:gz|bz2|xz|zst))?$")  # of any file
ENDINGS = 8  # of files that are not read, which are told


def ending(path: Path) -> str | None:
    """The known ending of a file's name, or None."""
    name = path.name.lower()
    return next((suffix for suffix in READERS if name.endswith(suffix)), None)


def files(root: Path) -> list[Path]:
    """Readable files below the folder in name order; links that leave it are not followed."""
    return _find(root).files


class Found(NamedTuple):
    """What a folder holds."""

    files: list[Path]  # that are read, in name order
    outside: list[Path]  # links to files and folders outside, which are not followed
    others: collections.Counter  # how many files are not read, by their endings; without hidden ones


def _find(root: Path) -> Found:
    """Readable files, at least one, and what is passed over."""
    if not root.exists():
        raise UserError(f"data.path={root} does not exist")
    found = _walk(root)
    if not found.files and found.outside:
        raise UserError(_only_links(root, found.outside))
    if not found.files:
        raise UserError(f"data.path={root} holds none of the files that are read ({', '.join(READERS)})")
    return found


def _walk(root: Path) -> Found:
    others = collections.Counter()
    if root.is_file():
        return Found([root] if ending(root) else [], [], others)
    inside = root.resolve()
    found, outside = [], []
    for where, below, names in os.walk(root, onerror=_refuse):
        below[:] = [name for name in below if not _is_set_aside(Path(where, name))]
        readable = [path for name in names if ending(path := Path(where, name)) and path.is_file()]
        linked = [path for name in below if (path := Path(where, name)).is_symlink()]  # os.walk does not enter them
        links = [path for path in [*readable, *linked] if path.is_symlink()]
        leaving = {path for path in links if not path.resolve().is_relative_to(inside)}
        outside += leaving
        found += (path for path in readable if path not in leaving)
        if not any(part.startswith(".") for part in Path(where).relative_to(root).parts):
            others.update(any_ending(name) for name in names if not name.startswith(".") and not ending(Path(name)))
    return Found(sorted(found), sorted(outside), others)


def any_ending(name: str) -> str:
    """Of a file that is not read, for `told`."""
    match = ENDING.search(name.lower())
    return match[0] if match else "none"


def _is_set_aside(folder: Path) -> bool:
    """True for an older output of this program (see `core.files.set_aside`): curated text is no source."""
    return re.search(r"\.stale-\d+$", folder.name) is not None and (folder / MANIFEST).is_file()


def _refuse(error: OSError) -> NoReturn:
    place = to_name(Path(error.filename))
    raise UserError(f"{place} cannot be read ({error.strerror}); permit it, or move it out of data.path") from error


def _only_links(root: Path, outside: list[Path]) -> str:
    """A cache of Hugging Face is such a folder: its links have the endings, the files they point to do not."""
    targets = [path.resolve() for path in outside]
    both = os.path.commonpath([root.resolve(), *targets])
    target = targets[0] if targets[0].is_dir() else targets[0].parent
    return (
        f"data.path={root} holds no files of its own; {len(outside)} links lead outside, which are not followed: "
        f"set data.path to the folder they point to ({to_name(target)}) or, where the names there lack their "
        f"ending, to one that holds both ({to_name(Path(both))})"
    )


def partitions(root: Path) -> list[list[str]]:
    """Groups of files, by name (see `to_name`) relative to the folder, that workers read on their own."""
    return grouped((_name(root, path), path.stat().st_size) for path in files(root))


def grouped(sizes: Iterable[tuple[str, int]]) -> list[list[str]]:
    """Names of files in groups of bounded number and size, in order."""
    given = list(sizes)
    most = partition_bytes(sum(size for _, size in given))
    groups: list[list[str]] = []
    room = 0
    for name, size in given:
        if not groups or size > room or len(groups[-1]) >= FILES_PER_PARTITION:
            groups.append([])
            room = most
        groups[-1].append(name)
        room -= size
    return groups


def partition_bytes(whole: int) -> int:
    """How many bytes of so many a partition has, so that each of several workers has some, and none has all."""
    return min(max(whole // PARTITIONS, LEAST_BYTES), MOST_BYTES)


def inputs(root: Path) -> dict:
    """What the documents depend on: name, size and time of change of every file, and packages of their readers."""
    found = _find(root)
    if found.outside:
        say(f"data.path={root}: {len(found.outside)} links lead out of this folder and are not read")
    if found.others:
        say(f"data.path={root}: {told(found.others)}")
    stats = ((path, path.stat()) for path in found.files)
    files = [[_name(root, path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]
    return {"files": files, **versions(READERS[ending(path)] for path in found.files)}


def told(others: collections.Counter) -> str:
    """How many files are not read, by endings, the most frequent first."""
    ranked = sorted(others.items(), key=lambda pair: (-pair[1], pair[0]))
    each = [f"{name} {number:,}" for name, number in ranked[:ENDINGS]]
    if more := ranked[ENDINGS:]:
        each.append(f"{len(more):,} other endings {sum(number for _, number in more):,}")
    whole = others.total()
    return f"{whole:,} {'file is' if whole == 1 else 'files are'} not read, by their endings: {', '.join(each)}"


def read(root: Path, partition: list[str], columns: Mapping[str, str] | None = None) -> Iterator[Document | Dropped]:
    """The documents of one group of files; `columns` as in `data.columns`."""
    for name in partition:
        yield from read_file(root / to_path(name) if root.is_dir() else root, name, columns)


def read_file(path: Path, name: str, columns: Mapping[str, str] | None) -> Iterator[Document | Dropped]:
    """The documents of one file, by its ending."""
    reader = READERS[ending(path)]
    try:
        yield from reader.read(path, name, columns) if reader in TABLES else reader.read(path, name)
    except OSError as error:
        raise UserError(f"{to_name(path)} cannot be read ({error.strerror or error})") from error


def to_name(path: Path) -> str:
    """A relative path as text. A name on disk may be any bytes: those that are not UTF-8 are written `\\xff`."""
    # A backslash that would read as such an escape is escaped too, so that `to_path` finds the file again.
    payload = re.sub(rb"\\(?=x[0-9a-f]{2})", rb"\\x5c", os.fsencode(path.as_posix()))
    return payload.decode("utf-8", "backslashreplace")


def to_path(name: str) -> Path:
    """The relative path that `to_name` wrote."""
    payload = re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), name.encode("utf-8"))
    return Path(os.fsdecode(payload))


def _name(root: Path, path: Path) -> str:
    return to_name(path.relative_to(root) if root.is_dir() else Path(path.name))
