"""Any folder of .txt, .md, .html, .jsonl(.gz, .zst) and .parquet files, each file by its ending."""

from collections.abc import Callable, Iterator
from pathlib import Path

from core.errors import UserError
from data.document import Document, Dropped
from data.sources import html, jsonl, parquet, text

Reader = Callable[[Path, str], Iterator[Document | Dropped]]

READERS: dict[str, Reader] = {
    ".txt": text.read,
    ".md": text.read,
    ".html": html.read,
    ".htm": html.read,
    ".jsonl": jsonl.read,
    ".jsonl.gz": jsonl.read,
    ".jsonl.zst": jsonl.read,
    ".parquet": parquet.read,
}
FILES_PER_PARTITION = 256  # of small files; a partition also ends after this many bytes
BYTES_PER_PARTITION = 64 << 20


def ending(path: Path) -> str | None:
    """The known ending of a file's name, or None."""
    name = path.name.lower()
    return next((suffix for suffix in READERS if name.endswith(suffix)), None)


def files(root: Path) -> list[Path]:
    """Readable files below the folder in name order; links that leave it are not followed."""
    if not root.exists():
        raise UserError(f"data.path={root} does not exist")
    if root.is_file():
        found = [root] if ending(root) else []
    else:
        inside = root.resolve()
        found = [
            path
            for path in sorted(root.rglob("*"))
            if ending(path) and path.is_file() and path.resolve().is_relative_to(inside)
        ]
    if not found:
        raise UserError(f"data.path={root} holds none of the files that are read ({', '.join(READERS)})")
    return found


def partitions(root: Path) -> list[list[str]]:
    """Groups of files, by path relative to the folder, that workers read on their own."""
    groups: list[list[str]] = []
    room = 0
    for path in files(root):
        size = path.stat().st_size
        if not groups or size > room or len(groups[-1]) >= FILES_PER_PARTITION:
            groups.append([])
            room = BYTES_PER_PARTITION
        groups[-1].append(_name(root, path))
        room -= size
    return groups


def inputs(root: Path) -> dict:
    """What the documents depend on: name, size and time of change of every file."""
    found = ((path, path.stat()) for path in files(root))
    return {"files": [[_name(root, path), stat.st_size, stat.st_mtime_ns] for path, stat in found]}


def read(root: Path, partition: list[str]) -> Iterator[Document | Dropped]:
    """The documents of one group of files."""
    for name in partition:
        path = root / name if root.is_dir() else root
        try:
            yield from READERS[ending(path)](path, name)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror or error})") from error


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix() if root.is_dir() else path.name
