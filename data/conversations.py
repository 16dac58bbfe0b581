"""Conversations on their way through the data room.

A record of `messages` becomes a Document: its text is what the steps of curation judge, readable and without a
template; the messages travel in `meta`. The tokenize stage writes them by the chat template, as ids and which of
these are trained on.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from core.errors import UserError
from data.chat import RESERVED, ChatTemplate, Messages
from data.document import Document

# Names under which datasets give the thoughts of a message; templates read the first.
REASONING = ("reasoning_content", "thinking", "reasoning")
VARIABLES = ("tools", "reasoning")  # of a record, for the template; those of `chat_template_kwargs` too


class Tokenizer(Protocol):
    """What of `data.tokenizer.Tokenizer` is needed here."""

    special_tokens: dict[str, int]
    bos: int | None
    eos: int | None

    def encode_with_offsets(self, text: str, special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and the characters that each stands for; with `special`, names of special tokens become these."""

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Text of ids; with `special`, that of special tokens too."""


class Encoded(NamedTuple):
    """A conversation as a document of tokens."""

    ids: list[int]
    trained: np.ndarray  # bool, which of them are trained on
    trained_bytes: int  # of the text of these, in UTF-8, without special tokens
    lossless: bool  # the ids decode to the text


def from_record(record: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | str:
    """Text and meta of a record with `messages`, or the reason to drop it."""
    messages = record["messages"]
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        return "not_messages"
    if not any(message["role"] == "assistant" and _says(message) for message in messages):
        return "no_assistant"
    given = record.get("chat_template_kwargs") or {}
    variables = {**(given if isinstance(given, dict) else {}), **{key: record.get(key) for key in VARIABLES}}
    meta = {
        "messages": [_tidy(message) for message in messages],
        "variables": {key: value for key, value in variables.items() if value is not None and key not in RESERVED},
    }
    try:
        json.dumps(meta, ensure_ascii=False).encode()
    except (ValueError, TypeError):  # lone surrogates; what Parquet holds and JSON does not, as dates
        return "undecodable"
    return plain_text(meta["messages"]), meta


def _is_message(message: Any) -> bool:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not message["role"]:
        return False
    content = message.get("content")
    return isinstance(content, str) or (content is None and bool(message.get("tool_calls")))


def _says(message: dict[str, Any]) -> bool:
    return bool(message.get("content") or message.get("tool_calls"))


def _tidy(message: dict[str, Any]) -> dict[str, Any]:
    """Without empty fields, which Parquet gives to all messages; thoughts under the one name that templates read."""
    found = {key: value for key, value in message.items() if value is not None and key not in REASONING}
    thoughts = next((message[key] for key in REASONING if message.get(key)), None)
    return {**found, "content": message.get("content") or "", **({"reasoning_content": thoughts} if thoughts else {})}


def plain_text(messages: Messages) -> str:
    """The conversation for readers: each message behind its role."""
    parts = []
    for message in messages:
        thoughts = f"({message['reasoning_content']})\n" if "reasoning_content" in message else ""
        calls = "".join(f"\n{json.dumps(call, ensure_ascii=False)}" for call in message.get("tool_calls", ()))
        parts.append(f"{message['role']}: {thoughts}{message['content']}{calls}")
    return "\n\n".join(parts) + "\n"


def chat_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """How templates write the first and the last token of a document; nothing where there is none."""
    names = {number: name for name, number in tokenizer.special_tokens.items()}
    return {"bos": names.get(tokenizer.bos, ""), "eos": names.get(tokenizer.eos, "")}


def is_conversation(document: Document) -> bool:
    """True for a document that is trained on by a chat template."""
    return "messages" in document.meta


def encode_document(tokenizer: Tokenizer, template: ChatTemplate, document: Document) -> Encoded:
    """The conversation of a document."""
    messages = document.meta["messages"]
    if document.text != plain_text(messages):
        raise UserError(
            f"document {document.id} is a conversation whose text a step of data.recipe has changed; steps that "
            "change texts do not reach its messages yet"
        )
    return _encode(tokenizer, template, messages, document.meta["variables"], document.id)


def encode_conversation(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Messages, **variables: Any
) -> tuple[list[int], list[bool]]:
    """Ids of a conversation, and which of them the assistant said: those whose characters begin within its words."""
    encoded = _encode(tokenizer, template, messages, variables, "the conversation")
    return encoded.ids, encoded.trained.tolist()


def _encode(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Messages, variables: Mapping[str, Any], name: str
) -> Encoded:
    try:
        text, spans = template.render_with_spans(messages, **variables)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    ids, offsets = tokenizer.encode_with_offsets(text, special=True)
    offsets_X2 = np.array(offsets, np.int64).reshape(-1, 2)
    spans_S2 = np.array(spans, np.int64).reshape(-1, 2)
    trained_X = _within(offsets_X2[:, 0], spans_S2)
    special_X = np.isin(ids, list(tokenizer.special_tokens.values()))
    said = _characters(text, offsets_X2[trained_X & ~special_X])
    return Encoded(ids, trained_X, len(said.encode()), tokenizer.decode(ids, special=True) == text)


def _within(places_X: np.ndarray, spans_S2: np.ndarray) -> np.ndarray:
    """Which places lie in one of the spans, which are in order and apart."""
    if not len(spans_S2):
        return np.zeros(len(places_X), bool)
    span_X = np.searchsorted(spans_S2[:, 0], places_X, side="right") - 1
    return (span_X >= 0) & (places_X < spans_S2[span_X, 1])


def _characters(text: str, spans_S2: np.ndarray) -> str:
    """The text of spans in order, each character once: several byte tokens may lie over one."""
    parts, reached = [], 0
    for begin, end in spans_S2.tolist():
        parts.append(text[max(begin, reached) : end])
        reached = max(reached, end)
    return "".join(parts)
