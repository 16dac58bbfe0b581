"""The part of OpenAI's HTTP API that `evals/serve.py` speaks: requests checked field by field, and shapes of replies.

Beyond OpenAI's own: `top_k`, `min_p`, `enable_thinking` and `chat_template_kwargs`. A field that is not known, or not
supported with the value given, is refused: no client is left to believe that it did something.
"""

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from core.errors import suggest
from core.page import printable
from data.chat import RESERVED
from evals.complete import Piece
from model.sample import Sampling

MAX_ROWS = 8  # texts made at once for one request: prompts times n
MAX_STOPS, MAX_STOP = 16, 256  # strings, and characters of one
MAX_TOKENS = 16  # of a completion that does not say, as the API has it; an answer takes what the cache has left
COLDEST = 1e-3  # a temperature below it is 0: logits divided by less leave float32

# Says nothing about the text.
IGNORED = (
    "user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention parallel_tool_calls"
).split()
# Supported with these values only, which ask for nothing.
NEUTRAL = {
    "best_of": [1], "echo": [False], "frequency_penalty": [0], "functions": [[]], "logit_bias": [{}],
    "logprobs": [False], "modalities": [["text"]], "presence_penalty": [0], "response_format": [{"type": "text"}],
    "suffix": [""], "tool_choice": ["none", "auto"], "tools": [[]], "top_logprobs": [0],
}  # fmt: skip
BOTH = "model stream stream_options max_tokens temperature top_p top_k min_p stop seed n".split()
OWN = {False: ["prompt"], True: ["messages", "max_completion_tokens", "chat_template_kwargs", "enable_thinking"]}


class Refused(Exception):
    """A request that cannot be answered, told to the client."""

    def __init__(self, message: str, *, status: int = 400, field: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.field, self.code = status, field, code


@dataclass(frozen=True)
class Ask:
    """A request, checked."""

    prompts: Sequence[str | list[int]] = ()  # of a completion
    messages: Sequence[Mapping[str, Any]] = ()  # of a chat
    variables: Mapping[str, Any] = field(default_factory=dict)  # for the chat template
    n: int = 1  # texts for each prompt
    max_tokens: int | None = None
    sampling: Sampling = Sampling()  # noqa: RUF009 (immutable)
    stop: tuple[str, ...] = ()
    seed: int = 0
    stream: bool = False
    include_usage: bool = False  # at the end of a stream
    model: str | None = None


def parse_body(body: bytes, *, chat: bool, defaults: Sampling, vocab_size: int) -> Ask:
    """The request in a body; `defaults` are for the sampling that it leaves open. Raises `Refused`."""
    try:
        given = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body is not JSON in UTF-8 ({str(error)[:100]})") from None
    if not isinstance(given, dict):
        raise Refused("the body is not an object of JSON")
    given = {name: value for name, value in given.items() if value is not None and name not in IGNORED}
    for name, value in given.items():
        _require_supported(name, value, [*BOTH, *OWN[chat]])
    options = _value(given, "stream_options", dict, {})
    content = _conversation(given) if chat else {"prompts": _prompts(given, vocab_size)}
    ask = Ask(
        **content,
        n=_whole(given, "n", 1, 1, MAX_ROWS),
        max_tokens=_most(given, chat),
        sampling=_sampling(given, defaults),
        stop=_stop(given),
        seed=_whole(given, "seed", secrets.randbits(31), -(1 << 63), (1 << 63) - 1) % (1 << 31),
        stream=_value(given, "stream", bool, False),
        include_usage=_value(options, "include_usage", bool, False),
        model=_value(given, "model", str, None),
    )
    if (rows := ask.n * max(1, len(ask.prompts))) > MAX_ROWS:
        _refuse("n", f"asks for {rows} texts with these prompts; {MAX_ROWS} are made at once")
    return ask


class Reply:
    """The shapes of one reply, whole or as the chunks of a stream."""

    def __init__(self, ask: Ask, model: str, *, chat: bool, prompt_tokens: int):
        self.ask, self.chat, self.prompt_tokens = ask, chat, prompt_tokens
        prefix, kind = ("chatcmpl", "chat.completion") if chat else ("cmpl", "text_completion")
        self.kind = kind + ".chunk" if chat and ask.stream else kind
        self.head = {"id": f"{prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self.texts: dict[int, str] = {}
        self.ends: dict[int, str] = {}
        self.tokens: dict[int, int] = {}

    def add(self, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
        """Takes what a step gave; returns it as chunks."""
        chunks = []
        for row, text, finish, tokens in pieces:
            self.tokens[row] = tokens
            if self.chat and row not in self.texts:
                chunks.append(self._chunk(row, {"delta": {"role": "assistant", "content": ""}}, None))
            self.texts[row] = self.texts.get(row, "") + text
            if text:
                chunks.append(self._chunk(row, {"delta": {"content": text}} if self.chat else {"text": text}, None))
            if finish:
                self.ends[row] = finish
                chunks.append(self._chunk(row, {"delta": {}} if self.chat else {"text": ""}, finish))
        return chunks

    def whole(self) -> dict[str, Any]:
        """All that was added, as one reply."""
        choices = [self._choice(row, self._said(text), self.ends[row]) for row, text in sorted(self.texts.items())]
        return {**self.head, "object": self.kind, "choices": choices, "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        """How many tokens were read and written; a prompt that is answered n times counts once."""
        written = sum(self.tokens.values())
        total = self.prompt_tokens + written
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": written, "total_tokens": total}

    def last_chunks(self) -> list[dict[str, Any]]:
        """What a stream ends with: the usage where it was asked for."""
        return [{**self.head, "object": self.kind, "choices": [], "usage": self.usage()}] * self.ask.include_usage

    def _said(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}

    def _choice(self, row: int, what: dict[str, Any], finish: str | None) -> dict[str, Any]:
        return {"index": row, **what, "logprobs": None, "finish_reason": finish}

    def _chunk(self, row: int, what: dict[str, Any], finish: str | None) -> dict[str, Any]:
        return {**self.head, "object": self.kind, "choices": [self._choice(row, what, finish)]}


def error_body(message: str, *, status: int, field: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error as the API has it."""
    kinds = {404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    names = {"message": printable(message), "type": kind, "param": field and printable(field), "code": code}
    return {"error": names}


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _refuse(name: str, message: str) -> NoReturn:
    raise Refused(f"{name}: {message}", field=name)


def _require_supported(name: str, value: Any, known: Sequence[str]) -> None:
    if name in known:
        return
    if name not in NEUTRAL:
        _refuse(name[:100], f"there is no such field here{suggest(name[:100], known)}")
    if not any(value == neutral and type(value) in (type(neutral), float) for neutral in NEUTRAL[name]):
        _refuse(name, "this is not supported here")


def _value(given: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    """A field of one type of JSON."""
    value = given.get(name, default)
    if name in given and type(value) is not kind:
        names = {str: "a string", bool: "true or false", dict: "an object", int: "a whole number"}
        _refuse(name, f"must be {names[kind]}")
    return value


def _whole(given: Mapping[str, Any], name: str, default: int | None, least: int, most: int) -> int | None:
    value = _value(given, name, int, default)
    if name in given and not least <= value <= most:
        _refuse(name, f"must be from {least:,} to {most:,}")
    return value


def _most(given: Mapping[str, Any], chat: bool) -> int | None:
    """How many tokens at most; the cache bounds it anyway."""
    name = "max_completion_tokens" if "max_completion_tokens" in given else "max_tokens"
    return _whole(given, name, None if chat else MAX_TOKENS, 1, 1 << 31)


def _sampling(given: Mapping[str, Any], defaults: Sampling) -> Sampling:
    """How tokens are chosen."""
    values = {"top_k": _whole(given, "top_k", defaults.top_k, 0, 1 << 31)}
    for name, most in (("temperature", 100.0), ("top_p", 1.0), ("min_p", 1.0)):
        value = given.get(name, getattr(defaults, name))
        if type(value) not in (int, float) or not 0 <= value <= most:
            _refuse(name, f"must be a number from 0 to {most:g}")
        values[name] = float(value)
    if values["temperature"] < COLDEST:
        values["temperature"] = 0.0
    if values["top_p"] == 0:
        _refuse("top_p", "must be above 0")
    return Sampling(**values)


def _stop(given: Mapping[str, Any]) -> tuple[str, ...]:
    value = given.get("stop", [])
    stop = [value] if isinstance(value, str) else value
    if not isinstance(stop, list) or not all(isinstance(text, str) and 0 < len(text) <= MAX_STOP for text in stop):
        _refuse("stop", f"must be a string or a list of such, each of 1 to {MAX_STOP} characters")
    if len(stop) > MAX_STOPS:
        _refuse("stop", f"must be {MAX_STOPS} strings at most")
    return tuple(stop)


def _prompts(given: Mapping[str, Any], vocab_size: int) -> list[str | list[int]]:
    """Texts, or ids of tokens: one, or a list of them."""
    value = given.get("prompt", "")
    if isinstance(value, str) or (isinstance(value, list) and value and type(value[0]) is int):
        value = [value]
    if not isinstance(value, list) or not 0 < len(value) <= MAX_ROWS:
        _refuse("prompt", f"must be a text or ids of tokens, or a list of up to {MAX_ROWS} such")
    for prompt in value:
        ids = prompt if isinstance(prompt, list) else []
        if not isinstance(prompt, str | list) or not all(type(i) is int and 0 <= i < vocab_size for i in ids):
            _refuse("prompt", f"must be a text or ids of tokens below {vocab_size:,}")
    return value


def _conversation(given: Mapping[str, Any]) -> dict[str, Any]:
    """Messages, parts of text put together, and what the template is told besides; it has the last word on both."""
    if "messages" not in given:
        _refuse("messages", "is missing")
    messages = given["messages"]
    if not isinstance(messages, list) or not messages:
        _refuse("messages", "must be a list of messages, at least one")
    variables = dict(_value(given, "chat_template_kwargs", dict, {}))
    if taken := sorted(set(RESERVED) & set(variables)):
        _refuse("chat_template_kwargs", f"{taken[0]} is not for a conversation to set")
    if "enable_thinking" in given:
        variables["enable_thinking"] = _value(given, "enable_thinking", bool, True)
    return {"messages": [_message(message, i) for i, message in enumerate(messages)], "variables": variables}


def _message(message: Any, number: int) -> dict[str, Any]:
    if not isinstance(message, dict):
        _refuse(f"messages[{number}]", "must be an object with role and content")
    message = {"content": "", **{key: value for key, value in message.items() if value is not None}}
    if isinstance(message["content"], list):
        parts = message["content"]
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
            _refuse(f"messages[{number}].content", "must be text; parts of another type are not supported")
        message["content"] = "".join(part["text"] for part in parts)
    if message.get("role") == "developer":
        message["role"] = "system"  # its name before
    return message
