"""Files elsewhere, by `https://`, `s3://` or `gs://`: one, those that a pattern names, or those of a list of paths.

    https://data.commoncrawl.org/crawl-data/CC-MAIN-2024-22/warc.paths.gz     a list of Common Crawl's
    warc.paths                                                                the same here, perhaps a part of it
    s3://bucket/folder/*.parquet                                              a pattern

A file is fetched into a temporary one (`TMPDIR` says where) when a worker comes to it, and read by its ending.
"""

import collections
import contextlib
import hashlib
import io
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError, suggest
from core.progress import say
from data.document import Document, Dropped
from data.packages import versions
from data.sources import folder
from data.sources.compressed import Damaged, Whole
from data.sources.download import HTTP, STORES, Remote, describe, fetch, matches, scheme

LISTS = (".paths", ".paths.gz")
COMMON_CRAWL = "https://data.commoncrawl.org/"  # where the paths of a list that lies here lead
OPEN_FILES = Path("/proc/self/fd")
MAX_LIST_BYTES = 256 << 20  # decompressed; 100,000 paths have 14 MB


def is_remote(path: str) -> bool:
    """True for what this module reads: an address, or a list of paths."""
    return bool(scheme(path)) or path.lower().endswith(LISTS)


def inputs(root: str) -> dict[str, Any]:
    """What the documents depend on: size and tag of every file; of a list, the paths, whose files do not change."""
    if _is_list(root):
        urls = _listed(root)
        digest = hashlib.blake2b("\n".join(urls).encode(), digest_size=16).hexdigest()
        return {"files": len(urls), "paths": digest, **_versions(urls)}
    files, others = _files(root)
    if others:
        say(f"data.path={root}: {folder.told(others)}")
    return {"files": [list(file) for file in files], **_versions(file.url for file in files)}


def partitions(root: str) -> list[list[str]]:
    """Groups of addresses that workers read on their own."""
    if _is_list(root):
        return [[url] for url in _listed(root)]
    return folder.grouped((file.url, file.size or folder.MOST_BYTES) for file in _files(root)[0])


def read(_: str, partition: list[str], columns: Mapping[str, str] | None = None) -> Iterator[Document | Dropped]:
    """The documents of one group of files; the address of a file stands where its name would."""
    for url in partition:
        name = _name(url)
        with _temporary("file" + folder.ending(Path(name))) as path:
            fetch(url, path)
            try:
                yield from folder.read_file(path, name, columns)
            except UserError as error:
                raise UserError(str(error).replace(str(path), name)) from error


@contextlib.contextmanager
def _temporary(name: str) -> Iterator[Path]:
    """A path of this name to write and read. Where there is /proc, a kill leaves no more than a link to nothing."""
    with tempfile.TemporaryDirectory(prefix="quintet-") as where, tempfile.TemporaryFile() as file:
        path = Path(where, name)
        if OPEN_FILES.is_dir():
            path.symlink_to(OPEN_FILES / str(file.fileno()))  # a file without a name, which ends with this process
        yield path


def _is_list(root: str) -> bool:
    return _name(root).lower().endswith(LISTS)


def _name(url: str) -> str:
    """The address without what follows `?` or `#`, which may be a signature that nobody else is to see."""
    return url.partition("?")[0].partition("#")[0] if scheme(url) in HTTP else url


def _versions(urls: Iterable[str]) -> dict[str, dict[str, str]]:
    return versions(folder.READERS[ending] for ending in {folder.ending(Path(_name(url))) for url in urls})


def _files(root: str) -> tuple[list[Remote], collections.Counter]:
    """The file that `root` names, or those of a pattern that are read, and how many are not, by their endings."""
    _require_scheme(root)
    named = matches(root) if "*" in _name(root) else [Remote(root, None, "")]
    found = [file for file in named if folder.ending(Path(_name(file.url)))]
    if not found:
        raise UserError(f"data.path={root} names none of the files that are read ({', '.join(folder.READERS)})")
    if "*" not in _name(root):
        return [describe(root)], collections.Counter()
    paths = (Path(_name(file.url)) for file in named)
    return found, collections.Counter(folder.any_ending(path.name) for path in paths if not folder.ending(path))


def _require_scheme(root: str) -> None:
    known = [*HTTP, *STORES]
    if scheme(root) not in known:
        raise UserError(f"data.path={root}: {scheme(root)}:// is not read{suggest(scheme(root), known)}")


def _listed(root: str) -> list[str]:
    """The addresses of a list of paths: relative to the server that the list comes from, or to Common Crawl's."""
    if not scheme(root):
        return _parse_list(Path(root).expanduser(), root, COMMON_CRAWL)
    _require_scheme(root)
    with _temporary("list.paths" + (".gz" if _name(root).lower().endswith(".gz") else "")) as path:
        fetch(root, path, MAX_LIST_BYTES)
        return _parse_list(path, root, "/".join(root.split("/")[:3]) + "/")


def _parse_list(path: Path, root: str, base: str) -> list[str]:
    try:
        with path.open("rb") as file:
            payload = io.BufferedReader(Whole(file, path.name)).read(MAX_LIST_BYTES + 1)
        if len(payload) > MAX_LIST_BYTES:
            raise UserError(f"{root} is longer than a list of paths can be ({MAX_LIST_BYTES:,} bytes); split it")
        lines = payload.decode("utf-8").splitlines()
    except (OSError, Damaged, UnicodeDecodeError) as error:
        raise UserError(f"{root} cannot be read ({error})") from error
    urls = [
        base + _relative(line.strip(), f"{root}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not urls:
        raise UserError(f"{root} names no files")
    return urls


def _relative(line: str, place: str) -> str:
    """The path of a line. It stays below the address that it is relative to, whoever wrote the list."""
    if scheme(line) or line.startswith("/") or ".." in re.split(r"[/\\]", line) or not line.isprintable():
        raise UserError(f"{place}: {line[:200]!r} is not a relative path")
    if folder.ending(Path(line)) is None:
        raise UserError(f"{place}: {line[:200]!r} is none of the files that are read ({', '.join(folder.READERS)})")
    return line
