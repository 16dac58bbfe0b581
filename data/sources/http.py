"""HTTP responses as crawlers store them: the fields of the head, and the body without chunks and compression.

What a head says is often not so, since archives store bodies that they have decoded with the head as it came. So a
body that is not in the coding that is named stays as it is, and one that is damaged is what comes before the damage.
"""

import functools
import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import zstandard

from data.packages import package

END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
FOLDED = re.compile(r"\r?\n[ \t]+")
CHUNK = re.compile(rb"\s*([0-9a-fA-F]{1,8})[ \t]*(?:;[^\n]*)?\r?\n")
MAX_HEAD_BYTES = 64 << 10
MAX_CODINGS = 4
GZIP = 31  # zlib's word for it
INPUT_BYTES, OUTPUT_BYTES = 2048, 1 << 20  # decoded at a time
MAX_WINDOW_BYTES = 8 << 20  # what RFC 9659 allows of Zstandard


class NotDecoded(Exception):
    """The rest is not in the coding that is named."""


class Response(NamedTuple):
    """The head and the body as it is stored."""

    fields: dict[str, str]  # names in lower case
    body: bytes


def header_fields(head: bytes) -> dict[str, str]:
    """Names in lower case and values, of repeated ones the first; the first line is not one of them."""
    lines = FOLDED.sub(" ", head.decode("utf-8", "replace")).split("\n")[1:]
    fields: dict[str, str] = {}
    for name, colon, value in (line.partition(":") for line in lines):
        if colon:
            fields.setdefault(name.strip().lower(), value.strip())
    return fields


def parse(block: bytes) -> Response:
    """A response; a block that is none is all body."""
    if not block.startswith(b"HTTP/"):
        return Response({}, block)
    end = END_OF_HEAD.search(block, 0, MAX_HEAD_BYTES)
    if end is None:
        return Response(header_fields(block[:MAX_HEAD_BYTES]), b"")
    return Response(header_fields(block[: end.start()]), block[end.end() :])


def content(response: Response, most: int) -> bytes:
    """The body without chunks and compression; of what is longer, little more than so many bytes."""
    body = response.body
    if "chunked" in response.fields.get("transfer-encoding", "").lower():
        body = _without_chunks(body)
    codings = response.fields.get("content-encoding", "").lower().split(",")
    for coding in reversed(codings[:MAX_CODINGS]):
        for decoder in DECODERS.get(coding.strip(), ()):
            decoded = _decode(decoder(body), most)
            if decoded is not None:
                body = decoded
                break
    return body


def _without_chunks(body: bytes) -> bytes:
    """RFC 9112; the body itself where it does not begin with a chunk."""
    parts, at = [], 0
    while (found := CHUNK.match(body, at)) and (size := int(found[1], 16)):
        parts.append(body[found.end() : found.end() + size])
        at = found.end() + size
    return b"".join(parts) if found or parts else body


def _decode(pieces: Iterator[bytes], most: int) -> bytes | None:
    """The pieces that can be decoded; None where not even the first can."""
    parts: list[bytes] = []
    try:
        for piece in pieces:
            parts.append(piece)
            most -= len(piece)
            if most < 0:
                break
    except NotDecoded:
        return b"".join(parts) or None
    return b"".join(parts)


def _inflate(body: bytes, bits: int) -> Iterator[bytes]:
    """Members of gzip, or one stream of another format."""
    start = 0
    try:
        while start < len(body):
            member = zlib.decompressobj(bits)
            while start < len(body) and not member.eof:
                yield member.decompress(body[start : start + INPUT_BYTES])
                start += INPUT_BYTES
            start = min(start, len(body)) - len(member.unused_data)
            if bits != GZIP:
                break
    except zlib.error as error:
        raise NotDecoded from error


def _brotli(body: bytes) -> Iterator[bytes]:
    brotli = package("brotli")
    decompressor = brotli.Decompressor()
    try:
        for start in range(0, len(body), INPUT_BYTES):
            yield decompressor.process(body[start : start + INPUT_BYTES], output_buffer_limit=OUTPUT_BYTES)
            while not decompressor.can_accept_more_data():
                yield decompressor.process(b"", output_buffer_limit=OUTPUT_BYTES)
    except brotli.error as error:
        raise NotDecoded from error


def _zstandard(body: bytes) -> Iterator[bytes]:
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).stream_reader(body)
        while piece := reader.read(OUTPUT_BYTES):
            yield piece
    except zstandard.ZstdError as error:
        raise NotDecoded from error


gunzip, inflate_zlib, inflate_raw = (functools.partial(_inflate, bits=bits) for bits in (GZIP, 15, -15))
DECODERS = {
    "gzip": (gunzip,),
    "x-gzip": (gunzip,),
    "deflate": (inflate_zlib, inflate_raw),  # zlib's format, and in some servers what is inside of it
    "br": (_brotli,),
    "zstd": (_zstandard,),
}
