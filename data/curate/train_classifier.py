"""Teaches the judge of quality: labelled documents in, `workdir/classifier` out.

    weights.npy, classifier.json    the model, for the step `quality_score`
    report.txt                      what it gets right on documents held out, by threshold and source, and its words

Logistic regression with a squared penalty has one best answer, which L-BFGS finds in the same steps each time. Both
kinds of documents weigh the same however many there are of each, so 0.5 means: as likely of one as of the other.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, sparse, special

from core.errors import UserError
from core.files import Stage, Stale, atomic_write, write_json
from core.progress import say
from data.config import ClassifierConfig, DataConfig
from data.curate import classifier
from data.curate.classifier import FOLDER, SETTINGS, WEIGHTS, Classifier, columns_of, features
from data.curate.labelled import Collected, Example, Place, collect, pages_of
from data.curate.ngrams import words
from data.packages import versions

REPORT = "report.txt"
VERSION = 2
ROWS = 1024  # documents at a time
STEPS = 500  # of L-BFGS at most; it ends where the loss falls by less than a billionth of itself
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
TOP, LOOKED_THROUGH = 30, 1000  # features of most weight, and documents in which their words are looked for


class Taught(NamedTuple):
    """A model, and what it was taught and is judged with."""

    model: Classifier
    steps: int
    examples: list[Example]
    heldout: list[Example]
    scores: np.ndarray  # of those held out


def train_classifier(
    config: ClassifierConfig, data: DataConfig, workdir: Path, *, stale: Stale = "refuse"
) -> dict[str, Any]:
    """Makes `workdir/classifier` and returns what was found on the documents held out.

    Of `data` count the names of columns, the recipe's extraction of pages, and the workers.
    """
    places = [Place(*one, path) for one, path in _paths(config).items()]
    if not {"positive", "negative"} <= {place.kind for place in places} and not config.scored:
        raise UserError(
            "config.classifier names no documents of two kinds: give positive.NAME=PATH and negative.NAME=PATH, or "
            "scored.NAME=PATH"
        )
    settings = {key: value for key, value in vars(config).items() if type(value) in (int, float)}
    inputs = {f"{place.kind} {place.name}": place.inputs() for place in places}
    spec = {"version": VERSION, "features": classifier.VERSION, "classifier": settings, "input": inputs}
    stage = Stage(workdir / FOLDER, spec | _read_by(data), stale=stale)
    if stage.finished:
        say(f"train-classifier: {stage.folder} is up to date")
        return stage.summary

    collected = collect(config, data, places)
    taught = teach(config, collected)
    found = evaluation(taught)
    described = {"version": classifier.VERSION, "bits": config.feature_bits, "max_chars": config.max_chars}
    paths = [stage.folder / name for name in (WEIGHTS, SETTINGS, REPORT)]
    with atomic_write(paths[0]) as file:
        np.save(file, taught.model.weights)
    write_json(paths[1], {"model": described, "heldout": found})
    with atomic_write(paths[2], "w") as file:
        file.write(report(taught, found))
    say(
        f"train-classifier: {len(taught.examples):,} documents; of {len(taught.heldout):,} held out "
        f"{found['accuracy']:.1%} are told right, area under the curve {found['auc']:.4f}"
        f"{collected.lost(True, False)}; see {paths[2]}"
    )
    return stage.finish(paths, found)


def _paths(config: ClassifierConfig) -> dict[tuple[str, str], str]:
    kinds = {"positive": config.positive, "negative": config.negative, "scored": config.scored}
    return {(name, kind): path for kind, paths in kinds.items() for name, path in paths.items()}


def _read_by(data: DataConfig) -> dict[str, Any]:
    """What decides the text of a document beside its file."""
    pages = pages_of(data)
    extract = {"version": pages.version, **dataclasses.asdict(pages)}
    return {"extract": extract, "columns": data.columns, **versions([pages])}


def teach(config: ClassifierConfig, collected: Collected) -> Taught:
    """The weights that fit the documents that are not held out."""
    documents = collected.examples
    bound = round(config.heldout_fraction * 2**64)
    heldout = [example for example in documents if example.held_out < bound]
    examples = [example for example in documents if example.held_out >= bound]
    for kind, name in ((True, "to be preferred"), (False, "not to be preferred")):
        counts = [sum(example.positive == kind for example in own) for own in (examples, heldout)]
        if not all(counts):
            raise UserError(
                f"config.classifier: of the documents {name}, {counts[0]:,} are to learn from and {counts[1]:,} held "
                f"out; both need one: give more, or change heldout_fraction{collected.lost(kind)}"
            )
    weights, steps = _fit(config, examples)
    model = Classifier(weights.astype(np.float32), config.feature_bits, config.max_chars)
    scores = [model.scores([one.text for one in part]) for part in _parts(heldout)]
    return Taught(model, steps, examples, heldout, np.concatenate(scores))


def _parts(examples: list[Example]) -> Iterator[list[Example]]:
    return (examples[i : i + ROWS] for i in range(0, len(examples), ROWS))


def _fit(config: ClassifierConfig, examples: list[Example]) -> tuple[np.ndarray, int]:
    """Weights with the bias at the end, and the steps that it took."""
    matrix = sparse.vstack([_matrix(config, part) for part in _parts(examples)], "csr")
    positive = np.array([example.positive for example in examples])
    signs = np.where(positive, 1.0, -1.0)
    shares = np.where(positive, 0.5 / positive.sum(), 0.5 / (~positive).sum())
    penalty = config.regularization / len(examples)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs * (matrix @ weights[:-1] + weights[-1])
        slopes = -shares * signs * special.expit(-margins)
        value = shares @ np.logaddexp(0, -margins) + penalty / 2 * (weights[:-1] @ weights[:-1])
        return value, np.append(matrix.T @ slopes + penalty * weights[:-1], slopes.sum())

    start, options = np.zeros(matrix.shape[1] + 1), {"maxiter": STEPS, "ftol": 1e-9}
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    return found.x, int(found.nit)


def _matrix(config: ClassifierConfig, examples: list[Example]) -> sparse.csr_matrix:
    rows, columns, values = features([one.text for one in examples], config.feature_bits, config.max_chars)
    shape = len(examples), 1 << config.feature_bits
    return sparse.csr_matrix((values, (rows, columns.astype(np.int32))), shape)


def evaluation(taught: Taught) -> dict[str, Any]:
    """What is told right of the documents held out, at each threshold and of each source."""
    truth = np.array([example.positive for example in taught.heldout])
    places = [f"{example.source} ({_kind(example.positive)})" for example in taught.heldout]
    sources = {}
    for place in sorted(set(places)):
        own = taught.scores[[one == place for one in places]]
        sources[place] = {"documents": len(own), "mean": float(own.mean()), "kept": float((own >= 0.5).mean())}
    return {
        "documents": {"learnt": len(taught.examples), "heldout": len(truth), "positive": int(truth.sum())},
        "accuracy": float(((taught.scores >= 0.5) == truth).mean()),
        "auc": auc(taught.scores, truth),
        "thresholds": [_at(threshold, taught.scores, truth) for threshold in THRESHOLDS],
        "sources": sources,
        "features": _heaviest(taught),
    }


def _kind(positive: bool) -> str:
    return "positive" if positive else "negative"


def _at(threshold: float, scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    kept = scores >= threshold
    right = float((kept & truth).sum())
    precision = right / kept.sum() if kept.any() else 1.0
    return {
        "threshold": threshold,
        "precision": float(precision),
        "recall": right / float(truth.sum()),
        "kept": float(kept.mean()),
    }


def auc(scores: np.ndarray, truth: np.ndarray) -> float:
    """The chance that a document to be preferred scores above one that is not; equal scores count half."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    wanted, others = int(truth.sum()), int((~truth).sum())
    return float((ranks[truth].sum() - wanted * (wanted + 1) / 2) / (wanted * others))


def _heaviest(taught: Taught) -> dict[str, list[dict[str, Any]]]:
    """The features of most weight to both sides, by the words that most often have their number."""
    weights = taught.model.weights[:-1]
    order = np.argsort(weights, kind="stable")
    sides = {"positive": order[::-1][:TOP], "negative": order[:TOP]}
    wanted = np.zeros(len(weights), bool)
    wanted[np.concatenate(list(sides.values()))] = True
    seen: dict[int, collections.Counter] = collections.defaultdict(collections.Counter)
    for example in taught.examples[:LOOKED_THROUGH]:
        split = words(example.text)
        for n, columns in columns_of(split, taught.model.bits).items():
            for place in np.flatnonzero(wanted[columns]).tolist():
                shown = re.sub(r"[^\w']+", " ", split.span(place, n)).strip()
                seen[int(columns[place])][shown] += 1
    return {
        side: [
            {"words": min(seen[column].items(), key=lambda pair: (-pair[1], pair[0]))[0], "weight": float(weight)}
            for column, weight in zip(columns.tolist(), weights[columns])
            if seen[column]
        ]
        for side, columns in sides.items()
    }


def report(taught: Taught, found: dict[str, Any]) -> str:
    """The same for people."""
    lines = [
        f"{found['documents']['learnt']:,} documents to learn from, {found['documents']['heldout']:,} held out, of "
        f"which {found['documents']['positive']:,} are to be preferred; {taught.steps} steps",
        "",
        f"Of those held out {found['accuracy']:.1%} are told right at 0.5; area under the curve {found['auc']:.4f}.",
        "",
        "threshold  precision  recall  kept",
        *(
            f"{one['threshold']:9.2f}  {one['precision']:9.3f}  {one['recall']:6.3f}  {one['kept']:4.2f}"
            for one in found["thresholds"]
        ),
        "",
        "held out  mean score  kept at 0.5  source",
        *(
            f"{own['documents']:8,}  {own['mean']:10.3f}  {own['kept']:11.3f}  {name}"
            for name, own in found["sources"].items()
        ),
    ]
    for side, listed in found["features"].items():
        shown = ", ".join(f"{one['words']} {one['weight']:+.2f}" for one in listed)
        lines += ["", f"Words of most weight, {side}: {shown}"]
    return "\n".join(lines) + "\n"
