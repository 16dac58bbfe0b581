"""Renders chat templates in a process of its own: started by `data/chat.py` as a script, never imported by it.

Templates come with models from elsewhere and are programs. Jinja's sandbox bounds their reach; time and memory, which
it does not bound (`"a" * 10**10`), are bounded from outside: by this process's limit and by the caller, who ends it.

Requests and replies are JSON. The first request makes the template; each later one renders a conversation. A reply
has `text` and `spans`, or `error`, a line about the template, or `refused`, a line about the conversation.
"""

import datetime
import itertools
import json
import re
import resource
import secrets
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox

MAX_MEMORY = 2 << 30  # bytes of address space; Python and Jinja take 0.2 GB
MAX_OUTPUT = 32 << 20  # characters
REASONING = ("reasoning_content", "thinking", "reasoning")
TELLING = 16  # characters of a line that no template writes by itself

Messages = list[dict[str, Any]]


class Refusal(Exception):
    """What is wrong with the conversation, rather than with the template."""


class Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}` around what the assistant said.

    While `mark` is set, it stands before and behind each such text, so that wherever the text ends up it is found.
    """

    tags = frozenset({"generation"})

    def __init__(self, environment: jinja2.Environment):
        super().__init__(environment)
        self.used, self.mark = False, ""  # whether the template has such blocks

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        """A block whose body goes through `_marked`."""
        self.used, line = True, next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        return f"{self.mark}<{caller()}{self.mark}>" if self.mark else caller()


class Template:
    """A compiled chat template and what the templates of Hugging Face expect around them."""

    def __init__(self, source: str, tokens: dict[str, str], date: str | None):
        """`date` is ISO 8601, and today without one."""
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json  # Jinja's own escapes for HTML
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: _day(date).strftime(form)
        del environment.globals["lipsum"]
        self.generation = environment.extensions[Generation.identifier]
        self.tokens, self.template = tokens, environment.from_string(source)

    def render(self, messages: Messages, variables: dict[str, Any], prompt: bool = False) -> str:
        """The text of a conversation."""
        given = {"tools": None, "documents": None, **self.tokens, **variables}
        parts, size = [], 0
        for part in self.template.generate(messages=messages, add_generation_prompt=prompt, **given):
            parts.append(part)
            size += len(part)
            if size > MAX_OUTPUT:
                raise Refusal(f"the text is longer than {MAX_OUTPUT:,} characters")
        return "".join(parts)

    def checked(self, messages: Messages, variables: dict[str, Any], prompt: bool = False) -> str:
        """`render`, where the text must hold something of every message."""
        text = self.render(messages, variables, prompt)
        for number, message in enumerate(messages):
            if not _holds(text, number, messages) and self._ignores(number, messages, variables):
                raise Refusal(f"it writes nothing of message {number + 1}, whose role is {message['role']!r}")
        return text

    def _ignores(self, number: int, messages: Messages, variables: dict[str, Any]) -> bool:
        """True where another content in a message's place is not in the text either: it may be written as JSON."""
        word = secrets.token_hex(8)
        probe = [*messages[:number], {**messages[number], "content": word}, *messages[number + 1 :]]
        try:
            return word not in self.render(probe, variables)
        except (Refusal, jinja2.TemplateError):  # the template has looked at it
            return False

    def with_spans(self, messages: Messages, variables: dict[str, Any]) -> tuple[str, list[tuple[int, int]]]:
        """The text, and which characters the assistant said."""
        text = self.checked(messages, variables)
        spans = (
            self._marked(text, messages, variables)
            if self.generation.used
            else self._compared(text, messages, variables)
        )
        if not spans and any(message["role"] == "assistant" for message in messages):
            raise Refusal("its {% generation %} blocks hold nothing of what the assistant said")
        return text, spans

    def _marked(self, text: str, messages: Messages, variables: dict[str, Any]) -> list[tuple[int, int]]:
        """By the generation blocks of the template."""
        mark = self.generation.mark = f"\0{secrets.token_hex(16)}"
        try:
            parts = re.split(f"{mark}([<>])", self.render(messages, variables))
        finally:
            self.generation.mark = ""
        texts, signs = parts[::2], parts[1::2]
        if "".join(texts) != text or signs != ["<", ">"] * (len(signs) // 2):
            raise Refusal("its {% generation %} blocks lie within one another, or its text depends on what they hold")
        ends = list(itertools.accumulate(map(len, texts)))
        return [(begin, end) for begin, end in zip(ends[:-1:2], ends[1::2]) if begin < end]

    def _compared(self, text: str, messages: Messages, variables: dict[str, Any]) -> list[tuple[int, int]]:
        """By what each turn of the assistant adds to the messages before it and the generation prompt."""
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:number], variables, prompt=True)
            after = self.render(messages[: number + 1], variables)
            if not (after.startswith(before) and text.startswith(after)):
                raise Refusal(
                    f"message {number + 1} is written otherwise when others follow or when it is asked for, so which "
                    "part of the text the assistant said is not known; a template with {% generation %} blocks tells"
                )
            spans.append((len(before), len(before) + _end_of_turn(after[len(before) :], message.get("content"))))
        return spans


def _end_of_turn(said: str, content: Any) -> int:
    """How much of a turn the assistant says: whitespace behind its end token is the template's.

    Where nothing but whitespace follows the content, that is how the turn ends.
    """
    words = content.rstrip() if isinstance(content, str) else ""
    tail = said[said.find(words) + len(words) :] if words in said else said
    return len(said) - (len(tail) - len(tail.rstrip()) if tail.strip() else 0)


def _holds(text: str, number: int, messages: Messages) -> bool:
    """True where a line of a message is in the text for certain: a long one, as often as in all messages together."""
    contents = [message["content"] for message in messages if isinstance(message.get("content"), str)]
    content = messages[number].get("content")
    if not isinstance(content, str) or not content.strip():
        return True  # there is nothing to look for
    line = max(map(str.strip, content.splitlines()), key=len)
    return len(line) >= TELLING and text.count(line) >= sum(other.count(line) for other in contents)


def _with_thoughts(message: dict[str, Any]) -> dict[str, Any]:
    """A message with its thoughts under the names that templates read, as transformers gives them."""
    thoughts = next((message[key] for key in REASONING if message.get(key) is not None), None)
    return message if thoughts is None else {"thinking": thoughts, **message, "reasoning_content": thoughts}


def _refuse(message: Any) -> NoReturn:
    raise Refusal(str(message))


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _day(date: str | None) -> datetime.datetime:
    return datetime.datetime.fromisoformat(date) if date else datetime.datetime.now()


def _line(error: object) -> str:
    """The beginning of a message, as one line of what can be printed."""
    return re.sub(r"[^ -~\u00a0-\ud7ff\ue000-\uffff]+", " ", str(error))[:300].strip()


def _answer(template: Template | None, request: dict[str, Any]) -> tuple[Template | None, dict[str, Any]]:
    """The template, which the first request makes, and the reply."""
    try:
        if template is None:
            return Template(**request), {}
        messages, variables = list(map(_with_thoughts, request["messages"])), request["variables"]
        if request["spans"]:
            text, spans = template.with_spans(messages, variables)
            return template, {"text": text, "spans": spans}
        return template, {"text": template.checked(messages, variables, request["prompt"])}
    except Refusal as error:
        return template, {"refused": _line(error)}
    except MemoryError:
        return template, {"error": f"needs more than {MAX_MEMORY >> 30} GB of memory"}
    except jinja2.TemplateSyntaxError as error:
        return template, {"error": f"line {error.lineno}: {_line(error.message)}"}
    except Exception as error:  # noqa: BLE001 - a template is a program and may raise anything
        return template, {"error": f"{type(error).__name__}: {_line(error)}"}


def main() -> None:
    """Answers requests until the other end closes."""
    connection, template = Connection(int(sys.argv[1])), None
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY if most < 0 else min(MAX_MEMORY, most), most))
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except EOFError:
            return
        template, reply = _answer(template, request)
        connection.send_bytes(json.dumps(reply).encode())


if __name__ == "__main__":
    main()
