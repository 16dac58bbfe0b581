"""A completer whose words are known beforehand: a token a byte, and a decoder that follows a script."""

import re
import time
from typing import ClassVar, NamedTuple

import numpy as np

from core.errors import UserError
from data.chat import ChatTemplate, default_source
from data.tokenizer import Tokenizer, require_unicode
from evals.complete import Completer

CONTEXT = 600


class ByteTokens(Tokenizer):
    """A token a byte, and three special ones."""

    kind, vocab_size, begin, eos, stop_ids = "bpe", 259, (), 256, (256,)
    special_tokens: ClassVar = {"</s>": 256, "<|im_start|>": 257, "<|im_end|>": 258}
    fingerprint, path = "bytes", "bytes"
    token_bytes: ClassVar = [*(bytes([i]) for i in range(256)), *map(str.encode, special_tokens)]

    def encode(self, text, special=False):
        require_unicode(text)
        parts = re.split(f"({self._special_names.pattern})", text) if special else [text]
        known = self.special_tokens if special else {}
        return [i for part in parts for i in ([known[part]] if part in known else part.encode())]

    def encode_with_offsets(self, text, special=False):
        raise NotImplementedError


class Script:
    """Stands for `model.decode.Decoder`: the token after a prompt is the script's first, whatever came before."""

    context = CONTEXT
    drafted, accepted = 8, 6

    def __init__(self, *scripts: str, pause: float = 0.0):
        """One script a row; the last serves for further rows, and is repeated without end."""
        tokens = [ByteTokens().encode(script, special=True) for script in scripts]
        self.tokens, self.pause, self.steps = tokens, pause, 0

    def begin(self, prompts, *_):
        if max(map(len, prompts)) > self.context:
            raise UserError(
                f"a prompt of {max(map(len, prompts))} tokens is longer than the cache; raise eval.context"
            )
        self.prompts, tokens_BS = prompts, np.zeros((len(prompts), self.context + 1), int)
        for row, (tokens_S, prompt) in enumerate(zip(tokens_BS, prompts)):
            script = self.tokens[min(row, len(self.tokens) - 1)]
            tokens_S[: len(prompt)] = prompt
            tokens_S[len(prompt) :] = np.resize(script, self.context + 1 - len(prompt))
        return Written(tokens_BS, np.array(list(map(len, prompts))))

    def advance(self, rows, until_B, *_):
        """A step is a token of every row."""
        while (rows.last_B < until_B).any():
            time.sleep(self.pause)
            self.steps += 1
            rows = rows._replace(last_B=rows.last_B + (rows.last_B < until_B))
        return rows


class Written(NamedTuple):
    """Stands for `model.decode.Rows`."""

    tokens_BS: np.ndarray
    last_B: np.ndarray


def completer(*scripts: str, pause: float = 0.0) -> Completer:
    """One that says what the scripts say, with our chat template."""
    template = ChatTemplate(default_source(), bos="", eos="</s>", date="2025-06-30")
    return Completer(Script(*scripts, pause=pause), ByteTokens(), template)
