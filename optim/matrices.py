"""Which dimensions of a parameter make a matrix, by its path: named, never guessed from the rank.

    x_SIO = to_matrices(x, layout)   # [*stack, inputs, outputs]
    x = from_matrices(x_SIO, layout, x.shape)

Dimensions: L layers or modules, D model, E that of a teacher, I inputs, N query heads, K key heads, H head size, F
feed-forward.
"""

import math
import re
from typing import NamedTuple

import jax

from core.errors import UserError


class Layout(NamedTuple):
    """Of an array whose dimensions are `stack`, `inputs` and `outputs` in some order."""

    dimensions: str
    stack: str  # one matrix for each of these
    inputs: str  # that the matrix is multiplied from; several are read as one
    outputs: str


PROJECTIONS = {
    r"(multi_token/)?layers/attention/query": Layout("LDNH", "L", "D", "NH"),
    r"(multi_token/)?layers/attention/(key|value)": Layout("LDKH", "L", "D", "KH"),
    r"(multi_token/)?layers/attention/output": Layout("LNHD", "L", "NH", "D"),
    r"(multi_token/)?layers/feed_forward/(gate|up)": Layout("LDF", "L", "D", "F"),
    r"(multi_token/)?layers/feed_forward/down": Layout("LFD", "L", "F", "D"),
    r"multi_token/layers/projection": Layout("LID", "L", "I", "D"),
    r"distill/layers/projection": Layout("LDE", "L", "D", "E"),
}
HEADS = PROJECTIONS | {
    r"(multi_token/)?layers/attention/query": Layout("LDNH", "LN", "D", "H"),
    r"(multi_token/)?layers/attention/(key|value)": Layout("LDKH", "LK", "D", "H"),
    r"(multi_token/)?layers/attention/output": Layout("LNHD", "LN", "H", "D"),
}
SPLITS = {"projection": PROJECTIONS, "head": HEADS}


def layout_of(name: str, shape: tuple[int, ...], split: str = "projection") -> Layout:
    """The layout of the parameter at the path `name`; refuses what is not a matrix."""
    for pattern, layout in SPLITS[split].items():
        if re.fullmatch(pattern, name) and len(shape) == len(layout.dimensions):
            return layout
    raise UserError(
        f"config optim: {name} of shape {shape} is no matrix inside a layer, and its group's optimiser works on "
        "matrices; give that group optimizer='adamw'"
    )


def to_matrices(x: jax.Array, layout: Layout) -> jax.Array:
    """[*stack, inputs, outputs]."""
    order = [layout.dimensions.index(d) for d in layout.stack + layout.inputs + layout.outputs]
    x = x.transpose(order)
    stack, inputs = x.shape[: len(layout.stack)], x.shape[len(layout.stack) :][: len(layout.inputs)]
    return x.reshape(*stack, math.prod(inputs), -1)


def from_matrices(x_SIO: jax.Array, layout: Layout, shape: tuple[int, ...]) -> jax.Array:
    """The inverse, for an array of `shape`."""
    ordered = layout.stack + layout.inputs + layout.outputs
    x = x_SIO.reshape([shape[layout.dimensions.index(d)] for d in ordered])
    return x.transpose([ordered.index(d) for d in layout.dimensions])
