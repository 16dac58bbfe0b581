"""Records of WARC and ARC files, whatever has happened to the files.

A record is given when it is whole: as long as it says, in a member whose checksum is right. What is not is a
`Damage`, and reading goes on where the next record begins. fastwarc ends without a word where many a file is cut
off, warcio at an error of decompression, and warcio takes as much memory as a line is long.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from data.sources.compressed import Bytes, pieces
from data.sources.http import END_OF_HEAD, MAX_HEAD_BYTES, header_fields

MAX_DAMAGES = 1000  # of a file; then the rest is given up
LENGTH = re.compile(r"[0-9]{1,15}")
ARC_DATE = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)\d*")
ARC_MIDDLE = re.compile(rb" [0-9a-fA-F.:]{2,45} (\d{4,20}) ")  # IP address and date, after a URL that may hold spaces

Headers = dict[str, str]  # names in lower case


class Record(NamedTuple):
    """One record."""

    place: int  # bytes of the decompressed file before it
    headers: Headers
    block: bytes  # empty where nobody asked for it; of one that is too long, the beginning
    size: int  # of the block in the file


class Damage(NamedTuple):
    """What could not be read."""

    place: int
    headers: Headers  # of the record, where they could be read
    reason: str  # of those below
    size: int


DAMAGED, TRUNCATED = "damaged_archive", "truncated_record"
REASONS = {"damaged": DAMAGED, "truncated": TRUNCATED}  # by what befell a gap


class Form(NamedTuple):
    """What a record looks like."""

    hint: re.Pattern  # that its first line holds
    begins: Callable[[bytes], bool]  # with this line
    read_head: Callable[[Bytes], Headers | None]


def records(path: Path, kinds: frozenset[str], most: int) -> Iterator[Record | Damage]:
    """All records, in order. Those of `kinds` come with their block, or the first 64 KB of one over `most` bytes."""
    form = ARC if path.name.lower().endswith((".arc", ".arc.gz")) else WARC
    with path.open("rb") as file:
        source, damages = Bytes(pieces(file, path.name)), 0
        while not source.ended:
            if damages == MAX_DAMAGES:
                yield Damage(source.place, {}, DAMAGED, os.fstat(file.fileno()).st_size - file.tell())
                return
            item = _next(source, form, kinds, most)
            damages += isinstance(item, Damage)
            if item:
                yield item


def _next(source: Bytes, form: Form, kinds: frozenset[str], most: int) -> Record | Damage | None:
    """The record or damage that follows, or None where a member or the file ends."""
    found, place = source.skip_filling(), source.place
    if not found:
        return _damage(source, place, {}, DAMAGED) if source.gap else None
    headers = form.read_head(source)
    if headers is None:
        reason = TRUNCATED if source.exhausted else DAMAGED
        if source.place == place:
            source.skip(len(source.line(MAX_HEAD_BYTES)))
        source.skip_to_line(form.hint, form.begins, MAX_HEAD_BYTES)
        return _damage(source, place, {}, reason)
    size, wanted = int(headers["content-length"]), 0
    if headers.get("warc-type") in kinds:
        wanted = size if size <= most else MAX_HEAD_BYTES
    block = source.read(wanted)
    if len(block) == wanted and source.skip(size - wanted) == size - wanted:
        source.skip_filling()  # to the end of the member, where its checksum is
        if not source.gap:
            return Record(place, headers, block, size)
    return _damage(source, place, headers, TRUNCATED)


def _damage(source: Bytes, place: int, headers: Headers, reason: str) -> Damage:
    """What was lost since `place`, and for which reason where decompression does not know better."""
    if gap := source.take_gap():
        return Damage(place, headers, REASONS[gap.reason], gap.size)
    return Damage(place, headers, reason, source.place - place)


def _read_warc_head(source: Bytes) -> Headers | None:
    if not _begins_warc(source.line(MAX_HEAD_BYTES)):
        return None
    block = source.until(END_OF_HEAD, MAX_HEAD_BYTES)
    headers = header_fields(block or b"")
    return headers if LENGTH.fullmatch(headers.get("content-length", "")) else None


def _begins_warc(line: bytes) -> bool:
    return line.startswith(b"WARC/")


def _read_arc_head(source: Bytes) -> Headers | None:
    line = source.line(MAX_HEAD_BYTES)
    headers = _arc_fields(line)
    if headers:
        source.skip(len(line))
    return headers


def _arc_fields(line: bytes) -> Headers | None:
    """URL, IP address, date, media type and length, as a WARC file names them."""
    *_, middle = None, *ARC_MIDDLE.finditer(line)
    if middle is None:
        return None
    url = line[: middle.start()].decode("utf-8", "replace")
    media_type, _, length = line[middle.end() :].decode("utf-8", "replace").strip().rpartition(" ")
    if ":" not in url or not LENGTH.fullmatch(length):
        return None
    return {
        "warc-type": "warcinfo" if url.startswith("filedesc:") else "response",
        "warc-target-uri": url,
        "warc-date": ARC_DATE.sub(r"\1-\2-\3T\4:\5:\6Z", middle[1].decode()),
        "content-type": media_type,
        "content-length": length,
    }


WARC = Form(re.compile(rb"WARC/"), _begins_warc, _read_warc_head)
ARC = Form(ARC_MIDDLE, lambda line: _arc_fields(line) is not None, _read_arc_head)
