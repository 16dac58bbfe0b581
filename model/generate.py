"""Tokens from a model, a step at a time, for several prompts at once."""

import time
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from model.decode import Decoder
from model.sample import Sampling

MOST = 64  # steps computed at once
BLINK = 0.05  # seconds; what takes longer is shown sooner


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 (immutable)
    stop_ids: Collection[int] = (),
    seed: int = 0,
) -> Iterator[list[int | None]]:
    """Yields the next id of every prompt, up to `max_tokens` times; None once it has ended.

    A row ends with one of `stop_ids`, which is yielded, or when its cache is full; the token after the last that the
    cache holds is still yielded. Equal arguments give equal ids. Steps are computed several at once, up to what a
    reader does not notice. Rows are filled up to a power of two, so that few numbers of them are compiled.
    """
    if max_tokens <= 0:
        return
    asked = len(prompts)
    prompts = [*prompts, *[prompts[0][:1]] * ((1 << (asked - 1).bit_length()) - asked)]
    lengths_B = np.array([len(prompt) for prompt in prompts])
    most_B = np.minimum(max_tokens, decoder.context + 1 - lengths_B)  # tokens that a row may get
    ended_B = np.arange(len(prompts)) >= asked
    rows = decoder.begin(prompts, sampling, seed)
    tokens_BS, ready_B, ahead = np.asarray(rows.tokens_BS), np.ones(len(prompts), int), 1
    for number in range(max_tokens):
        ended_B = ended_B | (number >= most_B)
        if ended_B.all():
            return
        if (ready_B <= number)[~ended_B].any():
            began = time.monotonic()
            until_B = np.where(ended_B, 0, lengths_B - 1 + np.minimum(number + ahead, most_B))
            rows = decoder.advance(rows, until_B, sampling, seed)
            tokens_BS, ready_B = np.asarray(rows.tokens_BS), np.asarray(rows.last_B) + 1 - lengths_B
            ahead = min(2 * ahead, MOST) if time.monotonic() - began < BLINK else max(ahead // 2, 1)
        ids = tokens_BS[np.arange(len(prompts)), np.minimum(lengths_B + number, tokens_BS.shape[1] - 1)].tolist()
        yield [None if ended else token for ended, token in zip(ended_B[:asked], ids)]
        ended_B = ended_B | np.isin(ids, list(stop_ids))
