"""What our model makes of token ids, and how far that is from the peer's answers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from decode_lab import read

from model import transformer
from model.config import ModelConfig
from model.decode import Decoder
from model.generate import generate
from model.hf import tensors
from model.sample import Sampling
from objectives.build import build
from objectives.config import ObjectiveConfig

LOGITS, HALF, GRADIENTS = 1e-4, 2e-2, 1e-3  # the bounds: absolute; relative in norm; relative to the largest
LENGTHS = (1, 2, 17, 64, 127)
CONTEXT = 160  # of the cache


class Batch:
    """One row that predicts its own next tokens."""

    def __init__(self, ids: list[int]):
        self.tokens_BT = jnp.array([ids])
        self.segment_ids_BT = jnp.ones_like(self.tokens_BT)
        self.positions_BT = jnp.arange(len(ids))[None]
        self.targets_BT = jnp.array([[*ids[1:], 0]])
        self.weights_BT = jnp.array([[1.0] * (len(ids) - 1) + [0.0]])


def our_logits(config: ModelConfig, params: dict, ids: list[int]) -> np.ndarray:
    """Of one document alone."""
    batch = Batch(ids)
    output = transformer.apply(config, params, batch.tokens_BT, batch.segment_ids_BT, batch.positions_BT)
    return np.asarray(transformer.logits(config, params, output.hidden_BTD[0]), np.float32)


def our_packed(config: ModelConfig, params: dict, documents: list[list[int]], padding: int = 9) -> list[np.ndarray]:
    """Of documents packed into one row with padding behind them."""
    lengths = [len(one) for one in documents]
    tokens = jnp.array([[token for one in documents for token in one] + [0] * padding])
    segments = jnp.array([np.repeat(np.arange(len(documents) + 1), [*lengths, padding])])
    positions = jnp.array([np.concatenate([np.arange(n) for n in (*lengths, padding)])])
    hidden = transformer.apply(config, params, tokens, segments, positions).hidden_BTD
    return np.split(np.asarray(transformer.logits(config, params, hidden[0]), np.float32), np.cumsum(lengths))[:-1]


def our_cached(decoder: Decoder, ids: list[int]) -> np.ndarray:
    """Of one document fed through the cache one by one after its first."""
    logits_1V, rows = decoder.prefill([ids[:1]])
    found, caches = [logits_1V], rows.caches
    for position, token in enumerate(ids[1:], 1):
        logits_11V, caches = read(decoder, caches, [[token]], [[position]])
        found.append(logits_11V[:, 0])
    return np.concatenate(found).astype(np.float32)


def through_cache(config: ModelConfig, params: dict, prompts: list[list[int]], answer: dict) -> tuple[float, bool]:
    """Prompts of different lengths continued together by our cache.

    Largest difference of its logits from theirs for the ids of `prompts[-1]`; and whether the greedy continuations of
    all are the same.
    """
    decoder = Decoder(config, params, CONTEXT)
    steps = list(generate(decoder, prompts, max_tokens=12, sampling=Sampling(temperature=0)))
    same = np.array_equal(np.array(steps).T, answer["greedy"])
    worst = np.abs(our_cached(decoder, prompts[-1]) - answer[f"alone{len(LENGTHS) - 1}"]).max()
    return float(worst), same


def relative(found: np.ndarray, there: np.ndarray) -> float:
    """Distance relative to theirs, in norm."""
    return float(np.linalg.norm(found - there) / np.linalg.norm(there))


def in_bfloat16(config: ModelConfig, params: dict, ids: list[list[int]], answer: dict) -> tuple[float, float, float]:
    """Distance of our bfloat16 from theirs: documents alone, packed, and the last of them through the cache."""
    config, there = dataclasses.replace(config, dtype="bfloat16"), answer["bfloat16"]
    alone = np.concatenate([our_logits(config, params, one) for one in ids])
    packed = np.concatenate(our_packed(config, params, ids))
    cached = our_cached(Decoder(config, params, CONTEXT), ids[-1])
    return relative(alone, there), relative(packed, there), relative(cached, there[-len(ids[-1]) :])


def their_gradients(answer: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix("gradient "): array for name, array in answer.items() if name.startswith("gradient ")}


def worst_gradient(config: ModelConfig, params: dict, ids: list[int], answer: dict[str, np.ndarray]) -> float:
    """Largest difference of a tensor's gradients, relative to its largest element, over all tensors."""
    objective, batch = build(config, ObjectiveConfig()), Batch(ids)
    ours = jax.jit(jax.grad(lambda params: objective.loss(params, batch, objective.counts(batch))[0]))(params)
    theirs, worst = their_gradients(answer), 0.0
    for tensor in tensors(config):
        leaf = ours
        for name in tensor.path:
            leaf = leaf[name]
        own = tensor.theirs(np.asarray(leaf if tensor.layer is None else leaf[tensor.layer]))
        there = theirs.pop(tensor.name)
        worst = max(worst, float(np.abs(own - there).max() / np.abs(there).max()))
    assert not theirs, theirs.keys()
    return worst
