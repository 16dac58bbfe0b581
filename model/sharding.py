"""How activations lie on the mesh in context, and what is computed by hand where XLA would exchange too much."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from kernels.dispatch import (
    BATCH_AXES,
    CONTEXT_AXES,
    PARAMETER_AXES,
    TENSOR_AXES,
    free_axes,
    mesh_axes,
    over_mesh,
    parameter_parts,
    sum_onto_parts,
)


def constrain(x_BTD: jax.Array) -> jax.Array:
    """The residual stream at the edge of a layer: rows over the batch axes, tokens over `context`, features whole.

    Without it XLA may carry on how parameters are split, and exchange activations instead of parameters.
    """
    axes = free_axes()
    rows = tuple(axis for axis in BATCH_AXES if axis in axes)
    tokens = tuple(axis for axis in CONTEXT_AXES if axis in axes)
    if not (rows or tokens):
        return x_BTD
    return jax.lax.with_sharding_constraint(x_BTD, P(rows or None, tokens or None, None))


@jax.custom_vjp
def gathered(w_VD: jax.Array) -> jax.Array:
    """A table as every device needs it that looks rows up in it or multiplies by it: split over `tensor` alone.

    Its gradient is left on the parts that devices keep.
    """
    return _split_rows(w_VD, TENSOR_AXES)


def _split_rows(w_VD: jax.Array, names: tuple[str, ...]) -> jax.Array:
    if not free_axes():
        return w_VD
    return jax.lax.with_sharding_constraint(w_VD, P(mesh_axes(names, len(w_VD)) or None, None))


gathered.defvjp(
    lambda w_VD: (gathered(w_VD), None),
    lambda _, dw_VD: (_split_rows(dw_VD, (*TENSOR_AXES, *PARAMETER_AXES)),),
)


def look_up(w_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    """Rows of a `gathered` table [B, T, D], of each device its own tokens; gradients are summed onto the parts.

    XLA would sum the gradient of the whole table on every device.
    """
    if not free_axes():
        return w_VD[tokens_BT]
    (B, T), V = tokens_BT.shape, len(w_VD)
    split = _Split(mesh_axes(BATCH_AXES, B), mesh_axes(CONTEXT_AXES, T), mesh_axes(TENSOR_AXES, V), V)
    return _look_up(split, w_VD, tokens_BT)


class _Split(NamedTuple):
    """Mesh axes that split rows, tokens of a row, and the table of V rows."""

    rows: tuple[str, ...]
    context: tuple[str, ...]
    vocabulary: tuple[str, ...]
    V: int

    @property
    def tokens(self) -> P:
        return P(self.rows or None, self.context or None)

    @property
    def V_here(self) -> int:
        return self.V // math.prod(free_axes()[axis] for axis in self.vocabulary)

    def places(self, tokens_BT: jax.Array, V_here: int) -> jax.Array:
        """Rows in this part of the table, beyond its end where the token is in another."""
        if not self.vocabulary:
            return tokens_BT
        place_BT = tokens_BT - jax.lax.axis_index(self.vocabulary) * V_here
        return jnp.where(place_BT < 0, V_here, place_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _look_up(split: _Split, w_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    def local(w_VD, tokens_BT):
        if not split.vocabulary:
            return w_VD[tokens_BT]
        found_BTD = w_VD.at[split.places(tokens_BT, len(w_VD))].get(mode="fill", fill_value=0)
        return jax.lax.psum(found_BTD, split.vocabulary)

    return over_mesh(local, (P(split.vocabulary or None), split.tokens), split.tokens)(w_VD, tokens_BT)


def _gradient(split: _Split, tokens_BT: jax.Array, dx_BTD: jax.Array) -> tuple[jax.Array, None]:
    V_here, axes = split.V_here, split.rows + split.context
    parts = parameter_parts(V_here, axes)

    def local(tokens_BT, dx_BTD):
        zeros_VD = jnp.zeros((V_here, dx_BTD.shape[-1]), dx_BTD.dtype)
        dw_VD = zeros_VD.at[split.places(tokens_BT, V_here)].add(dx_BTD, mode="drop")
        return sum_onto_parts(dw_VD, axes, parts)

    out = P((*split.vocabulary, *parts) or None)
    return over_mesh(local, (split.tokens, split.tokens), out)(tokens_BT, dx_BTD), None


_look_up.defvjp(lambda split, w_VD, tokens_BT: (_look_up(split, w_VD, tokens_BT), tokens_BT), _gradient)
