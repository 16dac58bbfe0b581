"""Decoding with a cache of keys and values: prompts of different lengths at once, then a loop on the device.

A round of the loop reads the newest token of every row and, where modules of the model draft, their drafts behind it:
one pass of the trunk, which says how many of them stay and what follows. Without drafts that is a token a round.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, NamedSharding

from core.errors import UserError
from model import cache as cached
from model import multi_token, transformer
from model.cache import Cache, Layer, Weights
from model.config import ModelConfig
from model.draft import Memory, accept_drawn, accept_likeliest, draft, lookback, remember
from model.position import Rotation, rotary_table
from model.sample import Cuts, Sampling, keys_of, probabilities, sample


class Rows(NamedTuple):
    """Texts that grow."""

    tokens_BS: jax.Array  # up to the newest; behind it stands anything
    start_B: jax.Array  # the length of the prompt
    last_B: jax.Array  # the place of the newest token, which no cache holds yet
    caches: list[Cache]
    memory: Memory | None  # of the modules, where they draft
    drafted: jax.Array
    accepted: jax.Array


class Decoder:
    """A model ready to decode, its layers unstacked, for rows of up to `context` tokens, with so many drafts a round.

    It holds its own copy of the parameters in the dtype of the computation, and counts its drafts.
    """

    def __init__(self, config: ModelConfig, params: transformer.Params, context: int, drafts: int = 0):
        require_drafts(config, drafts)
        self.config, self.context, self.drafts = config, context, drafts
        sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
        self.mesh = sharding.mesh.abstract_mesh if isinstance(sharding, NamedSharding) else AbstractMesh((), ())
        self.weights = cached.unstack(config, params, context, drafts)
        self.drafted = self.accepted = 0

    def begin(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> Rows:
        """The prompts and a token behind each."""
        logits_BV, rows = self.prefill(prompts)
        tokens_B = sample(logits_BV, sampling.cuts(self.config.vocab_size), seed, rows.start_B * 0)
        tokens_BS = rows.tokens_BS.at[jnp.arange(len(prompts)), rows.last_B].set(tokens_B)
        return rows._replace(tokens_BS=tokens_BS)

    def advance(self, rows: Rows, until_B: np.ndarray, sampling: Sampling, seed: int) -> Rows:
        """Rows whose newest token stands at `until_B` at least, or `context` at most; `rows` is given up.

        A row that is there already waits for the others. Its tokens depend on the seed and its number among rows.
        """
        cuts = sampling.cuts(self.config.vocab_size)
        until_B = np.minimum(until_B, self.context).astype(np.int32)
        with jax.sharding.use_abstract_mesh(self.mesh):
            rows = _advance(self.config, self.weights, rows, until_B, cuts, seed)
        self.drafted, self.accepted = self.drafted + int(rows.drafted), self.accepted + int(rows.accepted)
        return rows

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[jax.Array, Rows]:
        """Logits [B, V] after the last token of each prompt, and the rows that await one more.

        Prompts are padded to a power of two, so that few lengths are compiled.
        """
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        if not lengths.min():
            raise UserError("a prompt is empty; a model needs a token to begin with")
        if lengths.max() > self.context:
            raise UserError(
                f"a prompt of {lengths.max():,} tokens is longer than the cache of {self.context:,}; shorten it, or "
                "raise eval.context"
            )
        T = min(self.context, max(16, 1 << (int(lengths.max()) - 1).bit_length()))
        tokens_BS = np.zeros((len(prompts), self.context + self.drafts + 1), np.int32)
        for row, prompt in zip(tokens_BS, prompts):
            row[: len(prompt)] = prompt
        tokens_BT, caches = tokens_BS[:, :T], []
        residual_BTD, *turn = _embed(self.config, self.weights.outer, tokens_BT)
        with jax.sharding.use_abstract_mesh(self.mesh):  # where kernels look for what they run on
            for layer in self.weights.layers:
                residual_BTD, cache = _fill(self.config, self.context, layer, residual_BTD, turn)
                caches.append(cache)
            memory = self._recall(tokens_BS, lengths, residual_BTD, turn) if self.drafts else None
        x_B1D = jnp.take_along_axis(residual_BTD, lengths[:, None, None] - 1, axis=1)
        logits_BV = _logits(self.config, self.weights.outer, x_B1D)[:, 0]
        start_B = jnp.asarray(lengths)
        counts = jnp.int32(0), jnp.int32(0)  # a Python number is of another type, for which the loop compiles anew
        return logits_BV, Rows(jnp.asarray(tokens_BS), start_B, start_B + 0, caches, memory, *counts)

    def _recall(self, tokens_BS: np.ndarray, lengths: np.ndarray, residual_BTD: jax.Array, turn: Any) -> Memory:
        """What modules know after the prompts. Their newest places are computed again in the first round."""
        caches, stream_BTD = [], residual_BTD
        for number, layer in enumerate(self.weights.modules, 1):
            ahead_BT = tokens_BS[:, number : residual_BTD.shape[1] + number]
            given = residual_BTD, stream_BTD, ahead_BT
            stream_BTD, cache = _fill_module(self.config, self.context, layer, self.weights.outer, *given, turn)
            caches.append(cache)
        first_B = jnp.asarray(lengths) - 1 - lookback(self.config, self.drafts)
        places_BW = first_B[:, None] + np.arange(lookback(self.config, self.drafts) + self.drafts + 1)
        residual_BWD = jnp.take_along_axis(residual_BTD, places_BW[..., None], axis=1, mode="clip")
        return Memory(caches, residual_BWD, first_B)


def require_drafts(config: ModelConfig, drafts: int) -> None:
    """Refuses drafts that no module of the model makes."""
    modules = config.multi_token.modules
    if drafts and not modules:
        raise UserError(
            f"eval.drafts={drafts} needs modules that predict further tokens, and this model was trained without "
            "(model.multi_token); leave eval.drafts at 0"
        )
    if drafts > modules:
        raise UserError(
            f"eval.drafts={drafts} is more than the {modules} modules of model.multi_token, which is the most"
        )


@functools.partial(jax.jit, static_argnames="config")
def _embed(config, outer, tokens_BT):
    """The stream before the first layer, and the angles of positions from 0 on."""
    B, T = tokens_BT.shape
    positions_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    return cached.embed(config, outer, tokens_BT), *rotary_table(positions_BT, config)


@functools.partial(jax.jit, static_argnames=("config", "context"))
def _fill(config: ModelConfig, context: int, layer: Layer, x_BTD, turn):
    block, attend = nnx.merge(cached.block(config), layer.params), cached.filling(config, context, layer.window)
    return block(x_BTD, Rotation(*turn, layer.uses_rope), attend)


@functools.partial(jax.jit, static_argnames=("config", "context"))
def _fill_module(config: ModelConfig, context: int, layer: Layer, outer, residual_BTD, stream_BTD, ahead_BT, turn):
    module, x_BTD = nnx.merge(multi_token.graph(config), layer.params), residual_BTD
    if config.multi_token.kind == "sequential":
        x_BTD = module.join(stream_BTD, cached.embed(config, outer, ahead_BT))
    return module(x_BTD, Rotation(*turn, layer.uses_rope), cached.filling(config, context, layer.window))


_logits = jax.jit(cached.logits, static_argnames="config")


@functools.partial(jax.jit, static_argnames="config", donate_argnames="rows")
def _advance(config: ModelConfig, weights: Weights, rows: Rows, until_B: jax.Array, cuts: Cuts, seed: int) -> Rows:
    """Rounds until every row is there. Counts drafts from 0."""
    rows = rows._replace(drafted=jnp.int32(0), accepted=jnp.int32(0))
    a_round = functools.partial(_round, config, weights, until_B=until_B, cuts=cuts, seed=seed)
    return jax.lax.while_loop(lambda rows: jnp.any(rows.last_B < until_B), a_round, rows)


def _round(config: ModelConfig, weights: Weights, rows: Rows, until_B: jax.Array, cuts: Cuts, seed: int) -> Rows:
    """A pass of the trunk. Rows that are there already compute the same again, and stay."""
    if weights.modules:
        return _drafted_round(config, weights, rows, until_B, cuts, seed)
    logits_BTV, _, caches = _read(config, weights, rows, rows.tokens_BS, 1)
    next_B = sample(logits_BTV[:, 0], cuts, seed, rows.last_B + 1 - rows.start_B)
    return _grow(rows._replace(caches=caches), next_B, 0, rows.last_B < until_B)


def _drafted_round(config, weights, rows, until_B, cuts, seed):
    M, going_B, memory = len(weights.modules), rows.last_B < until_B, rows.memory
    # For every draft, and two for the rule. All from one split: keys of a split and of `fold_in` may be the same.
    keys_BX = jax.vmap(lambda key: jax.random.split(key, M + 2))(keys_of(seed, rows.last_B + 1 - rows.start_B))
    drafted = draft(config, weights, memory, rows.tokens_BS, rows.last_B, functools.partial(_choose, cuts, keys_BX))
    logits_BTV, residual_BTD, caches = _read(config, weights, rows, drafted.tokens_BS, M + 1)
    room_B = jnp.clip(caches[0].v_BKSH.shape[2] - 1 - rows.last_B, 0, M)
    drafts_BM = jnp.take_along_axis(drafted.tokens_BS, rows.last_B[:, None] + 1 + jnp.arange(M), axis=1)
    if cuts.greedy:
        count_B, next_B = accept_likeliest(logits_BTV, drafts_BM, room_B)
    else:
        p_BTV, q_BMV = probabilities(logits_BTV, cuts), probabilities(drafted.logits_BMV, cuts)
        count_B, next_B = accept_drawn(p_BTV, q_BMV, drafts_BM, room_B, keys_BX[:, M:])
    known = remember(config, memory, drafted.caches, rows.last_B, residual_BTD)
    residual_BWD = jnp.where(going_B[:, None, None], known.residual_BWD, memory.residual_BWD)
    known = Memory(known.caches, residual_BWD, jnp.where(going_B, known.first_B, memory.first_B))
    offered, taken = (jnp.sum(jnp.where(going_B, number_B, 0)) for number_B in (room_B, count_B))
    counts = {"drafted": rows.drafted + offered, "accepted": rows.accepted + taken}
    rows = rows._replace(tokens_BS=drafted.tokens_BS, caches=caches, memory=known, **counts)
    return _grow(rows, next_B, count_B, going_B)


def _read(config: ModelConfig, weights: Weights, rows: Rows, tokens_BS: jax.Array, several: int) -> Any:
    """Logits and the trunk's last residual stream at the newest token and those behind it, and the caches then."""
    positions_BT = rows.last_B[:, None] + jnp.arange(several)
    read_BT = jnp.take_along_axis(tokens_BS, positions_BT, axis=1)
    residual_BTD, caches = cached.extend(config, weights, rows.caches, read_BT, positions_BT)
    return cached.logits(config, weights.outer, residual_BTD), residual_BTD, caches


def _grow(rows: Rows, next_B: jax.Array, count_B: jax.Array | int, going_B: jax.Array) -> Rows:
    """With so many of the drafts and a token behind them, where a row is going on."""
    newest_B = rows.last_B + count_B + 1
    tokens_BS = rows.tokens_BS.at[jnp.arange(len(newest_B)), newest_B].set(next_B)
    return rows._replace(tokens_BS=tokens_BS, last_B=jnp.where(going_B, newest_B, rows.last_B))


def _choose(cuts: Cuts, keys_BX: jax.Array, logits_BV: jax.Array, number: int) -> jax.Array:
    """A draft of every row, as its own tokens would be chosen."""
    if cuts.greedy:
        return jnp.argmax(logits_BV, axis=-1)
    return jax.vmap(jax.random.categorical)(keys_BX[:, number - 1], jnp.log(probabilities(logits_BV, cuts)))
