"""Text from a model: prompts in, and what follows them a piece at a time, each piece final.

The layer of text above `model/generate.py`, which the terminal (`evals/terminal.py`) and the server share.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from core.errors import UserError
from data.chat import ChatTemplate, Messages
from data.tokenize import open_chat_template, open_tokenizer
from data.tokenizer import TextStream, Tokenizer
from evals.config import EvalConfig
from model.decode import Decoder
from model.generate import generate
from model.sample import Sampling
from objectives.config import FillInTheMiddleConfig
from train.run import Run, load_params, require_sentinels

Finish = Literal["stop", "length"]


class Piece(NamedTuple):
    """What a step adds to a row."""

    row: int
    text: str  # may be empty
    finish: Finish | None  # with the last piece of a row: it stopped by itself or a stop string, or ran out of room
    tokens: int  # of the row so far, a stop token included


class Completer:
    """A decoder that reads and writes text; with a chat template it answers in conversations too."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, template: ChatTemplate | None = None):
        self.decoder, self.tokenizer, self.template = decoder, tokenizer, template

    def prompt(self, text: str) -> list[int]:
        """Ids of a text to continue, where names of special tokens are ordinary text."""
        return self.tokenizer.prompt(text)

    def middle_prompt(self, prefix: str, suffix: str, config: FillInTheMiddleConfig) -> list[int]:
        """Ids after which the middle of a document is written: the prefix comes first, unless it never did."""
        require_sentinels(config, self.tokenizer.special_tokens, str(self.tokenizer.path))
        p, s, m = (self.tokenizer.special_tokens[name] for name in config.sentinels.values())
        begin, _ = self.tokenizer.around
        before, after = self.tokenizer.encode(prefix), self._within(suffix)
        if config.spm_rate == 1:
            return [*begin, p, s, *after, m, *before]
        return [*begin, p, *before, s, *after, m]

    def _within(self, text: str) -> list[int]:
        """Ids of a text that is no beginning: without the space that some tokenizers put there."""
        if not self.tokenizer.leading_spaces:
            return self.tokenizer.encode(text)
        ids, spans = self.tokenizer.encode_with_offsets(text)
        return [one for one, (begin, end) in zip(ids, spans) if begin < end]

    def chat_prompt(self, messages: Messages, /, **variables: Any) -> list[int]:
        """Ids of a conversation up to where the assistant answers; the variables go to the template."""
        text = self._require_template().render(messages, add_generation_prompt=True, **variables)
        return self.tokenizer.encode(text, special=True)

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int | None,
        sampling: Sampling,
        stop: Sequence[str] = (),
        seed: int = 0,
        chat: bool = False,
    ) -> Iterator[list[Piece]]:
        """Yields what each step adds to the rows, which may be nothing; None for `max_tokens` is all the cache holds.

        A row ends before the first of the `stop` strings in it, or with a token that ends texts and, of a `chat`, the
        assistant's turn. In a chat special tokens are written by their names: thoughts may stand between such.
        Equal arguments give equal texts.
        """
        stop_ids = set(self.tokenizer.stop_ids)
        if chat:
            ids, texts = self._end_of_turn
            stop_ids, stop = stop_ids | ids, (*stop, *texts)
        rows = [_Row(i, self._stream_after(prompt, chat), stop) for i, prompt in enumerate(prompts)]
        most = self.decoder.context if max_tokens is None else max_tokens
        for tokens in generate(
            self.decoder, prompts, max_tokens=most, sampling=sampling, stop_ids=stop_ids, seed=seed
        ):
            yield [row.step(token, stop_ids) for row, token in zip(rows, tokens) if row.finish is None]
            if all(row.finish for row in rows):
                return
        yield [row.end("length") for row in rows if row.finish is None]

    def _stream_after(self, prompt: Sequence[int], special: bool) -> TextStream:
        """Decodes what follows a prompt: only at the very beginning of a text may a space mean nothing."""
        stream = self.tokenizer.stream(special)
        for token in prompt:
            stream.push(token)
        return stream

    @functools.cached_property
    def _end_of_turn(self) -> tuple[set[int], tuple[str, ...]]:
        """What ends an answer: a token where the template's end of a turn is one, else that text."""
        end = self._require_template().end_of_turn()
        if end in self.tokenizer.special_tokens:
            return {self.tokenizer.special_tokens[end]}, ()
        return set(), (end,) if end else ()

    def _require_template(self) -> ChatTemplate:
        if self.template is None:
            raise UserError("there is no chat template, so there are no conversations")
        return self.template


def open_completer(config: EvalConfig, run: Run, workdir: Path, *, chat: bool) -> Completer:
    """The newest checkpoint of a workdir, ready to write; for a `chat` with its template."""
    template = open_chat_template(workdir) if chat else None
    params, _ = load_params(run, workdir)
    decoder = Decoder(run.model, params, config.context or run.row_length, config.drafts)
    return Completer(decoder, open_tokenizer(workdir), template)


class BeforeStop:
    """Text up to the first stop string. What may be the beginning of one is held back until it cannot be.

    The first is the one that ends first, the longest of several: so it does not matter in which pieces text comes.
    """

    def __init__(self, stop: Sequence[str]):
        if not all(stop):
            raise UserError("a stop string is empty; every text would end before it began")
        self.stop, self.held, self.found = stop, "", False

    def push(self, text: str) -> str:
        """What can be said after more text; nothing once a stop string was `found`."""
        if self.found:
            return ""
        self.held += text
        ends = [(begin + len(stop), begin) for stop in self.stop if (begin := self.held.find(stop)) >= 0]
        if ends:
            self.found = True
            return self._release(min(ends)[1])
        return self._release(len(self.held) - max(map(self._begun, self.stop), default=0))

    def flush(self) -> str:
        """What is left at the end."""
        return "" if self.found else self._release(len(self.held))

    def _begun(self, stop: str) -> int:
        """How many characters of a stop string the text ends with."""
        most = min(len(stop) - 1, len(self.held))
        return next((n for n in range(most, 0, -1) if self.held.endswith(stop[:n])), 0)

    def _release(self, length: int) -> str:
        text, self.held = self.held[:length], self.held[length:]
        return text


class _Row:
    """One prompt's text as it grows."""

    def __init__(self, number: int, stream: TextStream, stop: Sequence[str]):
        self.number, self.stream, self.before = number, stream, BeforeStop(stop)
        self.tokens, self.finish = 0, None

    def step(self, token: int | None, stop_ids: set[int]) -> Piece:
        """With one more token; None says that its cache is full."""
        if token is None:
            return self.end("length")
        self.tokens += 1
        if token in stop_ids:
            return self.end("stop")
        text = self.before.push(self.stream.push(token))
        self.finish = "stop" if self.before.found else None
        return Piece(self.number, text, self.finish, self.tokens)

    def end(self, finish: Finish) -> Piece:
        """With what was held back, half characters as U+FFFD."""
        text = self.before.push(self.stream.flush()) + self.before.flush()
        self.finish = "stop" if self.before.found else finish
        return Piece(self.number, text, self.finish, self.tokens)
