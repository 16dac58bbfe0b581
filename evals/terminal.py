"""The generate verb: text and conversations at a terminal or through a pipe. Text alone goes to standard output."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from core.errors import UserError
from core.progress import say
from evals.complete import Completer, open_completer
from evals.config import EvalConfig
from model.sample import Sampling
from objectives.config import FillInTheMiddleConfig
from train.run import Run

MAX_PROMPT = 64 << 20  # bytes from a pipe
TEXT_TOKENS = 128  # unless told otherwise; an answer may take what the cache has left
MODES = {"/think": True, "/no_think": False}
HELP = "Ctrl-D leaves, Ctrl-C stops an answer; /think and /no_think switch its mode, /clear forgets what was said"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a terminal would obey


def write(
    config: EvalConfig,
    run: Run,
    workdir: Path,
    *,
    prompt: str | None,
    suffix: str | None = None,
    chat: bool = False,
    system: str = "",
    max_tokens: int | None = None,
    stop: tuple[str, ...] = (),
    seed: int = 0,
) -> None:
    """Writes a prompt and its continuation as it comes, up to a `suffix` if there is one; of a `chat` the answer.

    The prompt `-` is read from standard input. Without one, text begins from nothing, and a chat reads turn after
    turn from the terminal or, where there is none, its only one from standard input.
    """
    if system and not chat:
        raise UserError("--system is the system message of a conversation; it needs --chat")
    if suffix is not None:
        _require_middle(run, chat)
    asks = chat and prompt is None and sys.stdin.isatty()
    if prompt == "-" or (chat and prompt is None and not asks):
        prompt = _read_prompt().rstrip("\n") if chat else _read_prompt()
    writer = Writer(open_completer(config, run, workdir, chat=chat), config.sampling, max_tokens, stop, seed)
    with _closed_pipe_is_the_end():
        if asks:
            converse(writer, system)
        elif chat:
            writer.answer(_messages(system, [{"role": "user", "content": prompt}]))
        elif suffix is not None:
            writer.fill_in(prompt or "", suffix, run.objective.fill_in_the_middle)
        else:
            writer.continue_text(prompt or "")
    if config.drafts:
        writer.tell_acceptance()


class Writer:
    """Writes to standard output what a model says, with the settings of one command."""

    def __init__(
        self, completer: Completer, sampling: Sampling, max_tokens: int | None, stop: tuple[str, ...], seed: int
    ):
        self.completer, self.max_tokens = completer, max_tokens
        self.settings = {"sampling": sampling, "stop": stop, "seed": seed}

    def continue_text(self, prompt: str) -> None:
        """A text and how it goes on."""
        ids = self.completer.prompt(prompt)
        self._go_on(ids, self.completer.tokenizer.decode(ids))
        self._show("\n")

    def fill_in(self, prefix: str, suffix: str, config: FillInTheMiddleConfig) -> None:
        """A text whose middle is written."""
        complete = self._go_on(self.completer.middle_prompt(prefix, suffix, config), prefix)
        self._show(f"{suffix}\n")
        if not complete:
            say("(the middle is cut short: the cache is full, or --max-tokens reached)")

    def _go_on(self, ids: list[int], shown: str) -> bool:
        """Shows a text and what follows the ids; whether that came to an end by itself."""
        most = TEXT_TOKENS if self.max_tokens is None else self.max_tokens
        finish = None
        for pieces in self.completer.complete([ids], max_tokens=most, **self.settings):
            self._show(shown + "".join(piece.text for piece in pieces))
            shown = ""  # not before the first step has shown that the prompt fits
            finish = pieces[-1].finish if pieces else finish
        return finish == "stop"

    def answer(self, messages: list[dict], **variables: object) -> str:
        """An answer, which is also returned."""
        ids = self.completer.chat_prompt(messages, **variables)
        said: list[str] = []
        steps = self.completer.complete([ids], max_tokens=self.max_tokens, chat=True, **self.settings)
        for pieces in steps:
            said += [piece.text for piece in pieces]
            self._show("".join(piece.text for piece in pieces))
            if any(piece.finish == "length" for piece in pieces):
                say("\n(cut short: the cache is full, or --max-tokens reached)")
        self._show("\n")
        return "".join(said)

    def tell_acceptance(self) -> None:
        """Of all drafts so far."""
        drafted, accepted = self.completer.decoder.drafted, self.completer.decoder.accepted
        say(f"{accepted:,} of {drafted:,} drafts accepted ({accepted / max(drafted, 1):.0%})")

    def _show(self, text: str) -> None:
        sys.stdout.write(CONTROL.sub("\ufffd", text) if sys.stdout.isatty() else text)
        sys.stdout.flush()


def _require_middle(run: Run, chat: bool) -> None:
    if chat:
        raise UserError("--suffix is the end of a text; it does not go with --chat")
    if not run.objective.fill_in_the_middle.asked:
        raise UserError("--suffix needs a model trained with objective.fill_in_the_middle; this one only continues")


def converse(writer: Writer, system: str = "") -> None:
    """Turn after turn, until Ctrl-D."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - input() then edits lines and remembers them
    say(HELP)
    turns: list[dict] = []
    variables: dict[str, bool] = {}
    for line in _lines():
        if line in MODES:
            variables["enable_thinking"] = MODES[line]
            for flag in ("/no_think", "/think"):  # which would have the last word
                system = system.replace(flag, "").strip()
        elif line == "/clear":
            turns.clear()
        else:
            turns.append({"role": "user", "content": line})
            try:
                turns.append({"role": "assistant", "content": writer.answer(_messages(system, turns), **variables)})
            except KeyboardInterrupt:
                turns.pop()
                say("\n(stopped; this turn is forgotten)")
            except UserError as error:  # too long for the cache, or refused by the template
                turns.pop()
                say(f"{error}; this turn is forgotten, /clear begins anew")


def _lines() -> Iterator[str]:
    """What is typed, without empty lines."""
    while True:
        try:
            line = input("> " if sys.stdout.isatty() else "").strip()
        except EOFError:
            say("")
            return
        except UnicodeDecodeError:
            say("that line is not UTF-8")
            continue
        if line:
            yield line


def _messages(system: str, turns: list[dict]) -> list[dict]:
    return [*([{"role": "system", "content": system}] if system else []), *turns]


def _read_prompt() -> str:
    """All of standard input, as it is."""
    prompt = sys.stdin.buffer.read(MAX_PROMPT + 1)
    if len(prompt) > MAX_PROMPT:
        raise UserError(f"the prompt on standard input has more than {MAX_PROMPT >> 20} MB")
    try:
        return prompt.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"the prompt on standard input is not UTF-8 at byte {error.start + 1:,}") from None


@contextlib.contextmanager
def _closed_pipe_is_the_end() -> Iterator[None]:
    """Whoever reads may leave early, as `head` does."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the last flush fails too
