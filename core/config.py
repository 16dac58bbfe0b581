"""Strict frozen dataclasses from config trees: unknown keys, wrong types and bad values end in one line."""

import ast
import dataclasses
import importlib.util
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from core.errors import UserError, suggest

T = TypeVar("T")


class CommandLineText(str):
    """A value as typed after `--config.a.b=`; it takes the type that its key asks for."""


def load_experiment(
    path: Path, overrides: Mapping[str, str] | None = None, groups: Collection[str] = ()
) -> dict[str, Any]:
    """Runs `get_config()` of an experiment file, puts overrides in place, returns its tree as plain dicts.

    Overrides may go into `groups` that the experiment does not mention.
    """
    if not path.is_file():
        raise UserError(f"--config={path} does not exist")
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config={path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:
        raise UserError(f"--config={path} fails: {type(error).__name__}: {error} (--debug shows where)") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config={path}: get_config() must return an ml_collections.ConfigDict")
    for key, value in (overrides or {}).items():
        override(config, key, value, groups)
    return config.to_dict()


def override(config: ConfigDict, key: str, text: str, groups: Collection[str] = ()) -> None:
    """Puts a value typed on the command line in place; keys that refer to this one follow.

    One of the `groups` that the config lacks is made; what nobody knows inside a group, `parse_parts` refuses.
    """
    group, path = config, key.split(".")
    for depth, name in enumerate(path[:-1]):
        if name not in group and (depth or name in groups):  # left to its defaults by the experiment
            with config.unlocked():
                group[name] = ConfigDict()
        if not isinstance(group.get(name), ConfigDict):
            known = [name for name, value in group.items() if isinstance(value, ConfigDict)]
            raise UserError(
                f"unknown config key {key}: there is no group {'.'.join(path[: depth + 1])}{suggest(name, known)}"
            )
        group = group[name]
    with config.unlocked(), config.ignore_type():
        group[path[-1]] = CommandLineText(text)


def parse_parts(classes: Mapping[str, type], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Each subtree as its dataclass, and `seed`; a missing subtree is all defaults."""
    for key in tree:
        if key not in classes and key != "seed":
            raise UserError(f"unknown config key {key}{suggest(key, [*classes, 'seed'])}")
    for key, cls in classes.items():
        if not isinstance(tree.get(key, {}), Mapping):
            raise UserError(f"config {key}={tree[key]!r} must be {describe(cls)}")
    parts = {key: parse(cls, tree.get(key, {}), key) for key, cls in classes.items()}
    return {**parts, "seed": coerce(int, tree.get("seed", 0), "seed")}


def parse(cls: type[T], tree: Mapping[str, Any], path: str) -> T:
    """Builds the dataclass `cls` from the config subtree found at `path` (for messages).

    Every field of the dataclass may be given; one without a default must be. Integers pass as floats, lists as
    tuples. A `ValueError` from `__post_init__` is an impossible combination and is told with its path.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in tree:
        if key not in fields:
            raise UserError(f"unknown config key {path}.{key}{suggest(key, fields)}")
    values = {}
    for name, field in fields.items():
        if name in tree:
            values[name] = coerce(hints[name], tree[name], f"{path}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"config key {path}.{name} is missing ({describe(hints[name])})")
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"config {path}: {error}") from error


def coerce(hint: Any, value: Any, path: str) -> Any:
    """`value` as the annotated type, or a `UserError` that names the path."""
    if isinstance(value, CommandLineText):
        value = _typed(hint, value)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return parse(hint, value, path)
    if origin in (types.UnionType, typing.Union):
        return _coerce_union(args, value, path)
    if origin is typing.Literal:
        if value in args and type(value) in {type(arg) for arg in args}:
            return value
        near = suggest(value, args) if isinstance(value, str) else f"; known are {', '.join(map(str, args))}"
        raise UserError(f"config {path}={value!r} is not a choice{near}")
    if origin is tuple and isinstance(value, list | tuple):
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(coerce(args[0], item, f"{path}[{i}]") for i, item in enumerate(value))
        if len(args) == len(value):
            return tuple(coerce(arg, item, f"{path}[{i}]") for i, (arg, item) in enumerate(zip(args, value)))
    if origin is dict and isinstance(value, Mapping):
        return {key: coerce(args[1], item, f"{path}.{key}") for key, item in value.items()}
    if hint is Any or (isinstance(hint, type) and type(value) is hint):
        return value
    if hint is float and type(value) is int and abs(value) < 2**1000:  # beyond that there is no float
        return float(value)
    raise UserError(f"config {path}={value!r} must be {describe(hint)}")


def _typed(hint: Any, text: str) -> Any:
    """Text from the command line as a Python literal where the key does not ask for a string."""
    choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    if hint is str or text in choices:
        return str(text)
    literal = {"true": "True", "false": "False", "none": "None"}.get(text.lower(), text)
    try:
        return ast.literal_eval(literal)
    except (ValueError, SyntaxError):
        return str(text)


def _coerce_union(args: tuple, value: Any, path: str) -> Any:
    if value is None and type(None) in args:
        return None
    for arg in args:
        if arg is type(None):
            continue
        try:
            return coerce(arg, value, path)
        except UserError:
            if len([a for a in args if a is not type(None)]) == 1:
                raise
    raise UserError(f"config {path}={value!r} must be {' or '.join(describe(a) for a in args)}")


def describe(hint: Any) -> str:
    """A type as a user would say it: 'an integer', 'true or false'."""
    names = {int: "an integer", float: "a number", bool: "True or False", str: "a string", type(None): "None"}
    if hint in names:
        return names[hint]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(describe(arg) for arg in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        args = typing.get_args(hint)
        if len(args) == 2 and args[1] is Ellipsis:
            return f"a list, each {describe(args[0])}"
        return "(" + ", ".join(describe(arg) for arg in args) + ")"
    if dataclasses.is_dataclass(hint):
        return "a group of keys (" + ", ".join(f.name for f in dataclasses.fields(hint)) + ")"
    return str(getattr(hint, "__name__", hint))


def require(condition: bool, message: str) -> None:
    """For `__post_init__`: refuses an impossible combination."""
    if not condition:
        raise ValueError(message)
