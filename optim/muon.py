"""Muon: momentum whose matrices are orthogonalised (Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982).

The update of a matrix [inputs, outputs] is U V^T of its momentum U S V^T, nearly: all directions alike. Which
dimensions of a parameter make a matrix is said by its path (`optim/matrices.py`), and which device computes it by
`optim/owners.py`.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim.config import MuonConfig
from optim.groups import path_name
from optim.matrices import Layout, from_matrices, layout_of, to_matrices
from optim.newton_schulz import coefficients, orthogonalise
from optim.owners import on_owners

MOONLIGHT = 0.2  # root mean square of an update, near AdamW's, whose learning rate and decay then hold
FLOOR = 1e-10  # of mean squares


class MuonState(NamedTuple):
    """Of `scale_by_muon`."""

    count: jax.Array  # [], int32: updates done
    momentum: Any  # as the parameters, in `momentum_dtype`
    mean_square: Any  # of NorMuon, each [*stack, outputs] or [*stack, inputs]; empty without it


def scale_by_muon(config: MuonConfig, *, implementation: str = "auto") -> optax.GradientTransformation:
    """Orthogonalised momentum of parameters that are matrices inside layers.

    Equal to `optax.contrib.scale_by_muon`, its correction of the first steps' momentum included, and `scale_by_shape`
    after it. `implementation` is that of `kernels/newton_schulz`.
    """
    own = coefficients(config.coefficients, config.steps)

    def layouts(tree: Any) -> list[Layout]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return [layout_of(path_name(path), leaf.shape, config.split) for path, leaf in leaves]

    def init(params: Any) -> MuonState:
        found = iter(layouts(params))  # refuses vectors
        squares = jax.tree.map(lambda p: jnp.zeros(_neurons(p.shape, next(found)), jnp.float32), params)
        momentum = optax.tree.zeros_like(params, dtype=jnp.dtype(config.momentum_dtype))
        return MuonState(jnp.zeros((), jnp.int32), momentum, squares if config.normuon_b2 else ())

    def update(grads: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
        del params
        count, found = optax.safe_increment(state.count), layouts(grads)
        momentum = jax.tree.map(lambda m, g: _average(m, g, config.momentum), state.momentum, grads)
        direction = _direction(momentum, grads, count, config)
        leaves, tree = jax.tree.flatten(direction)
        narrow = [leaf.astype(config.dtype) for leaf in leaves]
        turned = on_owners(lambda x_SRC: orthogonalise(x_SRC, own, implementation=implementation), narrow, found)
        turned = [one.astype(jnp.float32) for one in turned]
        squares = state.mean_square
        if config.normuon_b2:
            both = [_normuon(x, v, layout, config) for x, v, layout in zip(turned, jax.tree.leaves(squares), found)]
            turned, squares = [x for x, _ in both], tree.unflatten([v for _, v in both])
        scaled = [_scale(x.shape, layout, config.scaling) * x for x, layout in zip(turned, found)]
        momentum = optax.tree.cast(momentum, jnp.dtype(config.momentum_dtype))
        return tree.unflatten(scaled), MuonState(count, momentum, squares)

    return optax.GradientTransformation(init, update)


def _average(mean: jax.Array, new: jax.Array, decay: float) -> jax.Array:
    """An exponential moving average, in float32."""
    return decay * mean.astype(jnp.float32) + (1 - decay) * new


def _direction(momentum: Any, grads: Any, count: jax.Array, config: MuonConfig) -> Any:
    """What is orthogonalised. An average of few gradients is divided by the sum of their weights.

    Without Nesterov's step that is a scale, which orthogonalising undoes; with it the newest gradient would weigh
    more in the first steps.
    """
    b = config.momentum
    if not config.nesterov:
        return momentum
    ahead, now = 1 - b ** (count + 1), 1 - b**count
    return jax.tree.map(lambda m, g: b * m / ahead + (1 - b) * g / now, momentum, grads)


def _matrix_shape(shape: tuple[int, ...], layout: Layout) -> tuple[int, int]:
    """Inputs and outputs of each matrix."""
    length = dict(zip(layout.dimensions, shape))
    return math.prod(length[d] for d in layout.inputs), math.prod(length[d] for d in layout.outputs)


def _scale(shape: tuple[int, ...], layout: Layout, scaling: str) -> float:
    """`spectral` keeps how much an update changes the size of a hidden state; `rms` its root mean square."""
    inputs, outputs = _matrix_shape(shape, layout)
    if scaling == "spectral":
        return math.sqrt(max(1.0, outputs / inputs))
    return MOONLIGHT * math.sqrt(max(inputs, outputs))


def _neurons(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    """What NorMuon keeps a number of: outputs, of matrices with fewer outputs than inputs inputs."""
    inputs, outputs = _matrix_shape(shape, layout)
    length = dict(zip(layout.dimensions, shape))
    return *(length[d] for d in layout.stack), max(inputs, outputs)


def _normuon(x: jax.Array, square: jax.Array, layout: Layout, config: MuonConfig) -> tuple[jax.Array, jax.Array]:
    """Each neuron's update divided by the root of its mean square so far; a matrix keeps its Frobenius norm.

    Li et al. 2025, arXiv 2510.05491; along the longer side, as modded-nanogpt does. Also gives the new mean squares.
    """
    x_SIO = to_matrices(x, layout)
    inputs, outputs = x_SIO.shape[-2:]
    along = -2 if outputs >= inputs else -1
    now = jnp.mean(jnp.square(x_SIO), along, keepdims=True)
    square = _average(jnp.expand_dims(square, along), now, config.normuon_b2)
    factor = jax.lax.rsqrt(jnp.maximum(square, FLOOR))
    before, after = (jnp.sqrt(jnp.sum(a, (-2, -1), keepdims=True)) for a in (now, now * jnp.square(factor)))
    y_SIO = x_SIO * (factor * before / jnp.maximum(after, FLOOR))
    return from_matrices(y_SIO, layout, x.shape), square.squeeze(along)
