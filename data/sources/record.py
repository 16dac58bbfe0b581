"""A record of named strings, as Parquet files and datasets of TFDS hold it, as a document."""

import json
from collections.abc import Collection, Mapping

from core.errors import UserError
from data.conversations import from_record
from data.document import Document, Dropped

FIELDS = ("id", "url", "language", "license")
NAMES = ("text", *FIELDS, "date", "meta")  # the date of a text goes into `meta`

Record = dict[str, bytes | None]  # bytes, since a file may hold any as strings, and one bad row is not the file


def as_id(value: object) -> object:
    """An id may be a number: an integer as text, anything else as it is."""
    return str(value) if type(value) is int else value


def choose(
    strings: Collection[str],
    known: Collection[str],
    columns: Mapping[str, str],
    what: str,
    instead: str = "",
    integers: Collection[str] = (),
) -> dict[str, str]:
    """What a file calls our `NAMES`, of its `strings`; `columns` is `data.columns`, `known` all that the file has.

    The id may be one of `integers` too. `what` begins an error, "the file x has no column"; `instead` is what else
    could hold a text.
    """
    has = f"it has {', '.join(known)}"
    fitting = {ours: {*strings, *(integers if ours == "id" else ())} for ours in NAMES}
    for ours, theirs in columns.items():
        if theirs not in fitting[ours]:
            raise UserError(f"{what} `{theirs}` of strings, as data.columns names its {ours}; {has}")
    found = {ours: theirs for ours in NAMES if (theirs := columns.get(ours, ours)) in fitting[ours]}
    if "text" not in found:
        raise UserError(f"{what} `text` of strings{instead}; {has}; data.columns can name another")
    return found


def to_document(record: Record, place: str, source: str) -> Document | Dropped:
    """The record's text, with those of its other fields that can be used."""
    payload = record.get("text")
    if payload is None:
        return Dropped(place, source, "no_text", 0)
    text = _decode(payload)
    if text is None:
        return Dropped(place, source, "undecodable", len(payload))
    given = {key: value for key in FIELDS if (value := _decode(record.get(key)))}
    date = _decode(record.get("date"))
    meta = _conversation(record.get("meta"), text) or ({"date": date} if date else {})
    return Document(**{"id": place, "url": place, "text": text, "source": source, "meta": meta, **given})


def _conversation(payload: bytes | None, text: str) -> dict | None:
    """The messages that a corpus of ours has in its `meta`, where they are what the text says."""
    if payload is None or b'"messages"' not in payload:
        return None
    try:
        meta = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    variables = meta.get("variables") if isinstance(meta, dict) else None
    if not isinstance(variables, dict) or "messages" not in meta:
        return None
    found = from_record({**variables, "messages": meta["messages"], "chat_template_kwargs": variables})
    return found[1] if not isinstance(found, str) and found[0] == text else None


def _decode(payload: bytes | None) -> str | None:
    try:
        return None if payload is None else payload.decode("utf-8")
    except UnicodeDecodeError:
        return None
