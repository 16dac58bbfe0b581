"""Bytes of compressed files: members of gzip or frames of Zstandard, one after the other.

Other readers give up at the first damage, and that of Zstandard ends without a word where a file is cut off. Here
every loss is a `Gap`, and reading goes on at the next member.
"""

import contextlib
import io
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import zstandard

NO_FILLING = re.compile(rb"[^\s\0]")  # between records stand blanks, in padded files zeros
INPUT_BYTES = 2048  # decompressed at a time, to at most 2 MB of gzip or 64 MB of Zstandard
READ_BYTES = 1 << 16
MAX_WINDOW_BYTES = 1 << 27
MAX_DICTIONARY_BYTES = 16 << 20
RECORD = re.compile(rb"WARC/|filedesc:")  # how an archive begins that is not compressed, whatever its name says


class Gap(NamedTuple):
    """Bytes of a file that could not be decompressed."""

    reason: str  # "damaged" or, where the file ends too early, "truncated"
    size: int


class Gzip:
    """Members of RFC 1952."""

    magic, error = b"\x1f\x8b\x08", zlib.error

    def __init__(self, _: BinaryIO):
        """Members share nothing."""

    def member(self) -> Any:
        """A decompressor of one."""
        return zlib.decompressobj(31)


class Zstandard:
    """Frames of RFC 8878. A file of archive.org begins with a dictionary for all of them, in a frame of its own."""

    magic, error = b"\x28\xb5\x2f\xfd", zstandard.ZstdError
    dictionary_magic = b"\x5d\x2a\x4d\x18"

    def __init__(self, file: BinaryIO):
        self.options = {"max_window_size": MAX_WINDOW_BYTES}
        if file.read(4) != self.dictionary_magic:
            return
        size = int.from_bytes(file.read(4), "little")
        payload = file.read(min(size, MAX_DICTIONARY_BYTES))
        with contextlib.suppress(zstandard.ZstdError):  # without it, the frames that need it are damaged
            if payload.startswith(self.magic):
                payload = zstandard.ZstdDecompressor().stream_reader(payload).read(MAX_DICTIONARY_BYTES)
            self.options["dict_data"] = zstandard.ZstdCompressionDict(payload)

    def member(self) -> Any:
        """A decompressor of one."""
        return zstandard.ZstdDecompressor(**self.options).decompressobj()


def pieces(file: BinaryIO, name: str) -> Iterator[bytes | Gap]:
    """What a file holds, compressed or not. An empty piece marks the end of a member."""
    head = file.read(16)
    file.seek(0)
    ending = name[name.rfind(".") :].lower()
    if head.startswith(Gzip.magic):
        yield from _members(file, Gzip(file))
    elif ending not in (".gz", ".zst") or RECORD.match(head):
        yield from iter(lambda: file.read(READ_BYTES), b"")
    else:
        yield from _members(file, Gzip(file) if ending == ".gz" else Zstandard(file))


def _members(file: BinaryIO, codec: Gzip | Zstandard) -> Iterator[bytes | Gap]:
    start = 0
    while (start := _after_padding(file, start)) is not None:
        end = start
        try:
            member = codec.member()
            while not member.eof:
                if not (data := file.read(INPUT_BYTES)):
                    yield Gap("truncated", end - start)
                    return
                end += len(data)
                if piece := member.decompress(data):
                    yield piece
        except codec.error:
            # Not from where it was noticed: the damaged member may have run on into the one after it.
            following = _find_member(file, max(start + 1, end - INPUT_BYTES), codec.magic)
            yield Gap("damaged", following - start)
            start = following
        else:
            start = end - len(member.unused_data)
            yield b""


def _after_padding(file: BinaryIO, start: int) -> int | None:
    """Where the next member begins, after zeros that some writers fill up with; None at the end of the file."""
    file.seek(start)
    while data := file.read(INPUT_BYTES):
        if rest := data.lstrip(b"\0"):
            start += len(data) - len(rest)
            file.seek(start)
            return start
        start += len(data)
    return None


def _find_member(file: BinaryIO, start: int, magic: bytes) -> int:
    """Where the next member may begin, at `start` or after; the end of the file where none does."""
    file.seek(start)
    data = b""
    while more := file.read(READ_BYTES):
        data += more
        if (found := data.find(magic)) >= 0:
            return start + found
        kept = data[1 - len(magic) :]
        start += len(data) - len(kept)
        data = kept
    return start + len(data)


class Damaged(Exception):
    """A file that is to be read whole has a gap."""


class Whole(io.RawIOBase):
    """The decompressed bytes of a file of which nothing may be missing."""

    def __init__(self, file: BinaryIO, name: str):
        self.source = pieces(file, name)
        self.piece, self.at = b"", 0

    def readable(self) -> bool:
        """As `io` asks."""
        return True

    def readinto(self, buffer: memoryview) -> int:
        """The next bytes; none at the end."""
        while self.at == len(self.piece) and (piece := next(self.source, None)) is not None:
            if isinstance(piece, Gap):
                raise Damaged(piece.reason)
            self.piece, self.at = piece, 0
        part = self.piece[self.at : self.at + len(buffer)]
        buffer[: len(part)] = part
        self.at += len(part)
        return len(part)


class Bytes:
    """Pieces as one stream. At a gap it stands still until the gap is taken."""

    def __init__(self, source: Iterator[bytes | Gap]):
        self.source = source
        self.data, self.at, self.before = b"", 0, 0
        self.gap: Gap | None = None
        self.exhausted = self.is_border = False

    @property
    def place(self) -> int:
        """Bytes taken so far."""
        return self.before + self.at

    @property
    def ended(self) -> bool:
        """True where nothing is left."""
        return self.exhausted and self.at == len(self.data)

    def read(self, size: int) -> bytes:
        """So many bytes; fewer at a gap, at the end, and where a member begins with a record."""
        return b"".join(self._parts(size))

    def skip(self, size: int) -> int:
        """Passes over so many bytes, or fewer; returns how many."""
        return sum(map(len, self._parts(size)))

    def skip_filling(self) -> bool:
        """Passes over filling; False where a member or the file ends, or a gap comes, before another byte."""
        while not (found := NO_FILLING.search(self.data, self.at)):
            self.at = len(self.data)
            if not self._more() or not self.data:
                return False
        self.at = found.start()
        return True

    def line(self, most: int) -> bytes:
        """The line that follows, not taken; the end of a member ends it too."""
        while (end := self.data.find(b"\n", self.at, self.at + most)) < 0:
            size = len(self.data) - self.at
            if size >= most or not self._more() or len(self.data) == size:
                end = self.at + most - 1
                break
        return self.data[self.at : end + 1]

    def until(self, end: re.Pattern, most: int) -> bytes | None:
        """What follows up to and with a match of `end`; None, and nothing taken, where it does not come."""
        searched = self.at
        while not (found := end.search(self.data, max(self.at, searched), self.at + most)):
            seen = len(self.data) - self.at
            if seen >= most or not self._more():
                return None
            searched = self.at + seen - 3  # an end of four bytes may be cut
        return self.read(found.end() - self.at)

    def skip_to_line(self, hint: re.Pattern, fits: Callable[[bytes], bool], most: int) -> None:
        """Passes over lines up to one that fits; all that do hold the hint. The end of a member ends a line too."""
        while True:
            if found := hint.search(self.data, self.at):
                self.at = max(self.at, self.data.rfind(b"\n", self.at, found.start()) + 1)
                line = self.line(most)
                if fits(line):
                    return
                self.at += len(line)
                continue
            last_line = self.data.rfind(b"\n", self.at) + 1
            self.at = max(self.at, last_line, len(self.data) - most)
            if not self._more():
                self.at = len(self.data)
                return
            if self.is_border:
                self.at = len(self.data)

    def take_gap(self) -> Gap | None:
        """The gap it stands at, if any; what comes before the gap is passed over."""
        gap, self.gap = self.gap, None
        if gap:
            self.at = len(self.data)
        return gap

    def _parts(self, size: int) -> Iterator[bytes]:
        while size > 0:
            if self.at == len(self.data):
                is_border = self.is_border
                if not self._more() or (is_border and RECORD.match(self.data)):
                    return  # whoever said how many bytes come was wrong
            part = self.data[self.at : self.at + size]
            self.at += len(part)
            size -= len(part)
            yield part

    def _more(self) -> bool:
        """Another piece behind what is not taken; False at a gap and at the end."""
        piece = None if self.gap else next(self.source, None)
        if piece is None:
            self.exhausted = not self.gap
        elif isinstance(piece, Gap):
            self.gap = piece
        else:
            self.before += self.at
            self.data, self.at, self.is_border = self.data[self.at :] + piece, 0, not piece
            return True
        return False
