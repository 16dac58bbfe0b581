"""What an update costs beside arithmetic on elements: FLOPs of Muon's products, or of SOAP's and Shampoo's."""

import collections
import math
from typing import Any, NamedTuple

import jax

from optim.config import OptimConfig
from optim.groups import groups, label, path_name
from optim.kronecker import cost
from optim.matrices import layout_of, to_matrices
from optim.newton_schulz import coefficients
from optim.owners import Parts, axes_of, parts_of, shares


class Cost(NamedTuple):
    """Of one update."""

    flops: float  # of the products of all matrices, none counted twice
    busiest: float  # of the device that has most of them


def update_cost(params: Any, config: OptimConfig, sizes: dict[str, int]) -> Cost:
    """Of parameters (shapes suffice) on a mesh of `sizes`.

    A step of Newton-Schulz is 4 R R C + 2 R R R, R <= C. What SOAP and Shampoo do is split as the parameters are, and
    repeated in every replica (`optim/kronecker.py`).
    """
    found = groups(config)
    matrices: collections.Counter[Parts] = collections.Counter()
    split = {axis: size for axis, size in sizes.items() if size > 1}
    flops = 0.0
    named = zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(label(params, config)))
    for (path, leaf), group in named:
        if (kind := found[group].direction.optimizer) in ("soap", "shampoo"):
            own, layout = getattr(config, kind), layout_of(path_name(path), leaf.shape)
            shape = jax.eval_shape(lambda leaf, own=layout: to_matrices(leaf, own), leaf).shape
            flops += cost(*shape, own.max_dimension, own.one_sided, own.interval).flops
        elif kind == "muon":
            layout = layout_of(path_name(path), leaf.shape, config.muon.split)
            parts = parts_of(layout, leaf.shape, axes_of(layout, leaf.shape, split))
            matrices[parts] += leaf.size // math.prod(parts.shape)
    steps = len(coefficients(config.muon.coefficients, config.muon.steps).rows)
    busiest = flops / math.prod(size for axis, size in split.items() if axis != "replica")
    for parts, S in matrices.items():
        R, C = sorted(parts.shape)
        one = steps * (4.0 * R * R * C + 2.0 * R**3)
        flops += S * one
        busiest += shares(S // math.prod(split[axis] for axis in parts.stack), parts, split)[1] * one
    return Cost(flops, busiest)
