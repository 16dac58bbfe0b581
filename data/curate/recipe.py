"""Recipes: the steps that there are, by name, and a config's list of them."""

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any, TypeVar

from core.config import parse
from core.errors import UserError, suggest
from data.curate.classifier import FOLDER, QualityScore
from data.curate.decontaminate import Decontaminate
from data.curate.extract import Extract
from data.curate.language import Language
from data.curate.minhash import MinHash
from data.curate.only import Only
from data.curate.pii import PersonalData
from data.curate.plain import ControlCharacters, DuplicateLines, ExactDuplicates, Length, Letters
from data.curate.quality import C4Quality, FineWebQuality, GopherQuality
from data.curate.repetition import GopherRepetition
from data.curate.url import UrlFilter

T = TypeVar("T")

STEPS = {
    "length": Length,
    "control_characters": ControlCharacters,
    "letters": Letters,
    "duplicate_lines": DuplicateLines,
    "url_filter": UrlFilter,
    "extract": Extract,
    "language": Language,
    "gopher_repetition": GopherRepetition,
    "gopher_quality": GopherQuality,
    "c4_quality": C4Quality,
    "fineweb_quality": FineWebQuality,
    "minhash": MinHash,
    "quality_score": QualityScore,
    "decontaminate": Decontaminate,
    "personal_data": PersonalData,
    "exact_duplicates": ExactDuplicates,
}


def build_recipe(recipe: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """Steps by their names from the config's list of `{"step": name, setting: value, ...}`, in its order.

    A name with a colon, `my_steps:Shouting`, is a class in a module of the user's own. `"only": "de"` leaves a step
    to the documents of that language, and its name says so. A step that is there twice is told by its place.
    """
    steps: dict[str, Any] = {}
    for index, entry in enumerate(recipe):
        path = f"data.recipe[{index}]"
        settings = dict(entry)
        name, only = settings.pop("step", None), settings.pop("only", "")
        if not isinstance(name, str):
            raise UserError(f"config {path}: unknown step {name!r}; known are {', '.join(STEPS)}")
        step = parse(_own(name, path) if ":" in name else _known(name, path), settings, path)
        if only:
            if not isinstance(only, str):
                raise UserError(f"config {path}.only={only!r} must be a language")
            if not callable(step) or isinstance(step, MinHash):
                raise UserError(f"config {path}: {name} looks at all documents, not {only} ones alone")
            step, name = Only(step, only), f"{name} {only}"
        steps[name if name not in steps else f"{name} ({index + 1})"] = step
    corpus_wide = [isinstance(step, ExactDuplicates) for step in steps.values()]
    if any(corpus_wide[:-1]):
        raise UserError("config data.recipe: exact_duplicates looks at all documents and must come last, once")
    if sum(isinstance(step, MinHash) for step in steps.values()) > 1:
        raise UserError("config data.recipe: minhash is there twice")
    return steps


def at(workdir: Path, recipe: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    """The recipe as it runs there: a judge of quality without a model has that of the workdir.

    The manifest has the recipe of the config, and hashes of the model's files, so that a workdir can be moved.
    """
    own = str((workdir / FOLDER).absolute())
    return tuple(
        {**entry, "model": own} if entry.get("step") == "quality_score" and not entry.get("model") else entry
        for entry in recipe
    )


def own_module(step: Any) -> Path | None:
    """The file of a user's step, whose change makes a corpus stale."""
    kind = type(step.step if isinstance(step, Only) else step)
    if kind.__module__.partition(".")[0] == __name__.partition(".")[0]:
        return None
    return Path(sys.modules[kind.__module__].__file__)


def find(steps: dict[str, Any], kind: type[T]) -> T | None:
    """The first step of this kind."""
    return next((step for step in steps.values() if isinstance(step, kind)), None)


def recipe_spec(recipe: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    """The recipe with every setting and code version, for the manifest."""
    return [_spec(name, step) for name, step in build_recipe(recipe).items()]


def _spec(name: str, step: Any) -> dict[str, Any]:
    if isinstance(step, Only):
        return {**_spec(name, step.step), "only": step.language}
    own = name if ":" in name else type(step).__name__
    return {"step": own, "version": step.version, **dataclasses.asdict(step)}


def _known(name: str, path: str) -> type:
    if name not in STEPS:
        raise UserError(f"config {path}: unknown step {name!r}{suggest(name, STEPS)}")
    return STEPS[name]


def _own(name: str, path: str) -> type:
    module, _, cls = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), cls)
    except Exception as error:
        raise UserError(f"config {path}: step {name!r} is not found ({type(error).__name__}: {error})") from error
    versioned = dataclasses.is_dataclass(found) and isinstance(getattr(found, "version", None), int)
    if not versioned or "__call__" not in dir(found):
        raise UserError(
            f"config {path}: step {name!r} must be a dataclass with `version` and `__call__`, see step.py"
        )
    return found
