"""The steps of curation: each looks at a text and names the reason to drop it, or None.

A step is a frozen dataclass, its fields are its settings in the recipe. `version` goes up when its decisions
change, so that a corpus made by the older code is not taken for a new one. A new step is such a class and a line
in `STEPS`.
"""

import collections
import dataclasses
from typing import Any, ClassVar

from core.config import parse, require
from core.errors import UserError, suggest


@dataclasses.dataclass(frozen=True)
class Length:
    """Drops what is too short to learn from, or longer than a document can sensibly be."""

    version: ClassVar[int] = 1
    min_chars: int = 100
    max_chars: int = 10_000_000

    def __post_init__(self):
        require(0 <= self.min_chars <= self.max_chars, "min_chars must not exceed max_chars")

    def __call__(self, text: str) -> str | None:
        """The reason to drop the text, or None."""
        if len(text) < self.min_chars:
            return "too_short"
        return "too_long" if len(text) > self.max_chars else None


@dataclasses.dataclass(frozen=True)
class ControlCharacters:
    """Drops binary content that decoded by chance: NULs and U+FFFD are not text."""

    version: ClassVar[int] = 1
    max_fraction: float = 0.001

    def __call__(self, text: str) -> str | None:
        """The reason to drop the text, or None."""
        bad = text.count("\0") + text.count("\ufffd")
        return "control_characters" if bad > self.max_fraction * len(text) else None


@dataclasses.dataclass(frozen=True)
class Letters:
    """Drops tables of numbers and symbols: a text is mostly letters among its visible characters."""

    version: ClassVar[int] = 1
    min_fraction: float = 0.5

    def __call__(self, text: str) -> str | None:
        """The reason to drop the text, or None."""
        visible = "".join(text.split())
        letters = sum(map(str.isalpha, visible))
        return "too_few_letters" if letters < self.min_fraction * len(visible) else None


@dataclasses.dataclass(frozen=True)
class DuplicateLines:
    """Drops texts that repeat themselves: Gopher's share of duplicated lines, over lines that say something.

    Short lines (`else:`, `}`) repeat in good code, hence `min_chars`. Gopher's bound, 0.30, is from Rae et al.
    2021, table A1.
    """

    version: ClassVar[int] = 1
    max_fraction: float = 0.30
    min_chars: int = 20

    def __call__(self, text: str) -> str | None:
        """The reason to drop the text, or None."""
        lines = [line for line in map(str.strip, text.split("\n")) if len(line) >= self.min_chars]
        duplicates = len(lines) - len(collections.Counter(lines))
        return "duplicate_lines" if duplicates > self.max_fraction * len(lines) else None


@dataclasses.dataclass(frozen=True)
class ExactDuplicates:
    """Keeps the first, in hash order of the id, of documents with the same text. The engine does the work."""

    version: ClassVar[int] = 1


STEPS = {
    "length": Length,
    "control_characters": ControlCharacters,
    "letters": Letters,
    "duplicate_lines": DuplicateLines,
    "exact_duplicates": ExactDuplicates,
}


def build_recipe(recipe: tuple[dict[str, Any], ...]) -> list[Any]:
    """Steps from the config's list of `{"step": name, setting: value, ...}`, in its order."""
    steps = []
    for index, entry in enumerate(recipe):
        path = f"data.recipe[{index}]"
        settings = dict(entry)
        name = settings.pop("step", None)
        if name not in STEPS:
            raise UserError(f"config {path}: unknown step {name!r}{suggest(str(name), STEPS)}")
        steps.append(parse(STEPS[name], settings, path))
    corpus_wide = [isinstance(step, ExactDuplicates) for step in steps]
    if any(corpus_wide[:-1]):
        raise UserError("config data.recipe: exact_duplicates looks at all documents and must come last, once")
    return steps


def recipe_spec(recipe: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    """The recipe with every setting and code version, for the manifest."""
    return [
        {"step": type(step).__name__, "version": step.version, **dataclasses.asdict(step)}
        for step in build_recipe(recipe)
    ]
