"""A page of the web from its bytes: the characters, whatever the charset, or why there are none."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from data.document import Document, Dropped
from data.packages import package

MAX_PAGE_BYTES = 16 << 20
packages = ("resiliparse",)  # whose versions count
HTML = "text/html"
MEDIA_TYPE = "media_type"  # in the `meta` of a document that is a page still; extraction makes text of it
DECLARED = re.compile(
    rb"""<(?:meta\s[^>]*?charset|\?xml\s[^>]*?encoding)\s*=\s*["']?\s*([a-z0-9_.:-]+)""", re.IGNORECASE
)
DECLARATION_BYTES = 4096  # from the beginning, in which a page may declare its charset
BYTE_ORDERS = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}  # by a mark at the beginning
# Control characters other than white space are not found in pages.
C0 = bytes({*range(0x20), 0x7F} - {*b"\t\n\f\r"})
C1 = re.compile(rb"\xc2[\x80-\x9f]")  # in UTF-8
MOST_FOREIGN = 0.01  # of the bytes; more of these or of U+FFFD mean another charset, or no text at all


def to_document(payload: bytes, charset: str = "", **given: Any) -> Document | Dropped:
    """A document with the page as its text and what else is given; `charset` is what a server said of it."""
    if len(payload) > MAX_PAGE_BYTES:
        return Dropped(given["id"], given["source"], "page_too_large", len(payload))
    text = decode(payload, charset)
    if text is None:
        return Dropped(given["id"], given["source"], "undecodable", len(payload))
    return Document(text=text, **given)


def decode(payload: bytes, charset: str = "") -> str | None:
    """The characters: of UTF-8 if they are that, else of the charset that is declared, else of the likeliest.

    None where none of them gives text. What a charset does not know, and NUL, becomes U+FFFD.
    """
    for text in _readings(payload, charset):
        if _is_text(text.encode()):
            return text.removeprefix("\ufeff").replace("\0", "\ufffd")
    return None


def _readings(payload: bytes, charset: str) -> Iterator[str]:
    with contextlib.suppress(UnicodeDecodeError):
        yield payload.decode("utf-8")
    encoding = package("resiliparse.parse.encoding")
    for name in _charsets(payload, charset, encoding.detect_encoding):
        if known := encoding.map_encoding_to_html5(name, fallback_utf8=False):
            yield payload.decode(known, "replace")


def _charsets(payload: bytes, stated: str, detect: Callable[[bytes], str | None]) -> Iterator[str]:
    """Names, the most trusted first; the last takes a while to find."""
    yield BYTE_ORDERS.get(payload[:2], stated)
    if declared := DECLARED.search(payload, 0, DECLARATION_BYTES):
        yield declared[1].decode("ascii")
    yield detect(payload) or ""


def _is_text(payload: bytes) -> bool:
    foreign = len(payload) - len(payload.translate(None, C0))
    foreign += len(C1.findall(payload)) + payload.count("\ufffd".encode())
    return foreign <= MOST_FOREIGN * len(payload)
