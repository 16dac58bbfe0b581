"""Plain text and Markdown: a file is a document, a long one several."""

import re
from collections.abc import Iterator
from pathlib import Path

from data.document import Document, Dropped

# A book in one file becomes documents of about this size, so that some of it can be held out.
LONG_TEXT = 50_000
MAX_FILE_BYTES = 1 << 30


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
    pieces = split_long(text)
    for index, piece in enumerate(pieces):
        identifier = name if len(pieces) == 1 else f"{name}#{index}"
        yield Document(id=identifier, text=piece, source="text", url=name)


def split_long(text: str, limit: int = LONG_TEXT) -> list[str]:
    """Cuts at blank lines into pieces of at most `limit` characters where the text allows; joined they are it."""
    if len(text) <= limit:
        return [text]
    pieces, piece = [], ""
    for paragraph in re.split(r"(?<=\n\n)(?!\n)", text):
        if piece and len(piece) + len(paragraph) > limit:
            pieces.append(piece)
            piece = ""
        piece += paragraph
    return [*pieces, piece]
