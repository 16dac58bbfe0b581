"""What a student takes from inside its teacher: attention, relations among values, and features.

Layers are paired. Relations are distributions over what a token sees, earlier ones of its own document, compared by
KL(teacher | student), the mean over relation heads. Where the models' numbers of heads differ, the vectors of all
heads end to end are cut into as many relation heads as divide both (MiniLMv2, arXiv:2012.15828, section 3.1): logits
of the heads in one add up. Of a layer the residual stream is kept; queries, keys and values come from it again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels.cross_entropy.problem import capped
from kernels.dispatch import BATCH_AXES, free_axes, mesh_axes
from model import transformer
from model.attention import Heads
from model.config import ModelConfig
from objectives import schedule
from objectives.config import LayerMap
from objectives.interface import OWN, Measured, Named, Seen, mean
from objectives.schedule import Weight

MOST_PAIRS = 4
BLOCK_LOGITS = 2**21  # relations of both models that live at a time, each, on a device
LEAST_TOKENS = 16  # of a block, whatever it holds: fewer leave matrix units idle


def spread(student: int, teacher: int) -> LayerMap:
    """Up to four pairs at equal parts of both depths, the last layers among them (TinyBERT, arXiv:1909.10351)."""
    pairs = min(MOST_PAIRS, student, teacher)
    return tuple((round(i * student / pairs), round(i * teacher / pairs)) for i in range(1, pairs + 1))


@dataclass(frozen=True)
class Transfer:
    """Paired layers and what their distance weighs. The metric is the distance, the mean over pairs, a token."""

    kind: str  # a name in DISTANCES
    weight: Weight
    layers: LayerMap
    passes = 0

    @property
    def name(self) -> str:
        """Of the metric."""
        return f"distill_{self.kind}"

    @property
    def streams(self) -> LayerMap:
        """Numbers of layers after which the streams are needed: those before the layers that attend, else after."""
        before = 0 if self.kind == "features" else 1
        return tuple((own - before, theirs - before) for own, theirs in self.layers)

    def counts(self, batch: Any) -> Named:
        """The number of predicted tokens."""
        return {self.name: jnp.sum(batch.weights_BT)}

    def measure(self, seen: Seen, counts: Named, progress: jax.Array | float) -> Measured:
        """One pair after the other."""
        found = [self._distance(seen, number) for number in range(len(self.layers))]
        total = sum(found) / len(found)
        return Measured(schedule.at(self.weight, progress) * mean(total, counts[self.name]), {self.name: total})

    def _distance(self, seen: Seen, number: int) -> jax.Array:
        """Of one pair, summed over tokens; all but its streams is computed again in the backward pass."""
        (own, theirs), (own_layer, their_layer) = self.streams[number], self.layers[number]
        streams = seen.output.streams[own], seen.teacher.output.streams[theirs]
        ours = Side(seen.model, seen.params, own_layer, streams[0])
        given = Side(seen.teacher.model, seen.teacher.params, their_layer, streams[1])

        def distance(x_BTD, params):
            side = ours._replace(x_BTD=x_BTD, params=params)
            return DISTANCES[self.kind](side, given, seen.batch, number)

        return jax.checkpoint(distance)(ours.x_BTD, ours.params)


class Side(NamedTuple):
    """One model's part of a pair."""

    model: ModelConfig
    params: transformer.Params
    layer: int
    x_BTD: jax.Array  # the stream after the layer, or before it where it attends


def features(own: Side, given: Side, batch: Any, number: int) -> jax.Array:
    """1 - cosine between the residual streams, the student's through a learned projection.

    The cosine is DistilBERT's (arXiv:1910.01108), the projection TinyBERT's.
    """
    w_DE = own.params[OWN]["layers"]["projection"][number].astype(own.x_BTD.dtype)
    y_BTE = jnp.einsum("BTD,DE->BTE", own.x_BTD, w_DE, preferred_element_type=jnp.float32)
    return jnp.sum((1 - _cosine(y_BTE, given.x_BTD.astype(jnp.float32))) * batch.weights_BT)


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    inverse_norms = [jax.lax.rsqrt(jnp.sum(jnp.square(x), -1) + 1e-12) for x in (a, b)]
    return jnp.sum(a * b, -1) * inverse_norms[0] * inverse_norms[1]


def projections(seed: int, pairs: int, width: int, teacher_width: int) -> transformer.Params:
    """Fresh ones, which keep the size of what they project; drawn apart from the model."""
    key = jax.random.fold_in(jax.random.key(seed), 1)
    w_LDE = jax.random.normal(key, (pairs, width, teacher_width), jnp.float32) / math.sqrt(width)
    return {"layers": {"projection": w_LDE}}


class Relation(NamedTuple):
    """Logits scale * a b^T of every relation head R, within a soft cap."""

    a_BTRH: jax.Array
    b_BTRH: jax.Array
    scale: float
    soft_cap: float | None = None


def maps(own: Side, given: Side, batch: Any, _: int) -> jax.Array:
    """Whom each token attends to (MiniLM, arXiv:2002.10957), with each query head's own keys.

    Over the whole document: a sliding window of either model is left out.
    """
    R = math.gcd(own.model.num_heads, given.model.num_heads)

    def relation(side: Side) -> Relation:
        model, (q_BTNH, k_BTKH, _) = side.model, _heads(side, batch)
        k_BTNH = jnp.repeat(k_BTKH, model.num_heads // model.num_kv_heads, 2)
        scale = (model.attention_scale or model.head_dim**-0.5) * (model.num_heads // R) ** -0.5
        return Relation(_cut(q_BTNH, R), _cut(k_BTNH, R), scale, model.attention_soft_cap)

    return relation_kl(relation(own), relation(given), batch)


def values(own: Side, given: Side, batch: Any, _: int) -> jax.Array:
    """softmax(V V^T / sqrt(d)), with d the size of a relation head (MiniLM)."""
    R = math.gcd(own.model.num_kv_heads, given.model.num_kv_heads)

    def relation(side: Side) -> Relation:
        v_BTRH = _cut(_heads(side, batch).v_BTKH, R)
        return Relation(v_BTRH, v_BTRH, v_BTRH.shape[-1] ** -0.5)

    return relation_kl(relation(own), relation(given), batch)


def _heads(side: Side, batch: Any) -> Heads:
    return transformer.heads(side.model, side.params, side.layer, side.x_BTD, batch.positions_BT)


def _cut(x_BTNH: jax.Array, number: int) -> jax.Array:
    """All heads end to end, in so many parts."""
    return x_BTNH.reshape(*x_BTNH.shape[:2], number, -1)


def relation_kl(own: Relation, given: Relation, batch: Any) -> jax.Array:
    """Summed over tokens KL(given | own), a block of tokens at a time: no [T, T] of all heads exists."""
    B, T, R, _ = own.a_BTRH.shape
    t, places_T = _block_length(B, T, R), jnp.arange(T)

    def block(total, tokens):
        own_BtRH, given_BtRH, segments_Bt, places_Bt, weights_Bt = tokens
        visible_BtT = (places_Bt[..., None] >= places_T) & (segments_Bt[..., None] == batch.segment_ids_BT[:, None])
        visible_BRtT = visible_BtT[:, None]
        log_p_BRtT = _log_softmax(own._replace(a_BTRH=own_BtRH), visible_BRtT)
        log_q_BRtT = _log_softmax(given._replace(a_BTRH=given_BtRH), visible_BRtT)
        nats_BRtT = jnp.where(visible_BRtT, jnp.exp(log_q_BRtT) * (log_q_BRtT - log_p_BRtT), 0)
        return total + jnp.sum(jnp.sum(nats_BRtT, (1, 3)) * weights_Bt) / R, None

    def blocks(x_BT: jax.Array) -> jax.Array:
        """[blocks, B, t, ...], the last filled up with tokens that have no weight."""
        filled = jnp.pad(x_BT, [(0, 0), (0, -T % t), *[(0, 0)] * (x_BT.ndim - 2)])
        return jnp.moveaxis(filled.reshape(len(x_BT), -1, t, *x_BT.shape[2:]), 1, 0)

    rows = own.a_BTRH, given.a_BTRH, batch.segment_ids_BT, jnp.broadcast_to(places_T, (B, T)), batch.weights_BT
    tokens = tuple(map(blocks, rows))
    return jax.lax.scan(jax.checkpoint(block, prevent_cse=False), jnp.float32(0), tokens)[0]


def _block_length(B: int, T: int, R: int) -> int:
    """Tokens of each row in a block, by the rows that a device holds."""
    sizes = free_axes()
    rows = B // math.prod(sizes[axis] for axis in mesh_axes(BATCH_AXES, B))
    return min(T, max(LEAST_TOKENS, BLOCK_LOGITS // (rows * R * T)))


def _log_softmax(relation: Relation, visible_BRtT: jax.Array) -> jax.Array:
    """Log of the softmax over what each token sees; a finite number elsewhere."""
    logits_BRtT = jnp.einsum("BtRH,BTRH->BRtT", relation.a_BTRH, relation.b_BTRH, preferred_element_type=jnp.float32)
    logits_BRtT = capped(logits_BRtT * relation.scale, relation.soft_cap)
    return jax.nn.log_softmax(jnp.where(visible_BRtT, logits_BRtT, -1e30), -1)


# Of (student, teacher, batch, number of the pair), summed over tokens.
Distance = Callable[[Side, Side, Any, int], jax.Array]
DISTANCES: dict[str, Distance] = {"features": features, "maps": maps, "values": values}
