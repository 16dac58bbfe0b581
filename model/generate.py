"""Text from a model: one token at a time over a fixed window, greedy or sampled.

Each token runs the whole window again, which needs no cache and compiles once; a KV cache belongs to the
decoding work that follows.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from model import transformer
from model.config import ModelConfig


def generate(
    config: ModelConfig,
    params: transformer.Params,
    prompts: list[list[int]],
    *,
    window: int,
    max_tokens: int,
    temperature: float = 0.8,
    top_k: int = 50,
    stop_id: int | None = None,
    seed: int = 0,
) -> Iterator[list[int | None]]:
    """Yields the next id of every prompt, `max_tokens` times; None once it has ended with `stop_id`.

    The model sees the last `window` ids. Temperature 0 takes the likeliest. Equal arguments give equal ids.
    """
    ids = [list(prompt) for prompt in prompts]
    ended = [False] * len(ids)
    step = _next_ids(config, temperature, min(top_k, config.vocab_size))
    for number in range(max_tokens):
        buffer_BT = np.zeros((len(ids), window), np.int32)
        for row, sequence in zip(buffer_BT, ids):
            visible = sequence[-window:]
            row[: len(visible)] = visible
        last_B = np.array([min(len(sequence), window) - 1 for sequence in ids], np.int32)
        key = jax.random.fold_in(jax.random.key(seed), number)
        chosen = np.asarray(step(params, buffer_BT, last_B, key)).tolist()
        for sequence, token in zip(ids, chosen):
            sequence.append(token)
        ended = [done or token == stop_id for done, token in zip(ended, chosen)]
        if all(ended):
            return
        yield [None if done else token for done, token in zip(ended, chosen)]


@functools.cache
def _next_ids(config: ModelConfig, temperature: float, top_k: int):
    """Jitted: the next id of each row of a buffer, after its last token. Later columns cannot be seen."""

    @jax.jit
    def next_ids(params, buffer_BT, last_B, key) -> jax.Array:
        positions_BT = jnp.broadcast_to(jnp.arange(buffer_BT.shape[1]), buffer_BT.shape)
        hidden_BTD = transformer.apply(config, params, buffer_BT, jnp.ones_like(buffer_BT), positions_BT).hidden_BTD
        hidden_BD = jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0]
        logits_BV = transformer.logits(config, params, hidden_BD)
        if temperature == 0:
            return jnp.argmax(logits_BV, axis=-1)
        top_BK, ids_BK = jax.lax.top_k(logits_BV, top_k)
        choice_B = jax.random.categorical(key, top_BK / temperature, axis=-1)
        return jnp.take_along_axis(ids_BK, choice_B[:, None], axis=1)[:, 0]

    return next_ids
