"""TFRecord files, read without TensorFlow: records behind their length, each with a checksum.

length (8 bytes), its CRC (4), the record, its CRC (4); little-endian, CRC-32C turned by 15 bits plus a constant
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from core.errors import UserError
from data.packages import package

LENGTH, CRC = struct.Struct("<Q"), struct.Struct("<I")
MASK = 0xA282EAD8
MAX_RECORD_BYTES = 64 << 20


class Unread(NamedTuple):
    """A record that is not given, and why."""

    reason: str
    size: int


def read(path: Path, first: int, end: int) -> Iterator[bytes | Unread]:
    """Records `first` up to `end`; those before are passed over by their lengths."""
    whole = path.stat().st_size
    with path.open("rb", buffering=1 << 20) as file:
        for number in range(end):
            size = _length(file, path, number)
            if file.tell() + size + CRC.size > whole:
                raise UserError(_damaged(path, f"it ends in record {number + 1:,}"))
            if number < first or size > MAX_RECORD_BYTES:
                file.seek(size + CRC.size, 1)
                if number >= first:
                    yield Unread("record_too_long", size)
                continue
            payload, crc = file.read(size), file.read(CRC.size)
            yield payload if CRC.unpack(crc)[0] == checksum(payload) else Unread("damaged_record", size)


def _length(file: IO[bytes], path: Path, number: int) -> int:
    """Of the next record; where that cannot be trusted, nothing behind it can be found."""
    head = file.read(LENGTH.size + CRC.size)
    if len(head) < LENGTH.size + CRC.size:
        raise UserError(_damaged(path, f"it ends before record {number + 1:,}"))
    length, crc = head[: LENGTH.size], head[LENGTH.size :]
    if CRC.unpack(crc)[0] != checksum(length):
        raise UserError(_damaged(path, f"the length of record {number + 1:,} does not have its checksum"))
    return LENGTH.unpack(length)[0]


def _damaged(path: Path, reason: str) -> str:
    return f"{path} is damaged ({reason}); fetch or prepare it again"


def checksum(payload: bytes) -> int:
    """CRC-32C as the format has it."""
    crc = package("google_crc32c", "tfds").value(payload)
    return ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF
