"""A small judge of quality: words and pairs of words, hashed, with a weight each that logistic regression finds.

Its score is the probability that a document is like those it was taught to prefer. `train_classifier.py` teaches it
from labelled documents; it lies in a folder as `weights.npy`, a float32 for each feature and one for the bias, and
`classifier.json`, which says how features are made. FineWeb-Edu's judge is a regression over what an
embedding model of 110M parameters says (Penedo et al. 2024); this one scores 10 MB of text a second on a core.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from core.config import require
from core.errors import UserError
from core.files import read_json
from data.curate.ngrams import Words, runs, words
from data.curate.step import Outcome, replace, texts

VERSION = 1  # of the features
FOLDER = "classifier"  # of a workdir
WEIGHTS, SETTINGS = "weights.npy", "classifier.json"
NGRAMS = (1, 2)
MAX_BITS = 22  # of features


class Features(NamedTuple):
    """What of each text is weighed: entries of a sparse matrix, row by row."""

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray  # of a row: 1 + the logarithm of the count, scaled to a length of 1


def features(documents: list[str], bits: int, max_chars: int) -> Features:
    """Of the beginnings of texts, `max_chars` long, into 2**bits columns."""
    found = [columns_of(words(text[:max_chars]), bits) for text in documents]
    rows = np.repeat(np.arange(len(found)), [sum(map(len, own.values())) for own in found])
    columns = np.concatenate([np.zeros(0, np.int64), *(keys for own in found for keys in own.values())])
    cells, counts = np.unique(rows << bits | columns, return_counts=True)
    rows, columns = cells >> bits, cells & ((1 << bits) - 1)
    values = 1 + np.log(counts)
    lengths = np.sqrt(np.bincount(rows, values**2, minlength=len(documents)))
    return Features(rows, columns, values / lengths[rows])


def columns_of(split: Words, bits: int) -> dict[int, np.ndarray]:
    """By n, the column of each run of n words."""
    return {n: (keys >> np.uint64(64 - bits)).view(np.int64) for n, keys in runs(split.hashed, NGRAMS)}


class Classifier(NamedTuple):
    """Weights, and how the features are made that they belong to."""

    weights: np.ndarray  # the last is the bias
    bits: int
    max_chars: int

    def scores(self, documents: list[str]) -> np.ndarray:
        """A probability for each text."""
        rows, columns, values = features(documents, self.bits, self.max_chars)
        sums = np.bincount(rows, values * self.weights[columns], minlength=len(documents))
        return (1 + np.tanh((sums + self.weights[-1]) / 2)) / 2  # the logistic function, which does not overflow so


@dataclasses.dataclass(frozen=True)
class QualityScore:
    """Adds `quality_score`, and drops what scores below the threshold as `low_quality`."""

    version: ClassVar[int] = 1
    model: str = ""  # the folder that `launch.py train-classifier` made; empty is the one in this run's workdir
    threshold: float = 0.5

    def __post_init__(self):
        require(0 <= self.threshold <= 1, f"threshold={self.threshold} must lie between 0 and 1")

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        """The scores, to four places, and who is below."""
        stamp = tuple((path.stat().st_size, path.stat().st_mtime_ns) for path in self.files())
        scores = _classifier(Path(self.model).expanduser(), stamp).scores(texts(batch)).round(4).tolist()
        reasons = ["low_quality" if score < self.threshold else None for score in scores]
        return Outcome(replace(batch, "quality_score", scores), reasons)

    def prepare(self) -> None:
        """Refuses what is no model before workers meet it."""
        self.files()
        load_classifier(Path(self.model).expanduser())

    def files(self) -> list[Path]:
        """The model."""
        paths = [Path(self.model).expanduser() / name for name in (WEIGHTS, SETTINGS)]
        for path in paths:
            if not path.is_file():
                raise UserError(f"quality_score: {path} is missing; `launch.py train-classifier` makes it")
        return paths


@functools.lru_cache(maxsize=4)
def _classifier(folder: Path, stamp: Any) -> Classifier:
    """The one of this process, read once for each state of its files."""
    del stamp
    return load_classifier(folder)


def load_classifier(folder: Path) -> Classifier:
    """Reads a model that may come from a stranger: numbers of the size that its settings say, and nothing else."""
    settings = read_json(folder / SETTINGS)
    made = settings.get("model") if isinstance(settings, dict) else None
    names = ("version", "bits", "max_chars")
    if not isinstance(made, dict) or not all(type(made.get(name)) is int for name in names):
        raise UserError(f"{folder / SETTINGS} describes no classifier; `launch.py train-classifier` makes one")
    version, bits, max_chars = (made[name] for name in names)
    if version != VERSION or not 0 < bits <= MAX_BITS or max_chars <= 0:
        raise UserError(f"{folder / SETTINGS}: version {version} with {bits} bits is not read here; train it again")
    try:
        weights = np.load(folder / WEIGHTS, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS} is damaged ({error}); train it again") from error
    if weights.shape != ((1 << bits) + 1,) or weights.dtype != np.float32 or not np.isfinite(weights).all():
        raise UserError(f"{folder / WEIGHTS} is not {(1 << bits) + 1:,} finite float32 numbers; train it again")
    return Classifier(np.array(weights), bits, max_chars)
