"""Drafts of the next tokens by the modules of `multi_token`, and the rule by which the trunk takes or leaves them.

Module k drafts the token k places beyond the newest, from the place before the newest: there the trunk's last
residual stream is known. Its block attends to earlier places through a cache of its own, which holds what training
would have put there. A sequential module k reads the token k places ahead, so its entries of the newest k - 1 places
rest on drafts; they are made again in the next round, when the tokens are known.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from model import multi_token
from model.cache import Cache, Weights, embed, over, to_vocabulary
from model.config import ModelConfig
from model.position import Rotation, rotary_table

# (logits [B, V], the module's number from 1 on) to a token of every row
Choose = Callable[[jax.Array, int], jax.Array]


class Memory(NamedTuple):
    """What modules keep of rows."""

    caches: list[Cache]
    residual_BWD: jax.Array  # the trunk's, at W places from `first_B` on; up to the newest token's they count
    first_B: jax.Array


class Drafted(NamedTuple):
    """Tokens with M drafts behind the newest, their logits, and the modules' caches."""

    tokens_BS: jax.Array
    logits_BMV: jax.Array
    caches: list[Cache]


def lookback(config: ModelConfig, drafts: int) -> int:
    """How many places before a round's first one are computed again."""
    return drafts - 1 if config.multi_token.kind == "sequential" else 0


def draft(
    config: ModelConfig, weights: Weights, memory: Memory, tokens_BS: jax.Array, last_B: jax.Array, choose: Choose
) -> Drafted:
    """A draft of each module, behind the newest tokens, which stand at `last_B`."""
    caches, logits, (B, W, _) = [], [], memory.residual_BWD.shape
    rows_B, context = jnp.arange(B), memory.caches[0].v_BKSH.shape[2]
    places_BW = memory.first_B[:, None] + jnp.arange(W)
    slots_BW = jnp.where(places_BW < 0, context, places_BW)  # before a short prompt's beginning: not kept
    turn = Rotation(*rotary_table(slots_BW, config), jnp.array(multi_token.rotates(config)))
    newest_B11 = (last_B - 1 - memory.first_B)[:, None, None]
    stream_BWD = memory.residual_BWD
    for number, (layer, cache) in enumerate(zip(weights.modules, memory.caches), 1):
        module, x_BWD = nnx.merge(multi_token.graph(config), layer.params), memory.residual_BWD
        if config.multi_token.kind == "sequential":
            ahead_BW = jnp.take_along_axis(tokens_BS, places_BW + number, axis=1, mode="clip")
            x_BWD = module.join(stream_BWD, embed(config, weights.outer, ahead_BW))
        stream_BWD, cache = module(x_BWD, turn, over(config, cache, slots_BW, layer.window))
        hidden_B1D = module.final_norm(jnp.take_along_axis(stream_BWD, newest_B11, axis=1))
        logits.append(to_vocabulary(config, weights.outer, hidden_B1D)[:, 0])
        tokens_BS = tokens_BS.at[rows_B, last_B + number].set(choose(logits[-1], number))
        caches.append(cache)
    return Drafted(tokens_BS, jnp.stack(logits, 1), caches)


def remember(
    config: ModelConfig, memory: Memory, caches: list[Cache], last_B: jax.Array, residual_BTD: jax.Array
) -> Memory:
    """What the next round starts from: the streams that the trunk computed at T places from `last_B` on."""
    before = lookback(config, len(caches))
    kept_B = (last_B - before - memory.first_B)[:, None, None] + jnp.arange(before)[None, :, None]
    old_BPD = jnp.take_along_axis(memory.residual_BWD, kept_B, axis=1)
    return Memory(caches, jnp.concatenate([old_BPD, residual_BTD], axis=1), last_B - before)


def accept_likeliest(logits_BTV: jax.Array, drafts_BM: jax.Array, room_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How many drafts of every row are the likeliest tokens, at most `room_B`, and the likeliest behind them."""
    likeliest_BT = jnp.argmax(logits_BTV, axis=-1)
    count_B = _leading((likeliest_BT[:, :-1] == drafts_BM) & _fits(drafts_BM, room_B))
    return count_B, jnp.take_along_axis(likeliest_BT, count_B[:, None], axis=1)[:, 0]


def accept_drawn(
    p_BTV: jax.Array, q_BMV: jax.Array, drafts_BM: jax.Array, room_B: jax.Array, keys_B2: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """How many drafts, drawn from q, are accepted, and a token behind them: as if all were drawn from p, one by one.

    Speculative sampling (Leviathan et al. 2023, arXiv 2211.17192): the first draft that fails is replaced by one from
    what p has beyond q. Behind the last of `room_B` drafts the token is one from p.
    """
    fits_BM = _fits(drafts_BM, room_B)
    p_BM, q_BM = (jnp.take_along_axis(a, drafts_BM[..., None], -1)[..., 0] for a in (p_BTV[:, :-1], q_BMV))
    dice_BM = jax.vmap(lambda key: jax.random.uniform(key, drafts_BM.shape[1:]))(keys_B2[:, 0])
    count_B = _leading((dice_BM < acceptance(p_BM, q_BM)) & fits_BM)
    q_BTV = jnp.pad(jnp.where(fits_BM[..., None], q_BMV, 0), ((0, 0), (0, 1), (0, 0)))
    p_BV, q_BV = (jnp.take_along_axis(a, count_B[:, None, None], axis=1)[:, 0] for a in (p_BTV, q_BTV))
    return count_B, jax.vmap(jax.random.categorical)(keys_B2[:, 1], jnp.log(leftover(p_BV, q_BV)))


def acceptance(p: jax.Array, q: jax.Array) -> jax.Array:
    """The probability to accept a draft that has probability q > 0 among drafts, and p in the end."""
    return jnp.minimum(p / q, 1)


def leftover(p_XV: jax.Array, q_XV: jax.Array) -> jax.Array:
    """Probabilities [..., V] of what replaces a draft that was not accepted."""
    rest_XV = jnp.maximum(p_XV - q_XV, 0)
    total_X1 = rest_XV.sum(-1, keepdims=True)
    return jnp.where(total_X1 > 0, rest_XV / total_X1, p_XV)  # equal but for rounding: whatever is drawn then


def _fits(drafts_BM: jax.Array, room_B: jax.Array) -> jax.Array:
    return jnp.arange(drafts_BM.shape[1]) < room_B[:, None]


def _leading(accepted_BM: jax.Array) -> jax.Array:
    """How many stand before the first that is not."""
    return jnp.cumprod(accepted_BM, axis=1).sum(1)
