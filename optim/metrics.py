"""What transformations say of their last update, kept in their state and collected by the step.

A transformation that clips, skips or rescales puts `Metrics({"name": scalar})` into its state; no update reads it.
"""

from typing import Any, NamedTuple

import jax


class Metrics(NamedTuple):
    """Arrays by the name under which the journal writes them."""

    values: dict[str, jax.Array]


def collect(opt_state: Any) -> dict[str, jax.Array]:
    """All metrics in the state of a chain; no name may come twice."""
    found: dict[str, jax.Array] = {}
    for leaf in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, Metrics)):
        if isinstance(leaf, Metrics):
            assert not found.keys() & leaf.values.keys(), f"two transformations measure {leaf.values.keys()}"
            found |= leaf.values
    return found
