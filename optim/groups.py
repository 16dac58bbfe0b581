"""Which parameters an optimiser treats how: by a pattern over their path, each parameter exactly once."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from core.errors import UserError
from optim.config import GroupConfig, OptimConfig

# Path patterns of the transformer's parameters, by what the optimiser should know of them.
GROUPS = {
    "embedding": r"embedding",
    "head": r"head",
    "matrix": r"((multi_token|distill)/)?layers/"
    r"(attention/(query|key|value|output)|feed_forward/(gate|up|down)|projection)",
    "norm": r"((multi_token/)?layers/)?(attention/)?\w+_norm/(scale|bias)",
    "bias": r"(multi_token/)?layers/(attention|feed_forward)/\w+_bias",
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
    """By label, everything filled in: those of GROUPS, and for each of the config's own what it is for each of those.

    What a group of the config's own leaves out is as in the group that its parameter comes from.
    """
    found = {}
    for name in GROUPS:
        plain = {
            "optimizer": config.optimizer if name == "matrix" else "adamw",
            "multiplier": 1.0,
            "weight_decay": config.weight_decay if name == "matrix" else 0.0,
            **{key: getattr(config, key) for key in ("b1", "b2", "epsilon")},
        }
        found[name] = _given(plain, config.groups.get(name))
    for name, asked in config.groups.items():
        if name not in GROUPS:
            if not asked.pattern:
                known = ", ".join(GROUPS)
                raise UserError(f"config optim.groups.{name} is none of {known}, so it needs a pattern over paths")
            found |= {f"{name}/{base}": _given(found[base], asked) for base in GROUPS}
    return {
        name: Group(Direction(*(own[key] for key in Direction._fields)), own["multiplier"], own["weight_decay"])
        for name, own in found.items()
    }


def _given(plain: Mapping[str, Any], asked: GroupConfig | None) -> dict[str, Any]:
    """The settings with those that were asked for in their place."""
    if asked is None:
        return dict(plain)
    return {key: value if (own := getattr(asked, key)) in (None, "") else own for key, value in plain.items()}


def label(params: Any, config: OptimConfig = OptimConfig()) -> Any:  # noqa: B008 (frozen)
    """The group of every parameter, in a tree of the same shape; exactly one must match.

    Patterns that the config gives come before those of GROUPS, and each must match something. A parameter in a group
    of the config's own is labelled with the one it comes from too: `up/matrix`.
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
        return matching[0] if matching[0] in GROUPS else f"{matching[0]}/{_matching(GROUPS, name)[0]}"

    labels = jax.tree_util.tree_map_with_path(one, params)
    for name in config.groups:
        if name not in matched:
            paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
            which = f"{name}.pattern={given[name]!r}" if name in given else name
            raise UserError(f"config optim.groups.{which} matches no parameter; there are {', '.join(paths)}")
    _require_read(config, set(jax.tree.leaves(labels)))
    if config.qk_clip.threshold:
        _require_moving(config, labels)
    return labels


def _require_moving(config: OptimConfig, labels: Any) -> None:
    """Refuses queries and keys that shall stay as they are, with QK-Clip, which scales them."""
    found = groups(config)
    for path, own in jax.tree_util.tree_leaves_with_path(labels):
        if re.fullmatch(r"layers/attention/(query|key)(_bias)?", path_name(path)) and not found[own].multiplier:
            raise UserError(
                f"config optim.groups.{own.partition('/')[0]}.multiplier=0 leaves {path_name(path)} as it is, and "
                "optim.qk_clip.threshold scales it; leave one out"
            )


def _require_read(config: OptimConfig, labels: set[str]) -> None:
    """Refuses settings of Adam for parameters of Muon, which reads none of them."""
    found = groups(config)
    for one in labels:
        name = one.partition("/")[0]
        asked = config.groups.get(name)
        if asked is not None and found[one].direction.optimizer == "muon":
            for key in ("b1", "b2", "epsilon"):
                if getattr(asked, key) is not None:
                    raise UserError(
                        f"config optim.groups.{name}.{key}: Muon has none; optim.muon.momentum is its only average"
                    )


def _matching(patterns: Mapping[str, str], name: str) -> list[str]:
    return [group for group, pattern in patterns.items() if re.fullmatch(pattern, name)]
