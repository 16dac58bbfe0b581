"""What an update costs beside arithmetic on elements: the FLOPs of Muon's products, in all and of one device."""

import collections
import math
from typing import Any, NamedTuple

import jax

from optim.config import OptimConfig
from optim.groups import groups, label, path_name
from optim.matrices import layout_of
from optim.newton_schulz import coefficients
from optim.owners import Parts, axes_of, parts_of, shares


class Cost(NamedTuple):
    """Of one update."""

    flops: float  # of the products of all matrices, none counted twice
    busiest: float  # of the device that has most of them


def update_cost(params: Any, config: OptimConfig, sizes: dict[str, int]) -> Cost:
    """Of parameters (shapes suffice) on a mesh of `sizes`. A step of Newton-Schulz is 4 R R C + 2 R R R, R <= C."""
    found = groups(config)
    matrices: collections.Counter[Parts] = collections.Counter()
    split = {axis: size for axis, size in sizes.items() if size > 1}
    named = zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(label(params, config)))
    for (path, leaf), group in named:
        if found[group].direction.optimizer == "muon":
            layout = layout_of(path_name(path), leaf.shape, config.muon.split)
            parts = parts_of(layout, leaf.shape, axes_of(layout, leaf.shape, split))
            matrices[parts] += leaf.size // math.prod(parts.shape)
    steps = len(coefficients(config.muon.coefficients, config.muon.steps).rows)
    flops = busiest = 0.0
    for parts, S in matrices.items():
        R, C = sorted(parts.shape)
        one = steps * (4.0 * R * R * C + 2.0 * R**3)
        flops += S * one
        busiest += shares(S // math.prod(split[axis] for axis in parts.stack), parts, split)[1] * one
    return Cost(flops, busiest)
