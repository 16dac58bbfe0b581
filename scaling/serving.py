"""What serving the result costs: the cache of keys and values, and tokens a second by memory bandwidth.

Decoding reads all weights once a step, and the cache of every sequence; nothing else is counted, so these are upper
bounds. Weights and cache are bfloat16.
"""

import dataclasses
from typing import NamedTuple

from model.config import ModelConfig, MultiToken
from scaling.chips import Chip

ITEMSIZE = 2  # bfloat16


class Serving(NamedTuple):
    """Of a model on the fewest devices that hold it."""

    devices: int  # a power of two, heads and vocabulary split over them
    weights: int  # bytes
    cache_per_token: int  # bytes
    cache: int  # bytes of a sequence; a layer with a sliding window needs no more than that
    context: int  # tokens of a sequence
    single: float  # tokens a second of one sequence
    batch: int  # sequences of the full context that fill the memory
    batched: float  # tokens a second of all of them


def serving(model: ModelConfig, chip: Chip, context: int) -> Serving:
    """Of a model at a context of so many tokens."""
    model = dataclasses.replace(model, multi_token=MultiToken())  # an export drops modules, unless it is asked not to
    weights = ITEMSIZE * model.num_parameters
    # A token reads all weights but the embedding table, where the head is another one.
    read = weights - (0 if model.tied_head else ITEMSIZE * model.vocab_size * model.d_model)
    cache = cache_bytes(model, context)
    devices = 1
    while devices * chip.usable < weights + cache:
        devices *= 2
    bandwidth = devices * chip.bandwidth
    batch = int((devices * chip.usable - weights) // cache)
    batched = batch * bandwidth / (read + batch * cache)
    single = bandwidth / (read + cache)
    return Serving(devices, weights, cache_bytes(model, 1), cache, context, single, batch, batched)


def cache_bytes(model: ModelConfig, context: int) -> int:
    """Keys and values of a sequence; a layer with a sliding window needs no more than that."""
    kept = sum(min(context, window or context) for window in model.windows)
    return 2 * ITEMSIZE * model.num_kv_heads * model.head_dim * kept
