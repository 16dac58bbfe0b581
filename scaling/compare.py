"""The verb `compare`: variants of one run, each tuned with a budget of its own, then trained on the same seeds.

Every trial is an ordinary run in a workdir of its own below `compare/runs/`, over the same tokens: a finished one is
skipped (its checkpoints are gone, its numbers stay), an interrupted one continues. The trials that tune have seed 0,
those that count 1, 2, ... Stored distributions of a teacher are the workdir's, or made in `compare/taught/` where a
variant asks for others.
"""

import itertools
import math
import os
import re
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from core.errors import UserError
from core.files import MANIFEST, fingerprint, read_json, write_json
from core.progress import duration, say
from data.targets import TARGETS
from evals.config import EvalConfig
from evals.evaluate import quick_evaluation
from scaling.compare_page import write_page
from scaling.compare_text import rows, table
from scaling.config import CompareConfig, VariantConfig
from train.config import TeachConfig
from train.loop import train
from train.metrics import Diverged, read_metrics
from train.run import CHECKPOINTS, FOLDER, Run, abstract_state, run_spec
from train.teach import require_same_teacher, teach

PLACE = "compare"
TOKENS = ("curated", "tokenizer", "tokens")
MEASURE = "heldout_bits_per_byte"


class Trial(NamedTuple):
    """One run: of which variant, with which keys, over which share of the steps, on which seed."""

    variant: str
    keys: Mapping[str, Any]
    length: float
    seed: int

    @property
    def shown(self) -> str:
        """In a line."""
        keys = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in self.keys.items())
        return f"{self.variant}, {self.length:g} of the steps, seed {self.seed}" + (f", {keys}" if keys else "")


class Result(NamedTuple):
    """What a trial came to."""

    loss: float  # held-out bits per byte at the end; infinite where it failed
    seconds: float  # of training, without evaluations
    step_seconds: float  # the median
    state_bytes: int
    curve: list[tuple[int, float]]  # held-out bits per byte at a step
    peak_bytes: int  # on an accelerator, of all trials of this process up to here; 0 where they are not counted
    failed: str = ""
    device: str = ""  # that it was trained on
    whole_seconds: float = 0.0  # evaluations included

    @property
    def plain(self) -> dict[str, Any]:
        """For JSON, which has no infinity."""
        return self._asdict() | {"loss": self.loss if math.isfinite(self.loss) else None}


MakeRun = Callable[[Mapping[str, Any]], tuple[Run, EvalConfig]]


def compare(config: CompareConfig, make_run: MakeRun, workdir: Path, name: str, command: str) -> None:
    """Trains all trials, writes `compare/compare.json` and `compare.html`, prints the table and the verdict."""
    if not config.variants:
        raise UserError("config compare.variants is empty; experiments/optimizer_race.py has some")
    if not jax.config.jax_compilation_cache_dir:  # seeds of a variant are one program
        jax.config.update("jax_compilation_cache_dir", str(workdir / PLACE / "compile_cache"))
    lab = _Lab(config, make_run, workdir)
    tuned: dict[str, dict[str, Any]] = {}
    for variant in config.in_order:
        other = config.variants[variant].tuned_as
        tuned[variant] = tuned[other] if other else lab.tune(variant)
    results = {
        variant: {
            length: [lab.run(Trial(variant, tuned[variant], length, seed)) for seed in range(1, config.seeds + 1)]
            for length in config.lengths_of(variant)
        }
        for variant in config.variants
    }
    found = {
        "name": name,
        "baseline": config.baseline,
        "significance": config.significance,
        "steps": lab.steps,
        "device": " and ".join(sorted({own.device or jax.devices()[0].device_kind for _, own in lab.all})),
        "whole_seconds": sum(own.whole_seconds for _, own in lab.all),
        "versions": {"jax": jax.__version__},
        "variants": {
            variant: {
                "set": dict(config.variants[variant].set),
                "tuned": tuned[variant],
                "at_the_edge": at_the_edge(config, variant, tuned[variant]),
                "tuning": [{**one._asdict(), "keys": dict(one.keys)} | own.plain for one, own in lab.tuning[variant]],
                "runs": {f"{length:g}": [own.plain for own in runs] for length, runs in of_lengths.items()},
            }
            for variant, of_lengths in results.items()
        },
    }
    folder = workdir / PLACE
    write_json(folder / "compare.json", found)
    told = rows(found)
    pages = write_page(found, told, command, folder / "compare.html")
    print(table(found, told))  # noqa: T201 (the result, to standard output)
    say(f"compare: {pages[0]}, and compare.json beside it")


def at_the_edge(config: CompareConfig, variant: str, tuned: Mapping[str, Any]) -> list[str]:
    """Tuned keys whose best value is the least or the greatest of those tried: beyond it may lie a better one."""
    own = config.variants[variant]
    tried = (config.variants[own.tuned_as] if own.tuned_as else own).tune
    numbers = [(key, values) for key, values in tried if all(isinstance(value, int | float) for value in values)]
    return [key for key, values in numbers if len(values) > 1 and tuned[key] in (min(values), max(values))]


class _Lab:
    """Runs trials and remembers how long they took."""

    def __init__(self, config: CompareConfig, make_run: MakeRun, workdir: Path):
        self.config, self.make_run, self.workdir = config, make_run, workdir
        self.tuning: dict[str, list[tuple[Trial, Result]]] = {variant: [] for variant in config.variants}
        self.all: list[tuple[Trial, Result]] = []
        self.done, self.took = 0, []
        self.places: dict[TeachConfig, Path] = {}
        base, _ = make_run({})
        self.steps = base.train.steps
        if not self.steps or not base.train.eval_every:
            raise UserError("config compare: trials need train.steps and train.eval_every, and no batch.stages")
        rounds = sum(len(values) for own in config.variants.values() for _, values in own.tune)
        repeated = sum(max(0, len(own.tune) - 1) for own in config.variants.values())
        lengths = sum(len(config.lengths_of(variant)) for variant in config.variants)
        self.total = rounds - repeated + config.seeds * lengths
        self._require_all()

    def _require_all(self) -> None:
        """Before the first trial runs, refuses what cannot be made, and has teachers say what will be asked for."""
        runs = []
        for variant, own in self.config.variants.items():
            tried = ({**_first(own), key: value} for key, values in own.tune for value in values)
            for keys, length in itertools.product([_first(own), *tried], self.config.lengths_of(variant)):
                runs.append(self.make_run(self._keys(Trial(variant, keys, length, 0)))[0])
                abstract_state(runs[-1])
        for run in runs:
            self._place(run)

    def _steps(self, length: float) -> int:
        return round(length * self.steps)

    def _keys(self, trial: Trial) -> dict[str, Any]:
        """All that a trial sets."""
        own = {**dict(self.config.variants[trial.variant].set), **trial.keys}
        return own | {"train.steps": self._steps(trial.length), "seed": trial.seed}

    def tune(self, variant: str) -> dict[str, Any]:
        """The keys of the lowest final loss, one key after the other."""
        own = self.config.variants[variant]
        keys = _first(own)
        for number, (key, values) in enumerate(own.tune):
            for value in values:
                if number and value == keys[key]:
                    continue  # tried in the round before
                trial = Trial(variant, {**keys, key: value}, self.config.lengths_of(variant)[-1], 0)
                self.tuning[variant].append((trial, self.run(trial)))
            keys = self._best(variant)
        return keys

    def _best(self, variant: str) -> dict[str, Any]:
        """Of the trials that tuned a variant so far; where all failed, it will fail in the race too."""
        trial, result = min(self.tuning[variant], key=lambda pair: pair[1].loss)  # the first of those that failed
        if not math.isfinite(result.loss):
            say(f"compare: every trial of {variant} failed: {result.failed}")
        return dict(trial.keys)

    def run(self, trial: Trial) -> Result:
        """Trains where that is still to be done; a run that diverges is a result too."""
        self.done += 1
        run, evaluation = self.make_run(self._keys(trial))
        place = self._place(run)
        made_from = fingerprint({"spec": run_spec(run, place), "run": repr(run), "eval": repr(evaluation)})
        named = re.sub(r"\W+", "-", trial.variant)
        folder = self.workdir / PLACE / "runs" / f"{named}-{trial.length:g}-{trial.seed}-{made_from[:12]}"
        path = folder / "result.json"
        if not path.exists():
            left = (
                f", {duration((self.total - self.done + 1) * statistics.mean(self.took))} left" if self.took else ""
            )
            say(f"compare: {self.done} of {self.total}{left}: {trial.shown}")
            began = time.monotonic()
            found = _train(run, evaluation, folder, place)
            self.took.append(time.monotonic() - began)
            found = found._replace(device=jax.devices()[0].device_kind, whole_seconds=self.took[-1])
            write_json(path, found._asdict())
            shutil.rmtree(folder / FOLDER / CHECKPOINTS, ignore_errors=True)  # what it came to is known
        self.all.append((trial, Result(**read_json(path))))
        return self.all[-1][1]

    def _place(self, run: Run) -> Path:
        """Where the tokens of a trial lie and, if it learns from stored targets, those that it asks for."""
        if not run.objective.targets.asked:
            return self.workdir
        if run.teach not in self.places:
            self.places[run.teach] = self._with_targets(run.teach)
        return self.places[run.teach]

    def _with_targets(self, config: TeachConfig) -> Path:
        """The workdir, if its stored targets are those that are asked for; else a folder in which they are made."""
        made = self.workdir / TARGETS / MANIFEST
        if made.exists() and read_json(made)["spec"]["teach"] == config.decides():
            require_same_teacher(config, self.workdir)
            return self.workdir
        place = self.workdir / PLACE / "taught" / fingerprint(config.decides())[:12]
        _link(TOKENS, self.workdir, place)
        teach(config, place)
        return place


def _link(names: Iterable[str], source: Path, folder: Path) -> None:
    """Makes folders of a workdir those of another below it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not (folder / name).exists():
            (folder / name).symlink_to(os.path.relpath(source / name, folder))


def _train(run: Run, evaluation: EvalConfig, folder: Path, place: Path) -> Result:
    _link((*TOKENS, *[TARGETS] * run.objective.targets.asked), place, folder)
    failed = ""
    try:
        train(run, folder, make_evaluate=lambda: quick_evaluation(evaluation, run, folder))
    except Diverged as error:
        failed = str(error)
        say(f"compare: {error}")
    return _read(folder, run, failed)


def _first(variant: VariantConfig) -> dict[str, Any]:
    """The first value of every tuned key."""
    return {key: values[0] for key, values in variant.tune}


def _read(folder: Path, run: Run, failed: str) -> Result:
    """A trial's result from what its run wrote."""
    rows = read_metrics(folder / FOLDER / "metrics.jsonl")
    curve = [(row["step"], row[MEASURE]) for row in rows if math.isfinite(row.get(MEASURE, math.nan))]
    trained = [row for row in rows if "tokens_per_second" in row]
    per_step = run.batch.rows * run.batch.row_length
    rates = sorted(row["tokens_per_second"] for row in trained[1:]) or [math.inf]
    if not curve or curve[-1][0] < run.train.steps:
        failed = failed or "no finite held-out loss at the end"
    return Result(
        math.inf if failed else curve[-1][1],
        trained[-1]["seconds"] if trained else 0.0,
        per_step / statistics.median(rates),
        _state_bytes(run),
        curve,
        max((row.get("memory_peak_bytes", 0) for row in rows), default=0),
        failed,
    )


def _state_bytes(run: Run) -> int:
    """Of parameters and optimiser."""
    state = abstract_state(run)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
