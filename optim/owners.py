"""Whole matrices on the devices of a mesh: each matrix goes to one device, is computed there, and comes back.

    layouts = [layout_of(name, x.shape), ...]
    ys = on_owners(lambda x_SRC: ..., xs, layouts)

Parameters lie in parts: their D over PARAMETER_AXES, heads and features over TENSOR_AXES (`train/sharding.py`). A
device has the same part of every matrix of a stack; an all-to-all gives it all parts of some matrices, one more takes
them back. Devices that hold the same parts (replicas) take different matrices, and gather the results. XLA, left to
itself, gathers all matrices on every device.

Stacks of equal shape go as one, an output projection beside a query, so that fewer devices wait: a parameter with D
as its outputs is transposed. Shapes: S matrices, R rows (D), C columns.
"""

import collections
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from kernels.dispatch import PARAMETER_AXES, TENSOR_AXES, free_axes, over_mesh
from optim.matrices import Layout, from_matrices, to_matrices

AXES_OF = {"D": PARAMETER_AXES} | dict.fromkeys("NKF", TENSOR_AXES)


class Parts(NamedTuple):
    """How the matrices of a stack lie on the mesh, by its axes."""

    shape: tuple[int, int]  # of a whole matrix, D first
    rows: tuple[str, ...]  # split each matrix
    columns: tuple[str, ...]
    stack: tuple[str, ...]  # split the stack: each device has matrices of its own


def on_owners(
    function: Callable[[jax.Array], jax.Array], xs: Sequence[jax.Array], layouts: Sequence[Layout]
) -> list[jax.Array]:
    """`function` of stacks of whole matrices [S, R, C], which keeps their shape, applied to parameters.

    It must treat matrices one by one, transposed ones alike, and give zeros for zeros. Arrays travel in their dtype.
    """
    sizes = free_axes()
    axes = [axes_of(layout, x.shape, sizes) for x, layout in zip(xs, layouts)]
    groups: dict[Parts, list[int]] = collections.defaultdict(list)
    for i, (x, layout) in enumerate(zip(xs, layouts)):
        groups[parts_of(layout, x.shape, axes[i])].append(i)

    def local(*xs: jax.Array) -> tuple[jax.Array, ...]:
        out: list = [None] * len(xs)
        for parts, members in groups.items():
            stacks = [_d_first(to_matrices(xs[i], layouts[i]), layouts[i]) for i in members]
            flat = [stack.reshape(-1, *stack.shape[-2:]) for stack in stacks]
            y_SRC = _exchange(function, jnp.concatenate(flat), parts, sizes)
            ends = [sum(len(one) for one in flat[: n + 1]) for n in range(len(flat) - 1)]
            for i, stack, part in zip(members, stacks, jnp.split(y_SRC, ends)):
                y = _d_first(part.reshape(stack.shape), layouts[i])
                out[i] = from_matrices(y, layouts[i], xs[i].shape)
        return tuple(out)

    specs = tuple(P(*(axes[i].get(d) or None for d in layout.dimensions)) for i, layout in enumerate(layouts))
    with jax.named_scope("owners"):  # by which plans know what it exchanges
        return list(over_mesh(local, specs, specs)(*xs))


def axes_of(layout: Layout, shape: tuple[int, ...], sizes: dict[str, int]) -> dict[str, tuple[str, ...]]:
    """The mesh axes, of these sizes, that split each dimension of a parameter; those that do not divide it do not."""
    found = {}
    for dimension, length in zip(layout.dimensions, shape):
        axes = tuple(axis for axis in AXES_OF.get(dimension, ()) if axis in sizes)
        found[dimension] = axes if length % math.prod(sizes[axis] for axis in axes) == 0 else ()
    return found


def parts_of(layout: Layout, shape: tuple[int, ...], axes: dict[str, tuple[str, ...]]) -> Parts:
    """How the matrices of a parameter lie, D first."""
    length = dict(zip(layout.dimensions, shape))
    sides = (layout.inputs, layout.outputs) if "D" in layout.inputs else (layout.outputs, layout.inputs)
    rows, columns, stack = (sum((axes[d] for d in side), ()) for side in (*sides, layout.stack))
    return Parts(tuple(math.prod(length[d] for d in side) for side in sides), rows, columns, stack)


def shares(S: int, parts: Parts, sizes: dict[str, int]) -> tuple[int, int]:
    """Of S matrices that a device holds parts of, how many its replica takes, and how many it takes itself."""
    each = -(-S // math.prod(sizes[axis] for axis in _same(parts, sizes)))
    return each, -(-each // math.prod(sizes[axis] for axis in parts.rows + parts.columns))


def _same(parts: Parts, sizes: dict[str, int]) -> tuple[str, ...]:
    """Axes along which devices hold the same parts."""
    return tuple(axis for axis in sizes if axis not in parts.rows + parts.columns + parts.stack)


def _d_first(x_SIO: jax.Array, layout: Layout) -> jax.Array:
    """[S, R, C] from [S, inputs, outputs], and back."""
    return x_SIO if "D" in layout.inputs else x_SIO.mT


def _exchange(function: Callable, x_SRC: jax.Array, parts: Parts, sizes: dict[str, int]) -> jax.Array:
    """On each device: from its part of all matrices to whole matrices, `function`, and back."""
    S, same, split = len(x_SRC), _same(parts, sizes), math.prod(sizes[a] for a in parts.rows + parts.columns)
    each, own = shares(S, parts, sizes)
    if same:
        x_SRC = _padded(x_SRC, each * math.prod(sizes[axis] for axis in same))
        x_SRC = jax.lax.dynamic_slice_in_dim(x_SRC, jax.lax.axis_index(same) * each, each)
    # Behind a barrier, for XLA:CPU would exchange the arrays that were joined, each in a layout of its own, and fail.
    x_SRC = jax.lax.optimization_barrier(_padded(x_SRC, own * split))
    sides = [(axes, side) for axes, side in ((parts.rows, 1), (parts.columns, 2)) if axes]
    for axes, side in sides:
        x_SRC = _join(x_SRC, axes, side, math.prod(sizes[axis] for axis in axes))
    y_SRC = function(x_SRC)
    for axes, side in reversed(sides):
        y_SRC = _part(y_SRC, axes, side, math.prod(sizes[axis] for axis in axes))
    y_SRC = y_SRC[:each]
    return jax.lax.all_gather(y_SRC, same, axis=0, tiled=True)[:S] if same else y_SRC


def _join(x_SRC: jax.Array, axes: tuple[str, ...], side: int, n: int) -> jax.Array:
    """From a part of n S matrices to S that are whole along a side, on n devices.

    Pieces are exchanged along a dimension of their own: XLA:TPU sums padded ones where it is to join them itself.
    """
    pieces = x_SRC.reshape(n, -1, *x_SRC.shape[1:])
    pieces = jax.lax.all_to_all(pieces, axes, split_axis=0, concat_axis=0, tiled=True)
    shape = list(pieces.shape[1:])
    shape[side] *= n
    return jnp.moveaxis(pieces, 0, side).reshape(shape)


def _part(x_SRC: jax.Array, axes: tuple[str, ...], side: int, n: int) -> jax.Array:
    """The way back."""
    shape = list(x_SRC.shape)
    shape[side : side + 1] = n, shape[side] // n
    pieces = jnp.moveaxis(x_SRC.reshape(shape), side, 0)
    pieces = jax.lax.all_to_all(pieces, axes, split_axis=0, concat_axis=0, tiled=True)
    return pieces.reshape(-1, *pieces.shape[2:])


def _padded(x_SRC: jax.Array, S: int) -> jax.Array:
    """With zeros, so that each device takes as many."""
    return jnp.pad(x_SRC, ((0, S - len(x_SRC)), (0, 0), (0, 0)))
