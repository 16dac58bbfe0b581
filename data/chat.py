"""Chat templates: what a model was taught a conversation looks like, as the Jinja program that its folder brings.

Templates are programs by strangers. They run in a sandbox, in a process of their own (`data/chat_renderer.py`) with
bounded memory, and for a bounded time.
"""

import functools
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.page import printable
from data.child import Child, ChildDied

RENDERER = Path(__file__).with_name("chat_renderer.py")
DEFAULT = Path(__file__).with_name("chat_template.jinja")
MAX_SOURCE = 256 << 10  # characters of a template; the longest known have 30 thousand
MAX_CONFIG = 64 << 20  # bytes of a tokenizer_config.json
DEADLINE = 10.0  # seconds for a conversation; a common one takes 0.2 ms
RESERVED = ("messages", "add_generation_prompt", "bos_token", "eos_token", "raise_exception", "strftime_now")

Messages = Sequence[Mapping[str, Any]]  # {"role": ..., "content": ...} and what else the template knows


class ChatTemplate:
    """A chat template: conversations to text. Threads may share one; a process that gets it starts a renderer."""

    def __init__(self, source: str, *, bos: str, eos: str, name: str = "the chat template", date: str | None = None):
        """`bos` and `eos` are the tokens as the template writes them, `date` (ISO 8601) is what it takes for today.

        Raises UserError, which begins with `name`, for what is not a template.
        """
        self.source, self.bos, self.eos, self.name, self.date = source, bos, eos, name, date
        if len(source) > MAX_SOURCE:
            raise UserError(f"{name} has {len(source):,} characters, more than the {MAX_SOURCE:,} of any template")
        self._lock = threading.Lock()
        self._renderer: _Renderer | None = None

    @property
    def fingerprint(self) -> str:
        """Of all that decides the text besides the conversation; of a template without a date, not the date."""
        decides = json.dumps([self.source, self.bos, self.eos, self.date])
        return hashlib.blake2b(decides.encode(), digest_size=16).hexdigest()

    def dated(self, date: str) -> "ChatTemplate":
        """The same on a fixed day, so that its texts are the same on every day."""
        return ChatTemplate(self.source, bos=self.bos, eos=self.eos, name=self.name, date=date)

    def render(self, messages: Messages, /, *, add_generation_prompt: bool = False, **variables: Any) -> str:
        """The text of a conversation, up to where the assistant answers with `add_generation_prompt`.

        Raises UserError where the template refuses the messages, says nothing of one, fails, or takes too long.
        """
        return self._ask(messages, variables, spans=False, prompt=add_generation_prompt)["text"]

    def render_with_spans(self, messages: Messages, /, **variables: Any) -> tuple[str, list[tuple[int, int]]]:
        """The text, and begin and end of what the assistant said in it, end-of-turn tokens included.

        By the template's `{% generation %}` blocks or, without such, by what each turn of the assistant adds.
        """
        reply = self._ask(messages, variables, spans=True, prompt=False)
        return reply["text"], [tuple(span) for span in reply["spans"]]

    def end_of_turn(self) -> str:
        """What the assistant ends its turns with, such as `<|im_end|>`: where a generated answer stops."""
        probe = "Quintet"
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": probe}]
        text, spans = self.render_with_spans(messages)
        begin, end = spans[-1]
        return text[begin:end].rpartition(probe)[2].strip(" ")

    def _ask(self, messages: Messages, variables: Mapping[str, Any], **how: bool) -> dict[str, Any]:
        check_messages(messages, self.name)
        for name in variables:
            if name in RESERVED:
                raise UserError(f"{self.name}: {name} is not a variable that a conversation may set")
        request = _to_bytes({"messages": messages, "variables": variables, **how}, self.name)
        with self._lock:
            if self._renderer is None:
                tokens = {"bos_token": self.bos, "eos_token": self.eos}
                made = _to_bytes({"source": self.source, "tokens": tokens, "date": self.date}, self.name)
                renderer = _Renderer(self.name)
                self._check(renderer.ask(made))
                self._renderer = renderer
            try:
                reply = self._renderer.ask(request)
            except UserError:
                self._renderer = None  # it is gone; the next conversation begins anew
                raise
        return self._check(reply)

    def _check(self, reply: dict[str, Any]) -> dict[str, Any]:
        if "error" in reply:
            raise UserError(f"{self.name} fails: {reply['error']}")
        if "refused" in reply:
            raise UserError(f"{self.name} refuses the conversation: {reply['refused']}")
        return reply

    def __getstate__(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("source", "bos", "eos", "name", "date")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


class _Renderer:
    """The process that renders, until it is asked too much."""

    def __init__(self, name: str):
        self.name, self.child = name, Child(RENDERER)

    def ask(self, request: bytes) -> dict[str, Any]:
        """The reply to a request; raises UserError, and ends, where there is none in time."""
        try:
            return json.loads(self.child.ask(request, DEADLINE))
        except TimeoutError:
            size = f"a conversation of {len(request):,} bytes"
            raise UserError(f"{self.name} takes more than {DEADLINE:.0f} s for {size}") from None
        except ChildDied as died:
            why = f"the process that renders it died ({died})"
            if "jinja2" in died.said:
                why = "chat templates need the package jinja2; install it with `pip install -e .[chat]`"
            raise UserError(f"{self.name}: {why}") from None


def check_messages(messages: Any, name: str) -> None:
    """Refuses what is not a conversation: a list of messages with a role and a content, in text."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise UserError(f"{name}: a conversation is a list of messages, not {type(messages).__name__}")
    if not messages:
        raise UserError(f"{name}: the conversation has no messages")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or not message["role"]:
            raise UserError(f"{name}: message {number} has no role")
        content = message.get("content")
        if not isinstance(content, str | list) and not (content is None and message.get("tool_calls")):
            raise UserError(f"{name}: message {number}, of {printable(message['role'])[:40]}, has no content")


def _to_bytes(request: dict[str, Any], name: str) -> bytes:
    try:
        text = json.dumps(request, ensure_ascii=False)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:  # lone surrogates are ValueErrors too
        raise UserError(f"{name}: the conversation is not JSON data in UTF-8 ({str(error)[:100]})") from None


@functools.cache
def default_source() -> str:
    """The text of our own template, for models that bring none."""
    return DEFAULT.read_text(encoding="utf-8")


def read_template(path: Path, **tokens: Any) -> ChatTemplate:
    """The template in a file; the rest is as for `ChatTemplate`."""
    return ChatTemplate(_read(path, 4 * MAX_SOURCE), name=str(path), **tokens)


def open_template(folder: Path, *, bos: str, eos: str, date: str | None = None) -> ChatTemplate | None:
    """The template that a model's folder brings; None where it brings none.

    `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`: a text, or a list of which `default` counts.
    """
    tokens = {"bos": bos, "eos": eos, "date": date}
    if (path := folder / "chat_template.jinja").exists():
        return read_template(path, **tokens)
    path = folder / "tokenizer_config.json"
    source = _read_config(path).get("chat_template") if path.exists() else None
    if isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        if "default" not in named:
            known = ", ".join(printable(str(name))[:40] for name in named) or "none"
            raise UserError(f"{path}: chat_template is a list without one of the name default (there are: {known})")
        source = named["default"]
    if source is None:
        return None
    if not isinstance(source, str):
        raise UserError(f"{path}: chat_template must be a text or a list of name and template")
    return ChatTemplate(source, name=f"chat_template of {path}", **tokens)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(_read(path, MAX_CONFIG))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} does not hold an object of JSON")
    return config


def _read(path: Path, most: int) -> str:
    try:
        with path.open("rb") as file:
            payload = file.read(most + 1)
        if len(payload) > most:
            raise UserError(f"{path} has more than {most:,} bytes")
        return payload.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
