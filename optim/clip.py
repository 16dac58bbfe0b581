"""Clipping: gradients kept in bounds before an optimiser's moments see them, and how much was taken away.

All norms are global: of a gradient that a mesh splits, XLA adds up the parts. Each kind leaves two metrics, computed
from norms alone: `clipped_share`, 1 - |after| / |before| of all gradients together, and `clipped_tensors`, how many
units were made smaller (all parameters as one, units, or tensors, by kind).
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from core.errors import UserError, suggest
from optim.config import OptimConfig
from optim.groups import GROUPS, label, path_name
from optim.matrices import PROJECTIONS
from optim.metrics import Metrics

# What lies below has the layers as its first dimension.
STACKED = ("layers/", "multi_token/layers/", "distill/layers/")
TINY = 1e-6  # that keeps divisors from 0


class ClipState(NamedTuple):
    """Of the kinds without memory."""

    metrics: Metrics


def global_norm(config: OptimConfig) -> optax.GradientTransformation:
    """All gradients by one factor, so that their norm is at most `clip_norm` (Pascanu et al. 2013, algorithm 1)."""
    clip = optax.clip_by_global_norm(config.clip_norm)

    def update(grads: Any, _: ClipState, params: Any = None) -> tuple[Any, ClipState]:
        before = optax.tree.norm(grads)
        return clip.update(grads, clip.init(params))[0], ClipState(_of_all(before, config.clip_norm))

    return optax.GradientTransformation(lambda _: ClipState(_no_metrics()), update)


def agc(config: OptimConfig) -> optax.GradientTransformation:
    """Unit by unit: a gradient's norm is at most `agc_ratio` of the norm of the weights (Brock et al. 2021,
    arXiv:2102.06171, section 4):

        G_i <- G_i min(1, ratio max(|W_i|, floor) / |G_i|)

    A unit is the weights that make one output (`unit_axes`). As there, the final layer is left alone: the group
    `head`. An embedding that is also the head is clipped, token by token: its other half needs it.
    """
    own, known = config.clip, {*GROUPS, *config.groups}
    for name in own.agc_exempt:
        if name not in known:
            raise UserError(f"config optim.clip.agc_exempt: {name!r} is no group of parameters{suggest(name, known)}")

    def update(grads: Any, _: ClipState, params: Any = None) -> tuple[Any, ClipState]:
        assert params is not None, "agc compares gradients with parameters"

        def one(path: tuple[Any, ...], grad: jax.Array, param: jax.Array, group: str) -> _Clipped:
            axes = unit_axes(path_name(path), grad.ndim)
            norm, weights = _norms(grad, axes), _norms(param, axes)
            most = (
                jnp.inf
                if {*group.split("/")} & {*own.agc_exempt}
                else own.agc_ratio * jnp.maximum(weights, own.agc_floor)
            )
            return _limited(grad, norm, most)

        clipped = jax.tree_util.tree_map_with_path(one, grads, params, label(params, config))
        return _gradients(clipped), ClipState(_of_each(clipped))

    return optax.GradientTransformation(lambda _: ClipState(_no_metrics()), update)


class AdaGCState(NamedTuple):
    """Of every tensor, each layer's being one, the norm that its gradients have had."""

    count: jax.Array  # int32, steps
    mean_norms: Any  # the parameters' tree of float32[L] in layers, float32[] elsewhere
    metrics: Metrics


def adagc(config: OptimConfig) -> optax.GradientTransformation:
    """Tensor by tensor: a gradient's norm is at most `adagc_ratio` of a running mean of its own clipped norms (Wang
    et al. 2025, arXiv:2502.11034, algorithm 1; numbers as in PaddlePaddle's `ClipGradByAdaptiveNorm`):

        g_i <- g_i min(1, ratio m_i / |g_i|),  m_i <- decay m_i + (1 - decay) |g_i after|

    For the first `adagc_warmup` steps the global norm is clipped, and m_i is the least norm that this leaves. Here a
    gradient of 0 is no norm to learn from: a layer that is begun at 0 keeps others from any gradient in the first
    steps, and a mean of 0 would keep them from it for ever.
    """
    own = config.clip

    def init(params: Any) -> AdaGCState:
        means = jax.tree_util.tree_map_with_path(
            lambda path, p: jnp.full(_tensor_shape(path_name(path), p), jnp.inf), params
        )
        return AdaGCState(jnp.zeros((), jnp.int32), means, _no_metrics())

    def update(grads: Any, state: AdaGCState, params: Any = None) -> tuple[Any, AdaGCState]:
        del params
        warm = state.count < own.adagc_warmup
        of_all = jnp.minimum(1, config.clip_norm / jnp.maximum(optax.tree.norm(grads), TINY))

        def one(path: tuple[Any, ...], grad: jax.Array, mean: jax.Array) -> _Clipped:
            norm = _norms(grad, _tensor_axes(path_name(path), grad.ndim))
            most = own.adagc_ratio * mean.reshape(norm.shape)
            return _limited(grad, norm, jnp.where(warm, of_all * norm, most))

        def learn(mean: jax.Array, clipped: _Clipped) -> jax.Array:
            norm = clipped.after.reshape(mean.shape)
            known = jnp.where(jnp.isinf(mean), norm, own.adagc_decay * mean + (1 - own.adagc_decay) * norm)
            return jnp.where(norm > 0, jnp.where(warm, jnp.minimum(mean, norm), known), mean)

        clipped = jax.tree_util.tree_map_with_path(one, grads, state.mean_norms)
        means = jax.tree.map(learn, state.mean_norms, clipped)
        return _gradients(clipped), AdaGCState(state.count + 1, means, _of_each(clipped))

    return optax.GradientTransformation(init, update)


class ZClipState(NamedTuple):
    """What norms of all gradients together have been like."""

    count: jax.Array  # int32, steps
    mean: jax.Array
    variance: jax.Array
    metrics: Metrics


def zclip(config: OptimConfig) -> optax.GradientTransformation:
    """All gradients by one factor, where their norm g stands out by its z-score (Kumar et al. 2025, arXiv:2504.02507,
    reciprocal clipping; details as in the authors' `zclip.py`):

        z = (g - mean) / deviation;  where z > threshold:  g <- mean + threshold^2 / z deviation

    so that the further out, the closer to the mean. Mean and variance are running ones of the clipped norm, the
    variance around the new mean; they begin with those of the first `zclip_warmup` norms. `clip_norm` is a limit
    beside it, which the statistics do not see.
    """
    own = config.clip

    def init(params: Any) -> ZClipState:
        del params
        zero = jnp.zeros(())
        return ZClipState(jnp.zeros((), jnp.int32), zero, zero, _no_metrics())

    def update(grads: Any, state: ZClipState, params: Any = None) -> tuple[Any, ZClipState]:
        del params
        norm, warm = optax.tree.norm(grads), state.count < own.zclip_warmup
        deviation = jnp.sqrt(state.variance)
        z = (norm - state.mean) / (deviation + TINY)
        out = ~warm & (z > own.zclip_threshold)
        usual = jnp.where(out, state.mean + own.zclip_threshold**2 / jnp.where(out, z, 1) * deviation, norm)
        seen = state.count + 1
        decay = jnp.where(warm, state.count / seen, own.zclip_decay)
        mean = decay * state.mean + (1 - decay) * usual
        # While it warms up, mean and variance of all that was seen (Welford 1962); then running ones.
        around = jnp.where(warm, (usual - state.mean) * (usual - mean), jnp.square(usual - mean))
        variance = decay * state.variance + (1 - decay) * around
        most = jnp.minimum(usual, config.clip_norm)
        factor = jnp.minimum(1, most / jnp.maximum(norm, TINY))
        clipped = jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)
        return clipped, ZClipState(seen, mean, variance, _of_all(norm, most))

    return optax.GradientTransformation(init, update)


CLIPS: dict[str, Callable[[OptimConfig], optax.GradientTransformation]] = {
    "global_norm": global_norm,
    "agc": agc,
    "adagc": adagc,
    "zclip": zclip,
    "none": lambda _: optax.identity(),
}


def clip(config: OptimConfig) -> optax.GradientTransformation:
    """The kind that the config asks for."""
    return CLIPS[config.clip.kind](config)


def unit_axes(name: str, rank: int) -> tuple[int, ...]:
    """The axes of a parameter that one unit spans: those of its inputs, by path.

    A token of an embedding or head is a unit, and so is a vector such as a norm's scale; layers never share one.
    """
    for pattern, layout in PROJECTIONS.items():
        if re.fullmatch(pattern, name):
            return tuple(layout.dimensions.index(d) for d in layout.inputs)
    return (1,) if name in ("embedding", "head") else _tensor_axes(name, rank)


def _tensor_axes(name: str, rank: int) -> tuple[int, ...]:
    """The axes of a parameter, each layer's being one."""
    return tuple(range(int(name.startswith(STACKED)), rank))


def _tensor_shape(name: str, param: jax.Array) -> tuple[int, ...]:
    return param.shape[: int(name.startswith(STACKED))]


class _Clipped(NamedTuple):
    """A gradient after clipping, and the norms of its units before and after."""

    grad: jax.Array
    before: jax.Array
    after: jax.Array


def _norms(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Of the parts that span these axes, which stay as dimensions of 1."""
    return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axes, keepdims=True))


def _limited(grad: jax.Array, norm: jax.Array, most: jax.Array | float) -> _Clipped:
    """Each part of a norm above `most` scaled down to it, the others untouched to the bit."""
    factor = jnp.where(norm > most, most / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny), 1.0)
    return _Clipped(grad * factor.astype(grad.dtype), norm, norm * factor)


def _gradients(clipped: Any) -> Any:
    return jax.tree.map(lambda c: c.grad, clipped, is_leaf=lambda node: isinstance(node, _Clipped))


def _of_each(clipped: Any) -> Metrics:
    """The metrics of gradients clipped in parts."""
    parts = jax.tree.leaves(clipped, is_leaf=lambda node: isinstance(node, _Clipped))
    before, after = (jnp.sqrt(sum(jnp.sum(jnp.square(n)) for n in norms)) for norms in list(zip(*parts))[1:])
    smaller = sum(jnp.sum(part.after < part.before) for part in parts)
    return _metrics(1 - after / jnp.maximum(before, TINY), smaller)


def _of_all(norm: jax.Array, most: jax.Array | float) -> Metrics:
    """The metrics of gradients clipped as one."""
    return _metrics(jnp.maximum(0, 1 - most / jnp.maximum(norm, TINY)), norm > most)


def _no_metrics() -> Metrics:
    return _metrics(0, 0)


def _metrics(share: Any, tensors: Any) -> Metrics:
    return Metrics({"clipped_share": jnp.float32(share), "clipped_tensors": jnp.int32(tensors)})
