"""Distributions over the vocabulary as a few ids each: the k largest, or n random draws.

Draws are a function of (seed, document, place), whatever else is in the batch (Anshumann et al. 2025, "Sparse Logit
Sampling", arXiv:2503.16870). n draws with replacement from p itself, each of weight 1/n, are an unbiased estimate of
p, and so of every gradient that is linear in p; the k largest are not, however they are scaled.

Suffixes beside those of the model: X places, k ids of a place, M blocks of the vocabulary, W ids of a block.
"""

import math

import jax
import jax.numpy as jnp


def largest(probs_XV: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest probabilities and their ids (ids_Xk, probs_Xk)."""
    probs_Xk, ids_Xk = jax.lax.top_k(probs_XV, k)
    return ids_Xk, probs_Xk


def draw(probs_XV: jax.Array, keys_X: jax.Array, n: int) -> jax.Array:
    """n ids of each place [X, n], drawn with replacement in proportion to its probabilities.

    A block of the vocabulary is drawn first, then an id in it: one running sum over the vocabulary would have an
    error of 6e-8 in each id, which adds up where a teacher spreads over 100,000 of them.
    """
    X, V = probs_XV.shape
    W = math.isqrt(V - 1) + 1
    blocks_XMW = jnp.pad(probs_XV, ((0, 0), (0, -V % W))).reshape(X, -1, W)
    uniform_2Xn = jax.vmap(lambda key: jax.random.uniform(key, (2, n)), out_axes=1)(keys_X)
    block_Xn = _choose(blocks_XMW.sum(-1)[:, None], uniform_2Xn[0])
    chosen_XnW = jnp.take_along_axis(blocks_XMW, block_Xn[..., None], axis=1)
    ids_Xn = block_Xn * W + _choose(chosen_XnW, uniform_2Xn[1])
    return jnp.minimum(ids_Xn, V - 1)


def _choose(weights: jax.Array, uniform_Xn: jax.Array) -> jax.Array:
    """Where the running sum of weights [X, 1 or n, choices] first exceeds so much of their total."""
    sums = jnp.cumsum(weights, -1)
    chosen_Xn = jnp.sum(sums <= uniform_Xn[..., None] * sums[..., -1:], -1)
    return jnp.minimum(chosen_Xn, weights.shape[-1] - 1)


def place_keys(seed: int, documents_X: jax.Array, places_X: jax.Array) -> jax.Array:
    """The random key of every place: `documents_X` are hashes of documents, uint32, `places_X` places in them."""

    def one(document: jax.Array, place: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), document), place)

    return jax.vmap(one)(documents_X, places_X)
