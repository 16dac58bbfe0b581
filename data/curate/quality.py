"""Quality rules of Gopher (Rae et al. 2021), C4 (Raffel et al. 2020) and FineWeb, as datatrove 0.10 decides them."""

import dataclasses
import re
from typing import ClassVar

import pyarrow as pa

from core.config import require
from data.curate.repetition import duplicates
from data.curate.step import Outcome, TextRule, replace, texts
from data.curate.words import packages_of, splitter, terminals

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
ELLIPSES = ("...", "…")


@dataclasses.dataclass(frozen=True)
class GopherQuality(TextRule):
    """Drops texts whose words or lines are unlike those of prose. Stop words are compared as they are written."""

    version: ClassVar[int] = 1
    language: str = "en"
    min_doc_words: int = 50  # words that are more than punctuation
    max_doc_words: int = 100_000
    min_avg_word_length: float = 3
    max_avg_word_length: float = 10
    max_symbol_word_ratio: float = 0.1  # of `#` and of ellipses
    max_bullet_lines_ratio: float = 0.9
    max_ellipsis_lines_ratio: float = 0.3
    min_alpha_words_ratio: float = 0.8  # with a letter
    min_stop_words: int = 2  # different ones
    stop_words: tuple[str, ...] = STOP_WORDS

    @property
    def packages(self) -> tuple[str, ...]:
        """Those whose versions decide."""
        return packages_of(self.language)

    def reason(self, text: str) -> str | None:
        """Why the text is dropped, or None."""
        words = splitter(self.language)(text)
        lengths = words.of("length")[~words.of("symbol")]
        if len(lengths) < self.min_doc_words:
            return "gopher_short_doc"
        if len(lengths) > self.max_doc_words:
            return "gopher_long_doc"
        mean = lengths.mean() if len(lengths) else 0.0
        if mean < self.min_avg_word_length:
            return "gopher_below_avg_threshold"
        if mean > self.max_avg_word_length:
            return "gopher_above_avg_threshold"
        count = max(1, len(words))
        if text.count("#") / count > self.max_symbol_word_ratio:
            return "gopher_too_many_hashes"
        if sum(map(text.count, ELLIPSES)) / count > self.max_symbol_word_ratio:
            return "gopher_too_many_ellipsis"
        lines = text.splitlines() or [""]
        if sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines) > self.max_bullet_lines_ratio:
            return "gopher_too_many_bullets"
        if sum(line.rstrip().endswith(ELLIPSES) for line in lines) / len(lines) > self.max_ellipsis_lines_ratio:
            return "gopher_too_many_end_ellipsis"
        if words.of("alphabetic").sum() / count < self.min_alpha_words_ratio:
            return "gopher_below_alpha_threshold"
        numbers = (words.known.numbers.get(word) for word in self.stop_words)
        if sum(number is not None and number in words.ids for number in numbers) < self.min_stop_words:
            return "gopher_enough_stop_words"
        return None


@dataclasses.dataclass(frozen=True)
class C4Quality:
    """Leaves out lines that are no prose, and drops what then is too little. FineWeb keeps lines without a mark."""

    version: ClassVar[int] = 1
    language: str = "en"
    filter_no_terminal_punct: bool = False
    min_num_sentences: int = 5
    min_words_per_line: int = 3
    max_word_length: int = 1000

    @property
    def packages(self) -> tuple[str, ...]:
        """Those whose versions decide."""
        return packages_of(self.language)

    def __post_init__(self):
        require(self.max_word_length > 0, f"max_word_length={self.max_word_length} must be positive")

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        """The documents with the lines that stay."""
        found = [self.cleaned(text) for text in texts(batch)]
        changed = replace(batch, "text", [text for text, _ in found])
        return Outcome(changed, [reason for _, reason in found])

    def cleaned(self, text: str) -> tuple[str, str | None]:
        """The text without such lines, and why it is dropped, or None."""
        kept, sentences = [], 0
        for line in map(str.strip, text.splitlines()):
            words = line.split()
            if max(map(len, words), default=0) > self.max_word_length:
                continue
            line = CITATION.sub("", line)
            if self.filter_no_terminal_punct and (
                not line.endswith((".", "?", "!", '"', "'")) or line.endswith("...")
            ):
                continue
            if len(words) < self.min_words_per_line:
                continue
            lower = line.lower()
            if "lorem ipsum" in lower:
                return text, "lorem_ipsum"
            if "javascript" in lower:
                continue
            if "{" in line:
                return text, "curly_bracket"
            if any(policy in lower for policy in POLICIES):
                continue
            if sentences < self.min_num_sentences:
                sentences += splitter(self.language).sentences(line)
            kept.append(line)
        if sentences < self.min_num_sentences:
            return text, "too_few_sentences"
        return "\n".join(kept).strip(), None


@dataclasses.dataclass(frozen=True)
class FineWebQuality(TextRule):
    """FineWeb's own rules: drops lists, and texts whose lines are short, unfinished or repeated."""

    version: ClassVar[int] = 1
    language: str = "en"
    line_punct_thr: float = 0.12
    line_punct_exclude_zero: bool = False
    stop_chars: tuple[str, ...] = ()  # marks that end a line; none are those of all scripts
    short_line_thr: float = 0.67
    short_line_length: int = 30
    char_duplicates_ratio: float = 0.01
    new_line_ratio: float = 0.3  # line breaks for a word

    @property
    def packages(self) -> tuple[str, ...]:
        """Those whose versions decide."""
        return packages_of(self.language)

    def reason(self, text: str) -> str | None:
        """Why the text is dropped, or None."""
        lines = [line for line in text.split("\n") if line.strip()]
        if not lines:
            return "empty"
        marks = self.stop_chars or tuple(terminals())
        share = sum(line.endswith(marks) for line in lines) / len(lines)
        if share < self.line_punct_thr and not (share == 0 and self.line_punct_exclude_zero):
            return "line_punct_ratio"
        if sum(len(line) <= self.short_line_length for line in lines) / len(lines) > self.short_line_thr:
            return "short_line_ratio"
        breaks = text.count("\n")
        if duplicates(lines)[1] / (len(text) - breaks) > self.char_duplicates_ratio:
            return "char_dup_ratio"
        if breaks / max(1, len(splitter(self.language)(text))) > self.new_line_ratio:
            return "list_ratio"
        return None
