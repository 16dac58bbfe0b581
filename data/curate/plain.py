"""Steps for any folder of text: what is too short, too long, binary, mostly symbols or repeats itself is dropped."""

import collections
import dataclasses
from typing import ClassVar

from core.config import require
from data.curate.step import TextRule


@dataclasses.dataclass(frozen=True)
class Length(TextRule):
    """Drops what is too short to learn from, or longer than a document can sensibly be."""

    version: ClassVar[int] = 1
    min_chars: int = 100
    max_chars: int = 10_000_000

    def __post_init__(self):
        require(0 <= self.min_chars <= self.max_chars, "min_chars must not exceed max_chars")

    def reason(self, text: str) -> str | None:
        """The reason to drop the text, or None."""
        if len(text) < self.min_chars:
            return "too_short"
        return "too_long" if len(text) > self.max_chars else None


@dataclasses.dataclass(frozen=True)
class ControlCharacters(TextRule):
    """Drops binary content that decoded by chance: NULs and U+FFFD are not text."""

    version: ClassVar[int] = 1
    max_fraction: float = 0.001

    def reason(self, text: str) -> str | None:
        """The reason to drop the text, or None."""
        bad = text.count("\0") + text.count("\ufffd")
        return "control_characters" if bad > self.max_fraction * len(text) else None


@dataclasses.dataclass(frozen=True)
class Letters(TextRule):
    """Drops tables of numbers and symbols: a text is mostly letters among its visible characters."""

    version: ClassVar[int] = 1
    min_fraction: float = 0.5

    def reason(self, text: str) -> str | None:
        """The reason to drop the text, or None."""
        visible = "".join(text.split())
        letters = sum(map(str.isalpha, visible))
        return "too_few_letters" if letters < self.min_fraction * len(visible) else None


@dataclasses.dataclass(frozen=True)
class DuplicateLines(TextRule):
    """Drops texts that repeat themselves: Gopher's share of duplicated lines, over lines that say something.

    Short lines (`else:`, `}`) repeat in good code, hence `min_chars`. Gopher's bound, 0.30, is from Rae et al.
    2021, table A1.
    """

    version: ClassVar[int] = 1
    max_fraction: float = 0.30
    min_chars: int = 20

    def reason(self, text: str) -> str | None:
        """The reason to drop the text, or None."""
        lines = [line for line in map(str.strip, text.split("\n")) if len(line) >= self.min_chars]
        duplicates = len(lines) - len(collections.Counter(lines))
        return "duplicate_lines" if duplicates > self.max_fraction * len(lines) else None


@dataclasses.dataclass(frozen=True)
class ExactDuplicates:
    """Keeps the first, in hash order of the id, of documents with the same text. The engine does the work."""

    version: ClassVar[int] = 1
