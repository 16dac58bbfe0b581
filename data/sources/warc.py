"""Web archives: the pages of WARC and ARC files, and the texts of WET files.

As in datatrove's reader, documents are the responses that are HTML, of any HTTP status, and the conversions that are
plain text; here also resources that are HTML, pages that an archiver stored without their HTTP head. What else these
three hold is dropped as `media_type`; requests, metadata and revisits are no documents.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from data.document import Document, Dropped
from data.sources import http, page
from data.sources.archive import Damage, Headers, Record, records

packages = (*page.packages, "brotli")
PAGES = frozenset({"response", "resource", "conversion"})  # kinds of records
MEDIA_TYPES = {page.HTML, "application/xhtml+xml"}
MOST_BYTES = page.MAX_PAGE_BYTES + http.MAX_HEAD_BYTES  # of a record with a page
# How HTML begins where nobody says what it is, after comments; each part is matched once, in one way.
MARKUP = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*+(?>(?:<!--.*?-->)\s*+){,8}+"
    rb"<(?:!doctype\s+html|html|head|title|meta|body|script|table|div|h1|p|a)[\s>]",
    re.IGNORECASE | re.DOTALL,
)
CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)


def read(path: Path, name: str) -> Iterator[Document | Dropped]:
    """The documents of one file."""
    for item in records(path, PAGES, MOST_BYTES):
        identifier = _identifier(item.headers) or f"{name}:{item.place}"
        if isinstance(item, Damage):
            yield Dropped(identifier, "warc", item.reason, item.size)
        elif item.headers.get("warc-type") in PAGES:
            yield _document(item, identifier)


def _identifier(headers: Headers) -> str:
    """`<urn:uuid:1234>` as 1234; empty where it cannot be one."""
    identifier = headers.get("warc-record-id", "").strip("<>").removeprefix("urn:uuid:")
    return identifier if identifier.isprintable() else ""


def _document(record: Record, identifier: str) -> Document | Dropped:
    headers, response = record.headers, http.parse(record.block)
    stated = (response.fields or headers).get("content-type", "")
    media_type = _media_type(headers.get("warc-identified-payload-type") or stated)
    is_text = media_type == "text/plain" and headers["warc-type"] == "conversion"
    if media_type and not is_text and media_type not in MEDIA_TYPES:
        return Dropped(identifier, "warc", "media_type", record.size)
    if record.size > MOST_BYTES:
        return Dropped(identifier, "warc", "page_too_large", record.size)
    payload = http.content(response, page.MAX_PAGE_BYTES)
    if not payload.strip():
        return Dropped(identifier, "warc", "no_text", record.size)
    if not media_type and not MARKUP.match(payload):
        return Dropped(identifier, "warc", "media_type", record.size)
    charset = CHARSET.search(stated)
    meta = {
        page.MEDIA_TYPE: "" if is_text else page.HTML,
        "date": headers.get("warc-date", ""),
        "truncated": headers.get("warc-truncated", ""),
    }
    return page.to_document(
        payload,
        charset[1] if charset else "",
        id=identifier,
        source="warc",
        url=headers.get("warc-target-uri", "").strip("<>"),
        meta={name: value for name, value in meta.items() if value},
    )


def _media_type(stated: str) -> str:
    """Without parameters, in lower case; empty where it says nothing of the page."""
    name = stated.partition(";")[0].strip().lower()
    return name if "/" in name and name != "application/http" else ""
