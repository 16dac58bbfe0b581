"""How activations lie on the mesh in context: rows over the batch axes, tokens over `context`, features whole."""

import jax
from jax.sharding import PartitionSpec as P

from kernels.dispatch import BATCH_AXES, TENSOR_AXES, free_axes, mesh_axes


def constrain(x_BTD: jax.Array) -> jax.Array:
    """The residual stream at the edge of a layer, laid out as the batch is; as it came where no mesh splits it.

    Without it XLA may carry on how parameters are split, and exchange activations instead of parameters.
    """
    axes = free_axes()
    rows = tuple(axis for axis in BATCH_AXES if axis in axes)
    tokens = "context" if "context" in axes else None
    if not (rows or tokens):
        return x_BTD
    return jax.lax.with_sharding_constraint(x_BTD, P(rows or None, tokens, None))


@jax.custom_vjp
def gathered(w_VD: jax.Array) -> jax.Array:
    """A table as every device needs it that looks rows up in it or multiplies by it: split over `tensor` alone.

    Without it XLA looks up all rows in each part of the features and exchanges what it finds. The gradient is not
    held to that layout: where parameters are split, each device gets the sum of its part.
    """
    return jax.lax.with_sharding_constraint(w_VD, P(mesh_axes(TENSOR_AXES, len(w_VD)), None)) if free_axes() else w_VD


gathered.defvjp(lambda w_VD: (gathered(w_VD), None), lambda _, dw_VD: (dw_VD,))
