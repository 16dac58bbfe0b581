"""Plain text and Markdown: a file is a document, a long one several."""

import re
from collections.abc import Iterator
from pathlib import Path

from data.document import Document, Dropped

# A book in one file becomes documents of about this size, so that some of it can be held out.
LONG_TEXT = 50_000
MAX_FILE_BYTES = 1 << 30
# A paragraph with the blank lines after it, in the manner of Unix or of Windows.
PARAGRAPH = re.compile(r".+?(?:\n\n+|\r\n(?:\r\n)+|\Z)", re.DOTALL)


def read(path: Path, name: str) -> Iterator[Document | Dropped]:
    """The documents of one file."""
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        yield Dropped(name, "text", "file_too_large", size)
        return
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        yield Dropped(name, "text", "undecodable", size)
        return
    for index, piece in enumerate(split_long(text)):
        identifier = name if piece == text else f"{name}#{index}"
        yield Document(id=identifier, text=piece, source="text", url=name)


def split_long(text: str, limit: int = LONG_TEXT) -> Iterator[str]:
    """Cuts at blank lines where it can, into pieces of at most `limit` characters; joined they are the text."""
    if len(text) <= limit:
        yield text
        return
    piece = ""
    for part in _parts(text, limit):
        if piece and len(piece) + len(part) > limit:
            yield piece
            piece = ""
        piece += part
    yield piece


def _parts(text: str, limit: int) -> Iterator[str]:
    """Paragraphs; a longer one as its lines, a longer line cut wherever the limit falls."""
    for paragraph in (match[0] for match in PARAGRAPH.finditer(text)):
        lines = [paragraph] if len(paragraph) <= limit else paragraph.splitlines(keepends=True)
        for line in lines:
            yield from (line[start : start + limit] for start in range(0, len(line), limit))
