"""FineWeb's filter of addresses: blocked domains and pages, and words that give an address away.

The lists come with the package datatrove (Apache-2.0; the domains are UT1's), brought by `pip install --no-deps
datatrove`; nothing of it is imported. Its 4.6 million domains take 741 MB in each of datatrove's workers. Here they
are a sorted array of 64-bit hashes in a file, made once, which all workers map: 37 MB that they share.
"""

import bisect
import dataclasses
import functools
import gzip
import hashlib
import importlib.util
import re
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from core.config import require
from core.errors import UserError
from core.files import atomic_write, hash_file
from data.curate.cache import made_once
from data.curate.step import Outcome
from data.packages import package

ARCHIVE = "url_filterblacklistsv0_3_0.tar.gz"
HASHED = ("domains", "urls")  # lists in it
WORDS = ("banned_words", "soft_banned_words", "banned_subwords")
LISTS = (ARCHIVE, *(f"{name}.txt" for name in WORDS))
NOT_WORDS = re.compile(r"[^a-zA-Z0-9]+")
MAX_LIST_BYTES = 1 << 30  # of one list in the archive


@dataclasses.dataclass(frozen=True)
class UrlFilter:
    """Drops documents by their address; one without `://`, as a file has, stays."""

    version: ClassVar[int] = 1
    packages: ClassVar[tuple[str, ...]] = ("tldextract",)
    lists: str = ""  # a folder with datatrove's lists; empty is that of the installed package
    soft_word_threshold: int = 2  # of words that alone say nothing

    def __post_init__(self):
        require(self.soft_word_threshold > 0, f"soft_word_threshold={self.soft_word_threshold} must be positive")

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        """The reason for each address."""
        rules = _rules(self._folder(), _stamp(self._folder()))
        urls = batch.column("url").to_pylist()
        return Outcome(batch, [rules.reason(url, self.soft_word_threshold) if "://" in url else None for url in urls])

    def prepare(self) -> None:
        """Makes the arrays of hashes before workers ask for them at once."""
        _hashes(self._folder())

    def files(self) -> list[Path]:
        """The lists."""
        return [self._folder() / name for name in LISTS]

    def _folder(self) -> Path:
        if self.lists:
            folder = Path(self.lists).expanduser()
        else:
            found = importlib.util.find_spec("datatrove")
            if found is None:
                raise UserError(
                    "url_filter: its lists are not here; `pip install --no-deps datatrove` brings them, or `lists` "
                    "names their folder"
                )
            folder = Path(found.submodule_search_locations[0]) / "assets"
        for name in LISTS:
            if not (folder / name).is_file():
                raise UserError(f"url_filter: {folder} has no {name}; datatrove 0.10.1 has it")
        return folder


class Rules(NamedTuple):
    """What the lists say, ready to be asked."""

    domains: memoryview  # sorted hashes
    urls: memoryview
    hard: frozenset[str]
    soft: frozenset[str]
    parts: tuple[str, ...]
    split: Callable[[str], "object"]  # an address into its parts

    def reason(self, url: str, soft_words: int) -> str | None:
        """Why an address is refused, as datatrove 0.10 calls it (pipeline/filters/url_filter.py)."""
        place = self.split(url)
        if _is_in(place.top_domain_under_public_suffix, self.domains):
            return "domain"
        if _is_in(place.fqdn, self.domains):
            return "subdomain"
        if _is_in(url, self.urls):
            return "url"
        words = set(NOT_WORDS.split(url))
        if not self.hard.isdisjoint(words):
            return "hard_blacklisted"
        if len(self.soft & words) >= soft_words:
            return "soft_blacklisted"
        joined = NOT_WORDS.sub("", url).lower()
        return "blacklisted_subword" if any(part in joined for part in self.parts) else None


def _is_in(name: str, hashes: memoryview) -> bool:
    place = bisect.bisect_left(hashes, number := _hash(name))
    return place < len(hashes) and hashes[place] == number


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _stamp(folder: Path) -> tuple[tuple[int, int], ...]:
    """Changes when a list does."""
    stats = ((folder / name).stat() for name in LISTS)
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)


@functools.cache
def _rules(folder: Path, stamp: tuple[tuple[int, int], ...]) -> Rules:
    """The rules of this process, read once for each state of the lists."""
    del stamp
    domains, urls = map(_mapped, _hashes(folder))
    # The list of suffixes in the package: no download.
    extract = package("tldextract").TLDExtract(suffix_list_urls=(), cache_dir=None)
    hard, soft, parts = (_words(folder / f"{name}.txt") for name in WORDS)
    return Rules(domains, urls, hard, soft, tuple(sorted(parts)), extract)


def _mapped(path: Path) -> memoryview:
    try:
        return memoryview(np.load(path, mmap_mode="r"))
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it, and it is made again") from error


def _words(path: Path) -> frozenset[str]:
    """A list's words as the filter compares them; of some nothing is left."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"url_filter: {path} cannot be read ({error})") from error
    return frozenset(NOT_WORDS.sub("", line).lower() for line in lines if not line.startswith("#")) - {""}


def _hashes(folder: Path) -> list[Path]:
    """Files of sorted hashes of the domains and the addresses, made where they are not there."""
    archive = folder / ARCHIVE
    made_from = f"{UrlFilter.version}-{hash_file(archive)[:16]}"

    def make(paths: list[Path]) -> None:
        try:
            with tarfile.open(archive, "r:gz") as lists:
                for path, name in zip(paths, HASHED):
                    with atomic_write(path) as out:
                        np.save(out, _sorted(lists, name))
        except (tarfile.TarError, KeyError, EOFError, UnicodeDecodeError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"url_filter: {archive} is no archive of lists ({error})") from error

    return made_once([f"{name}-{made_from}.npy" for name in HASHED], make, f"the lists of {archive}")


def _sorted(lists: tarfile.TarFile, name: str) -> np.ndarray:
    """Hashes of the lines of a list."""
    member = lists.getmember(name)
    file = lists.extractfile(member)
    if file is None or member.size > MAX_LIST_BYTES:
        raise tarfile.TarError(f"{name} is no list")
    lines = (line.decode().strip() for line in file if not line.startswith(b"#"))
    return np.unique(np.fromiter(map(_hash, lines), np.uint64))
