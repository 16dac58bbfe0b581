"""JSON lines, plain or compressed: an object with a `text` or `messages` a line, read in bounded memory."""

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from data.conversations import from_record
from data.document import Document, Dropped
from data.sources.compressed import Damaged, Whole
from data.sources.record import as_id

MAX_LINE_BYTES = 64 << 20
FIELDS = ("url", "language", "license")


def read(path: Path, name: str, columns: Mapping[str, str] | None = None) -> Iterator[Document | Dropped]:
    """A document a line, with what else of it are strings: `id`, `url`, `language`, `license`, `date`.

    An `id` may be an integer. `columns` has names that the file gives to `text` and these.
    """
    try:
        yield from _documents(path, name, columns or {})
    except Damaged as error:  # what comes before is whole lines
        yield Dropped(name, "jsonl", "damaged_file", path.stat().st_size, detail=str(error))


def _documents(path: Path, name: str, columns: Mapping[str, str]) -> Iterator[Document | Dropped]:
    for number, line in enumerate(_lines(path)):
        place = f"{name}:{number + 1}"
        if len(line) > MAX_LINE_BYTES:
            yield Dropped(place, "jsonl", "line_too_long", len(line))
            continue
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            yield Dropped(place, "jsonl", "undecodable", len(line))
            continue
        except (ValueError, RecursionError):
            yield Dropped(place, "jsonl", "not_json", len(line))
            continue
        if isinstance(record, dict) and columns:
            record = _renamed(record, columns)
        if isinstance(record, dict) and "text" not in (*record, *columns) and "messages" in record:
            yield _conversation(place, record, len(line))
            continue
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            yield Dropped(place, "jsonl", "no_text", len(line))
            continue
        if not _is_text(record["text"]):
            yield Dropped(place, "jsonl", "undecodable", len(line))
            continue
        date = record.get("date")
        yield _document(place, record, record["text"], {"date": date} if _is_text(date) and date else {})


def _renamed(record: dict, columns: Mapping[str, str]) -> dict:
    """The record by our names; what of it has such a name by chance is not meant."""
    others = {key: value for key, value in record.items() if key not in columns}
    return others | {ours: record[theirs] for ours, theirs in columns.items() if theirs in record}


def _conversation(place: str, record: dict, size: int) -> Document | Dropped:
    found = from_record(record)
    if isinstance(found, str):
        return Dropped(place, "jsonl", found, size)
    return _document(place, record, found[0], found[1])


def _document(place: str, record: dict, text: str, meta: dict | None = None) -> Document:
    """The record's text, with those of its other fields that can be used."""
    identifier = as_id(record.get("id"))
    usable = _is_text(identifier) and identifier and identifier.isprintable()
    extra = {key: record[key] for key in FIELDS if _is_text(record.get(key))}
    given = {"id": identifier if usable else place, "url": place, **extra}
    return Document(text=text, source="jsonl", meta=meta or {}, **given)


def _is_text(value: object) -> bool:
    """True for a string that can be written as UTF-8: JSON can escape lone surrogates, which cannot."""
    try:
        return isinstance(value, str) and value.encode("utf-8") is not None
    except UnicodeEncodeError:
        return False


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of the decompressed stream; one over the limit comes back cut, its rest is skipped."""
    with path.open("rb") as raw:
        stream = io.BufferedReader(Whole(raw, path.name), 1 << 20)
        while line := stream.readline(MAX_LINE_BYTES + 1):
            yield line
            while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE_BYTES + 1)
