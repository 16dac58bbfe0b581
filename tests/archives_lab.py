"""Web archives made for tests."""

import gzip
import struct

import zstandard

PAGE = "<!doctype html><title>T</title><p>{} the text of a page</p>"


def record(kind: str, block: bytes, **headers: object) -> bytes:
    """A WARC record; `WARC_Date="x"` is a header."""
    given = {"WARC-Type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}}
    given.setdefault("Content-Length", len(block))
    head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return b"WARC/1.0\r\n" + head.encode() + b"\r\n" + block + b"\r\n\r\n"


def http(body: bytes, status: str = "200 OK", **headers: object) -> bytes:
    """An HTTP response; it is HTML unless it says otherwise."""
    given = {"Content-Type": "text/html", **{name.replace("_", "-"): value for name, value in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in given.items() if value is not None)
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def response(number: int, body: bytes | None = None, warc: dict | None = None, **headers: object) -> bytes:
    """A response whose id is 00000001 for number 1."""
    body = PAGE.format(number).encode() if body is None else body
    given = {
        "WARC_Record_ID": f"<urn:uuid:{number:08d}>",
        "WARC_Target_URI": f"http://example.com/{number}",
        "WARC_Date": "2024-05-18T01:58:10Z",
        "Content_Type": "application/http; msgtype=response",
        **(warc or {}),
    }
    return record("response", http(body, **headers), **given)


def crawl(count: int) -> list[bytes]:
    """Records as a crawler writes them: information, then a request and a response of each page."""
    found = [record("warcinfo", b"software: none\r\n", WARC_Record_ID="<urn:uuid:info>")]
    for number in range(count):
        request = b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"
        found += [record("request", request, WARC_Record_ID=f"<urn:uuid:request{number}>"), response(number)]
    return found


def arc(count: int) -> list[bytes]:
    """The same pages as an ARC file."""
    version = b"1 0 None\nURL IP-address Archive-date Content-type Archive-length\n"
    found = [b"filedesc://a.arc 0.0.0.0 20240518015810 text/plain %d\n%s\n" % (len(version), version)]
    for number in range(count):
        block = http(PAGE.format(number).encode())
        line = f"http://example.com/{number} 127.0.0.1 20240518015810 text/html {len(block)}\n"
        found.append(line.encode() + block + b"\n")
    return found


def gz(records: list[bytes]) -> bytes:
    """A member of gzip each."""
    return b"".join(gzip.compress(one, mtime=0) for one in records)


def zst(records: list[bytes]) -> bytes:
    """A frame of Zstandard each."""
    return b"".join(map(zstandard.compress, records))


def zst_with_dictionary(records: list[bytes], *, compressed: bool) -> bytes:
    """As archive.org writes them: a dictionary first."""
    dictionary = zstandard.ZstdCompressionDict(b"HTTP/1.1 200 OK Content-Type: text/html WARC-Target-URI" * 20)
    payload = dictionary.as_bytes()
    payload = zstandard.compress(payload) if compressed else payload
    compressor = zstandard.ZstdCompressor(dict_data=dictionary)
    head = struct.pack("<II", 0x184D2A5D, len(payload)) + payload
    return head + b"".join(map(compressor.compress, records))
