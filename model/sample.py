"""The next token from logits: greedy, or drawn at a temperature from the likeliest."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from core.config import require


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. The cuts apply in this order, each on what the one before left."""

    temperature: float = 0.8  # 0 takes the likeliest
    top_k: int = 0  # of the likeliest; 0 is all
    top_p: float = 1.0  # the fewest that have this probability together (Holtzman et al. 2020)
    min_p: float = 0.0  # those with at least this fraction of the likeliest one's (Nguyen et al. 2024)

    def __post_init__(self):
        require(self.temperature >= 0, f"temperature={self.temperature} must be 0 or more")
        require(self.top_k >= 0, f"top_k={self.top_k} must be 0 or more")
        require(0 < self.top_p <= 1, f"top_p={self.top_p} must be above 0 and at most 1")
        require(0 <= self.min_p <= 1, f"min_p={self.min_p} must lie between 0 and 1")


def sample(logits_BV: jax.Array, sampling: Sampling, seed: int, number: int) -> jax.Array:
    """Token `number` of every row. A row's draw depends on seed, number and row, not on how many rows there are."""
    if sampling.temperature == 0:
        return _greedy(logits_BV)
    V = logits_BV.shape[1]
    most = min(1 << (sampling.top_k - 1).bit_length(), V) if sampling.top_k else 0  # so that few sizes are compiled
    cuts = (min(sampling.top_k, V), sampling.top_p, sampling.min_p)
    return _draw(logits_BV, sampling.temperature, *cuts, seed, number, most, sampling.top_p < 1)


@jax.jit
def _greedy(logits_BV):
    return jnp.argmax(logits_BV, axis=-1)


@functools.partial(jax.jit, static_argnames=("most", "nucleus"))
def _draw(logits_BV, temperature, top_k, top_p, min_p, seed, number, most, nucleus):
    """Sorting costs more than all the rest, so it is done only where a cut needs it."""
    ids_BC, logits_BC = None, logits_BV / temperature
    if most or nucleus:
        logits_BC, ids_BC = jax.lax.top_k(logits_BC, most or logits_BV.shape[1])  # sorted
    if most:
        logits_BC = jnp.where(jnp.arange(most) < top_k, logits_BC, -jnp.inf)
    if nucleus:
        probs_BC = jax.nn.softmax(logits_BC, axis=-1)
        before_BC = jnp.cumsum(probs_BC, axis=-1) - probs_BC
        logits_BC = jnp.where(before_BC < top_p, logits_BC, -jnp.inf)
    largest_B1 = jnp.max(logits_BC, axis=-1, keepdims=True)
    logits_BC = jnp.where(logits_BC >= largest_B1 + jnp.log(min_p), logits_BC, -jnp.inf)  # log(0) cuts nothing
    key = jax.random.fold_in(jax.random.key(seed), number)
    keys_B = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(len(logits_BC)))
    chosen_B = jax.vmap(jax.random.categorical)(keys_B, logits_BC)
    return chosen_B if ids_BC is None else jnp.take_along_axis(ids_BC, chosen_B[:, None], axis=1)[:, 0]
