"""Which parameters an optimiser treats how: by a pattern over their path, each parameter exactly once."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from core.errors import UserError
from optim.config import OptimConfig

# Path patterns of the transformer's parameters, by what the optimiser should know of them.
GROUPS = {
    "embedding": r"embedding",
    "head": r"head",
    "matrix": r"layers/(attention/(query|key|value|output)|feed_forward/(gate|up|down))",
    "norm": r"(layers/)?(attention/)?\w+_norm/(scale|bias)",
    "bias": r"layers/(attention|feed_forward)/\w+_bias",
}


class Direction(NamedTuple):
    """What decides the direction of an update."""

    optimizer: str
    b1: float
    b2: float
    epsilon: float


class Group(NamedTuple):
    """What some parameters are treated with."""

    direction: Direction
    multiplier: float  # of the learning rate
    weight_decay: float


def path_name(path: tuple[Any, ...]) -> str:
    """A tree path as `layers/attention/query`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def groups(config: OptimConfig) -> dict[str, Group]:
    """Those of GROUPS and of `config.groups`, everything filled in."""
    found = {}
    for name in [*GROUPS, *(name for name in config.groups if name not in GROUPS)]:
        asked = config.groups.get(name)
        own = {
            "optimizer": config.optimizer if name == "matrix" else "adamw",
            "multiplier": 1.0,
            "weight_decay": config.weight_decay if name == "matrix" else 0.0,
            **{key: getattr(config, key) for key in ("b1", "b2", "epsilon")},
        }
        if asked is not None:
            if name not in GROUPS and not asked.pattern:
                known = ", ".join(GROUPS)
                raise UserError(f"config optim.groups.{name} is none of {known}, so it needs a pattern over paths")
            own |= {key: value for key in own if (value := getattr(asked, key)) not in (None, "")}
        found[name] = Group(
            Direction(*(own[key] for key in Direction._fields)), own["multiplier"], own["weight_decay"]
        )
    return found


def label(params: Any, config: OptimConfig = OptimConfig()) -> Any:  # noqa: B008 (frozen)
    """The group of every parameter, in a tree of the same shape; exactly one must match.

    Patterns that the config gives come before those of GROUPS, and each must match something.
    """
    given = {name: group.pattern for name, group in config.groups.items() if group.pattern}
    patterns = {name: pattern for name, pattern in GROUPS.items() if name not in given}
    matched = set()

    def one(path: tuple[Any, ...], _: Any) -> str:
        name = path_name(path)
        matching = _matching(given, name) or _matching(patterns, name)
        if given and len(matching) != 1:
            which = f"is in the groups {' and '.join(matching)}" if matching else "is in no group"
            raise UserError(f"config optim.groups: parameter {name} {which}; patterns must match it exactly once")
        assert len(matching) == 1, f"parameter {name} is in {matching or 'no group'}; see optim/groups.py"
        matched.add(matching[0])
        return matching[0]

    labels = jax.tree_util.tree_map_with_path(one, params)
    for name, pattern in given.items():
        if name not in matched:
            paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
            raise UserError(
                f"config optim.groups.{name}.pattern={pattern!r} matches no parameter; there are {', '.join(paths)}"
            )
    return labels


def _matching(patterns: Mapping[str, str], name: str) -> list[str]:
    return [group for group, pattern in patterns.items() if re.fullmatch(pattern, name)]
