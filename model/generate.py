"""Tokens from a model, a step at a time, for several prompts at once."""

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from model.decode import Decoder
from model.sample import Sampling, sample


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
    cache holds is still yielded. Equal arguments give equal ids.
    """
    if max_tokens <= 0:
        return
    logits_BV, caches = decoder.prefill(prompts)
    lengths_B = np.array([len(prompt) for prompt in prompts])
    room_B = decoder.context - lengths_B
    ended_B = np.zeros(len(prompts), bool)
    tokens_B = sample(logits_BV, sampling, seed, 0)
    for number in range(max_tokens):
        following_B = None
        if number + 1 < max_tokens:  # the next step is under way while this one's ids are read
            logits_BV = decoder.step(caches, tokens_B, lengths_B + number)
            following_B = sample(logits_BV, sampling, seed, number + 1)
        ids = np.asarray(tokens_B).tolist()
        ended_B = ended_B | (number > room_B)
        if ended_B.all():
            return
        yield [None if ended else token for ended, token in zip(ended_B, ids)]
        ended_B = ended_B | np.isin(ids, list(stop_ids))
        if ended_B.all():
            return
        tokens_B = following_B
