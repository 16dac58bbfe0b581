"""A completer whose words are known beforehand: a token a byte, and a decoder that follows a script."""

import re
import time
from typing import ClassVar

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
    fingerprint = "bytes"
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

    def __init__(self, *scripts: str, pause: float = 0.0):
        """One script a row; the last serves for further rows, and is repeated without end."""
        tokens = [ByteTokens().encode(script, special=True) for script in scripts]
        self.tokens, self.pause, self.steps = tokens, pause, 0

    def prefill(self, prompts):
        if max(map(len, prompts)) > self.context:
            raise UserError(
                f"a prompt of {max(map(len, prompts))} tokens is longer than the cache; raise eval.context"
            )
        self.lengths, self.prompts = np.array(list(map(len, prompts))), prompts
        return self._logits(self.lengths), []

    def step(self, _caches, _tokens, positions):
        time.sleep(self.pause)
        self.steps += 1
        return self._logits(positions + 1)

    def _logits(self, positions):
        logits = np.full((len(positions), ByteTokens.vocab_size), -1e9, np.float32)
        for row, number in enumerate(positions - self.lengths):
            script = self.tokens[min(row, len(self.tokens) - 1)]
            logits[row, script[number % len(script)]] = 0
        return logits


def completer(*scripts: str, pause: float = 0.0) -> Completer:
    """One that says what the scripts say, with our chat template."""
    template = ChatTemplate(default_source(), bos="", eos="</s>", date="2025-06-30")
    return Completer(Script(*scripts, pause=pause), ByteTokens(), template)
