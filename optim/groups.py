"""Which parameters an optimiser treats how: by a pattern over their path, each parameter exactly once."""

import re
from collections.abc import Mapping
from typing import Any

import jax

# Path patterns of the transformer's parameters, by what the optimiser should know of them.
GROUPS = {
    "embedding": r"embedding|head",
    "matrix": r"layers/(attention/(query|key|value|output)|feed_forward/(gate|up|down))",
    "norm": r"(layers/)?(attention/)?\w+_norm/(scale|bias)",
    "bias": r"layers/(attention|feed_forward)/\w+_bias",
}


def path_name(path: tuple[Any, ...]) -> str:
    """A tree path as `layers/attention/query`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def label(params: Any, groups: Mapping[str, str] = GROUPS) -> Any:
    """The group of every parameter, in a tree of the same shape; exactly one must match."""

    def one(path: tuple[Any, ...], _: Any) -> str:
        name = path_name(path)
        matching = [group for group, pattern in groups.items() if re.fullmatch(pattern, name)]
        assert len(matching) == 1, f"parameter {name} is in {matching or 'no group'}; see optim/groups.py"
        return matching[0]

    return jax.tree_util.tree_map_with_path(one, params)
