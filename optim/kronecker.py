"""Statistics of rows and columns of gradients, as SOAP and Shampoo use them, and how devices share the matrices.

Of a gradient G [I, O] the left side has G G^T [I, I] and the right G^T G [O, O]; their Kronecker product stands for
the second moment of all I x O numbers together (Gupta et al. 2018). Shapes: L matrices of a stack, I inputs, O
outputs, S the size of a side.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from kernels.dispatch import PARAMETER_AXES, TENSOR_AXES, free_axes, over_mesh, target
from optim.groups import path_name
from optim.matrices import from_matrices, layout_of, to_matrices

NONE = optax.MaskedNode()  # in place of the array of a side without statistics


class MatricesState(NamedTuple):
    """Of all parameters of a group."""

    count: jax.Array  # int32, updates done
    matrices: Any  # a NamedTuple of trees; arrays [L, I, O] and [L, S, S], laid out by train/sharding.py


class Sides(NamedTuple):
    """What belongs to the inputs and to the outputs of a stack of matrices; NONE where a side has nothing."""

    left: Any
    right: Any

    def map(self, function: Callable[..., Any], *others: "Sides") -> "Sides":
        """Of the sides that have something."""
        return Sides(*(function(of, *more) if has(of) else NONE for of, *more in zip(self, *others)))

    @property
    def number(self) -> int:
        """How many have something."""
        return has(self.left) + has(self.right)


def has(side: Any) -> bool:
    """Whether there is something."""
    return not isinstance(side, optax.MaskedNode)


def sides_of(I: int, O: int, max_dimension: int, one_sided: bool) -> Sides:  # noqa: E741
    """The sizes of the sides that have statistics: up to `max_dimension`, or only the smaller of the two."""
    left, right = max_dimension >= I, max_dimension >= O
    if one_sided:
        left, right = left and I <= O, right and O < I
    return Sides(I if left else NONE, O if right else NONE)


def empty(L: int, I: int, O: int, max_dimension: int, one_sided: bool) -> tuple[Any, ...]:  # noqa: E741
    """Two moments [L, I, O], then for left and right the statistics, then their bases or roots; all 0."""
    zeros = sides_of(I, O, max_dimension, one_sided).map(lambda S: jnp.zeros((L, S, S), jnp.float32))
    moment = jnp.zeros((L, I, O), jnp.float32)
    return moment, moment, *zeros, *zeros


class StackCost(NamedTuple):
    """Of one stack of matrices, of all devices together."""

    state_bytes: int  # moments, statistics and bases or roots, in float32
    flops: float  # a step: statistics, both ways of the rotation, the basis by one product and QR every `interval`


def cost(L: int, I: int, O: int, max_dimension: int, one_sided: bool, interval: int) -> StackCost:  # noqa: E741
    """What SOAP costs, and about what Shampoo does (no rotation back, but an eigendecomposition at 9 S^3)."""
    sizes = [S for S in sides_of(I, O, max_dimension, one_sided) if has(S)]
    each_step = sum(3 * 2 * S * I * O for S in sizes)
    refresh = sum(2 * 2 * S * I * O + 2 * S**3 + 8 / 3 * S**3 for S in sizes)
    return StackCost(4 * L * (2 * I * O + sum(2 * S * S for S in sizes)), L * (each_step + refresh / interval))


def by_matrix(
    begin: Callable[[int, int, int], Any],
    step: Callable[[jax.Array, list[jax.Array], list[Any]], tuple[list[jax.Array], list[Any]]],
) -> optax.GradientTransformation:
    """A transformation from what it does with the stacks of all parameters.

    `begin(L, I, O)` gives the arrays of a parameter's state, a NamedTuple; `step(count, [g_LIO, ...], [arrays, ...])`
    directions and the arrays after it.
    """

    def init(params: Any) -> MatricesState:
        def one(path: tuple[Any, ...], param: jax.Array) -> Any:
            layout = layout_of(path_name(path), param.shape)
            return begin(*jax.eval_shape(lambda p: to_matrices(p, layout), param).shape)

        found = [one(*leaf) for leaf in jax.tree_util.tree_leaves_with_path(params)]
        return MatricesState(jnp.zeros((), jnp.int32), _trees(jax.tree.structure(params), found))

    def update(updates: Any, state: MatricesState, params: Any = None) -> tuple[Any, MatricesState]:
        del params
        leaves, tree = jax.tree_util.tree_flatten_with_path(updates)
        layouts = [layout_of(path_name(path), g.shape) for path, g in leaves]
        gradients = [share(to_matrices(g.astype(jnp.float32), at)) for (_, g), at in zip(leaves, layouts)]
        kind = type(state.matrices)
        arrays = [kind(*own) for own in zip(*(tree.flatten_up_to(of) for of in state.matrices))]
        directions, arrays = step(state.count, gradients, arrays)
        directions = [
            from_matrices(give_back(x_LIO), at, g.shape) for x_LIO, at, (_, g) in zip(directions, layouts, leaves)
        ]
        return tree.unflatten(directions), MatricesState(optax.safe_increment(state.count), _trees(tree, arrays))

    return optax.GradientTransformation(init, update)


def _trees(tree: Any, of_parameters: list[Any]) -> Any:
    """A NamedTuple of trees from one NamedTuple a parameter."""
    return type(of_parameters[0])(*(tree.unflatten(arrays) for arrays in zip(*of_parameters)))


def averaged(sides: Sides, g_LIO: jax.Array, decay: float) -> Sides:
    """The statistics with one more gradient: their moving average, or with decay 1 their sum."""
    weight = 1 - decay if decay < 1 else 1.0
    terms = Sides("LIO,LJO->LIJ", "LIO,LIP->LOP")
    return sides.map(lambda of, terms: decay * of + weight * dot(terms, g_LIO, g_LIO), terms)


def rotate(x_LIO: jax.Array, bases: Sides) -> jax.Array:
    """left^T X right."""
    return multiply(x_LIO, bases.map(lambda basis_LSS: basis_LSS.swapaxes(1, 2)))


def multiply(x_LIO: jax.Array, by: Sides) -> jax.Array:
    """left X right^T: back from what `rotate` gave, or by symmetric roots."""
    x_LIO = dot("LIJ,LJO->LIO", by.left, x_LIO) if has(by.left) else x_LIO
    return dot("LIP,LOP->LIO", x_LIO, by.right) if has(by.right) else x_LIO


def dot(terms: str, *arrays: jax.Array) -> jax.Array:
    """In full float32: with the TPU's bfloat16 or the GPU's TF32, small eigenvalues drown."""
    return jnp.einsum(terms, *arrays, precision="highest")


def share(x_LIO: jax.Array) -> jax.Array:
    """Each device its own matrices, where the axes that split a state divide L; then products need no exchange.

    `train/sharding.py` lays the arrays of a state out alike. One group of axes after the other, for XLA gathers an
    array whole where two change their dimension at once.
    """
    for taken in _shares(x_LIO.shape[0]):
        x_LIO = _lay_out(x_LIO, taken)
    return x_LIO


def give_back(x_LIO: jax.Array) -> jax.Array:
    """The way back, on which the layout of the parameter decides about the rest."""
    for taken in _shares(x_LIO.shape[0])[::-1]:
        x_LIO = _lay_out(x_LIO, taken)
    return x_LIO


def _shares(L: int) -> list[tuple[str, ...]]:
    """Axes that split L, more and more of them."""
    sizes, taken = free_axes(), [()]
    for axes in (TENSOR_AXES, PARAMETER_AXES):
        wanted = (*taken[-1], *(axis for axis in axes if axis in sizes))
        if L % math.prod(sizes[axis] for axis in wanted) == 0 and wanted != taken[-1]:
            taken.append(wanted)
    return taken[1:]


def _lay_out(x_LIO: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return jax.lax.with_sharding_constraint(x_LIO, P(axes, P.UNCONSTRAINED, P.UNCONSTRAINED))


def _one_by_one(compute: Callable[..., Any], *stacks: jax.Array) -> Any:
    """LAPACK waits in a thread of XLA for others to take parts of a stack, and may wait for itself (jaxlib 0.10.2).

    So it does where two stacks, programs or CPU devices are at it at once and hold all threads.
    """
    return jax.lax.map(lambda of: [out[0] for out in compute(*(a[None] for a in of))], stacks)


def over_sides(compute: Callable[..., Any], *arguments: list[Sides]) -> list[Sides]:
    """`compute` of stacks [L, S, S], for the sides of all parameters: once for each S, the matrices over the devices.

    XLA does not split a decomposition. Where a stack has fewer matrices than there are devices, several lie one
    behind the other, so that a device has one matrix of one of them.
    """
    tree = jax.tree.structure(arguments[0])
    sides = list(zip(*map(jax.tree.leaves, arguments)))
    axes = free_axes()
    devices, found = math.prod(axes.values()), [None] * len(sides)
    if target().platform == "cpu":
        compute = functools.partial(_one_by_one, compute)
    for S in sorted({side[0].shape[1] for side in sides}):
        alike = [i for i, side in enumerate(sides) if side[0].shape[1] == S]
        rounds = shared_out([len(sides[i][0]) for i in alike], devices)

        def of_device(rounds_of_parts: list[list[Any]]) -> list[Any]:
            """Elsewhere than in its own place a part is 0, so that the sum of a round has all of them."""
            sums = [tuple(sum(of[1:], of[0]) for of in zip(*parts)) for parts in rounds_of_parts]
            out = compute(*(jnp.concatenate(of) for of in zip(*sums)))
            cuts = np.cumsum([len(own[0]) for own in sums])[:-1].tolist()
            return list(zip(*(jnp.split(of, cuts) for of in out)))

        padded = [
            [
                tuple(_padded(a, place.start, size - place.stop) for a in sides[alike[number]])
                for number, place in places
            ]
            for size, places in rounds
        ]
        out = over_mesh(of_device, P(tuple(axes)), P(tuple(axes)))(padded)
        for (_, places), own in zip(rounds, out):
            for number, place in places:
                found[alike[number]] = tuple(of[place] for of in own)
    return jax.tree.unflatten(tree, found)


def _padded(a: jax.Array, before: int, after: int) -> jax.Array:
    return jnp.pad(a, ((before, after), *[(0, 0)] * (a.ndim - 1)))


def shared_out(lengths: list[int], devices: int) -> list[tuple[int, list[tuple[int, slice]]]]:
    """Stacks of so many matrices laid one behind the other: sizes, and which stack lies where.

    A size is a multiple of `devices`, to be split among them; more than that only where one stack alone has more.
    """
    rounds: list[list[tuple[int, slice]]] = []
    for number, L in enumerate(lengths):
        end = rounds[-1][-1][1].stop if rounds else devices
        if end + L > devices:
            rounds.append([])
            end = 0
        rounds[-1].append((number, slice(end, end + L)))
    return [(-(-places[-1][1].stop // devices) * devices, places) for places in rounds]
