"""A model fed through its cache as decoding does, to see the logits."""

import functools

import jax
import jax.numpy as jnp

from model import cache


def read(decoder, caches, tokens_BT, positions_BT):
    """Logits [B, T, V] of further tokens, and the caches with them."""
    return _read(decoder.config, decoder.weights, caches, jnp.asarray(tokens_BT), jnp.asarray(positions_BT))


@functools.partial(jax.jit, static_argnums=0)
def _read(config, weights, caches, tokens_BT, positions_BT):
    residual_BTD, caches = cache.extend(config, weights, caches, tokens_BT, positions_BT)
    return cache.logits(config, weights.outer, residual_BTD), caches
