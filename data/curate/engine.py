"""Runs the recipe: partitions in parallel, then one merge in hash order that splits and writes the shards.

    workdir/curated/train-00000.parquet ...   documents in hash order of their id
    workdir/curated/heldout-00000.parquet     documents never trained on
    workdir/curated/dropped.jsonl             id, source, reason, size and step of every dropped document

A partition's result is written to `parts/` as soon as it is done, so that an interrupted run continues. Documents of
`data.added` go through the same recipe into folders of their own, `workdir/added-1/curated/` and so on, so that what
was curated before stays as it is.
"""

import collections
import contextlib
import dataclasses
import hashlib
import heapq
import itertools
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NamedTuple

from core.errors import UserError
from core.files import (
    Stage,
    Stale,
    atomic_write,
    hash_file,
    read_json,
    read_stage,
    require_spec,
)
from core.progress import say, track
from data.cluster import cluster_map
from data.config import DataConfig
from data.conversations import is_conversation
from data.curate.partition import curate_partition, order
from data.curate.plain import ExactDuplicates
from data.curate.recipe import build_recipe, recipe_spec
from data.document import Document, DocumentWriter, Dropped, id_hash, read_documents
from data.packages import versions
from data.sources import folder, python_chat, python_installation
from data.workers import process_map

VERSION = 2
FOLDER = "curated"
BUILT_IN = {"": python_installation, "python:chat": python_chat}  # what the data room brings, by its path


class Input(NamedTuple):
    """One place that documents come from."""

    name: str  # of the source; empty leaves it to the kind of input
    module: ModuleType
    root: Path


class Generation(NamedTuple):
    """Documents that come together: those of the beginning, or an entry of `data.added`."""

    number: int
    config: DataConfig
    folder: Path


def generations(config: DataConfig, workdir: Path) -> list[Generation]:
    """What is curated at the beginning, and each addition as a config of its own."""
    first = Generation(0, dataclasses.replace(config, added=()), workdir / FOLDER)
    return [first] + [
        Generation(number, dataclasses.replace(config, path="", sources=sources, added=()), folder / FOLDER)
        for number, (sources, folder) in enumerate(zip(config.added, added_folders(workdir, len(config.added))), 1)
    ]


def added_folders(workdir: Path, count: int) -> list[Path]:
    """Where the documents of each entry of `data.added` go."""
    return [workdir / f"added-{number}" for number in range(1, count + 1)]


def curate(config: DataConfig, workdir: Path, *, stale: Stale = "refuse") -> dict[str, Any]:
    """Makes `workdir/curated` and returns its summary: documents and bytes kept and dropped, by source."""
    known: list[Path] = []
    summaries = []
    for generation in generations(config, workdir):
        summaries.append(_curate(generation, known, stale))
        known += sorted(generation.folder.glob("*.parquet"))
    return summaries[0]


def _curate(generation: Generation, known: list[Path], stale: Stale) -> dict[str, Any]:
    """One generation; `known` are the shards of those before, whose texts are dropped as duplicates."""
    config, inputs = generation.config, _inputs(generation.config)
    found = {given.name: given.module.inputs(given.root) for given in inputs}
    spec = {**config_spec(config), "input": found if config.sources else found[""]}
    steps = build_recipe(config.recipe)
    spec |= _made_with(steps)
    if generation.number:
        spec["known"] = {str(path.relative_to(path.parents[1])): hash_file(path) for path in known}
    stage = Stage(generation.folder, spec, stale=stale)
    if stage.finished:
        say(f"curate: {stage.folder} is up to date")
        return stage.summary

    _allow_many_open_files()
    for step in steps.values():
        if hasattr(step, "prepare"):
            step.prepare()
    runs = _run_partitions(generation, inputs, stage.folder / "parts")
    dropped = stage.folder / "dropped.jsonl"
    with atomic_write(dropped, "w") as file:
        tally = Tally(file)
        for mark in sorted((stage.folder / "parts").glob("*.json")):
            tally.add_part(read_json(mark))
        shards = _write_splits(runs, known, generation, stage.folder, tally)
    summary = {**tally.summary(), "hashes": {path.name: hash_file(path) for path in shards}}
    stage.finish([*shards, dropped], summary)
    shutil.rmtree(stage.folder / "parts")
    say(
        f"curate: {summary['train']['documents']:,} documents to train on, {summary['heldout']['documents']:,} "
        f"held out, {sum(summary['dropped'].values()):,} dropped"
    )
    return summary


def _made_with(steps: dict[str, Any]) -> dict[str, Any]:
    """What decides beside a recipe's settings: the files that its steps read, and the packages that they rest on."""
    files = {key: found for name, step in steps.items() for key, found in _files(name, step).items()}
    return ({"files": files} if files else {}) | versions(steps.values())


def _files(name: str, step: Any) -> dict[str, str]:
    """Hashes of the files that a step reads, by its name and theirs; of several alike the later have a number."""
    found: dict[str, str] = {}
    for path in step.files() if hasattr(step, "files") else ():
        alike = (f"{name}: {path.name}{f' ({number})' if number else ''}" for number in itertools.count())
        found[next(key for key in alike if key not in found)] = hash_file(path)
    return found


def config_spec(config: DataConfig) -> dict[str, Any]:
    """What of the config and the code decides the curated documents; the input does too."""
    decides = {"path": config.path, "heldout_fraction": config.heldout_fraction, "shards": config.shards}
    if config.sources:
        decides["sources"] = config.sources
    return {"version": VERSION, "data": {**decides, "recipe": recipe_spec(config.recipe)}}


def require_curated(config: DataConfig, workdir: Path) -> None:
    """Refuses curated documents of another config, or made with other files than its steps would read now.

    The raw input need not be at hand any more, and those files neither.
    """
    for generation in generations(config, workdir):
        manifest = read_stage(generation.folder, "curate")
        require_spec(generation.folder, manifest, config_spec(generation.config))
        made_with = manifest["spec"].get("files", {})
        for name, step in build_recipe(generation.config.recipe).items():
            _require_same_files(generation.folder, name, step, made_with)


def _require_same_files(folder: Path, name: str, step: Any, made_with: dict[str, str]) -> None:
    """Refuses a step's files that are not those it was run with; on another machine they may be gone."""
    try:
        found = _files(name, step)
    except UserError as error:
        say(f"curate: {folder} is not compared with the files of its step {name}, which are not here ({error})")
        return
    for key in sorted(found):
        if found[key] != made_with.get(key):
            change = "has changed" if key in made_with else "is new"
            raise UserError(
                f"{folder} is stale: {key} {change} since it was made; `launch.py curate --rebuild` (same --config "
                "and --workdir) makes it anew"
            )
    gone = sorted(key for key in made_with if key.startswith(f"{name}: ") and key not in found)
    if gone:
        say(f"curate: {', '.join(gone)} of {folder} is gone and not compared")


class Tally:
    """Counts for the report: what came in, what was dropped for which reason, what stayed."""

    def __init__(self, dropped: IO[str]):
        """Every drop is written to `dropped`, a line of JSON each."""
        self.file = dropped
        self.sources: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
        self.splits = {"train": collections.Counter(), "heldout": collections.Counter()}
        self.dropped: collections.Counter = collections.Counter()
        self.conversations = 0

    def add_part(self, part: dict[str, Any]) -> None:
        """Adds what one partition dropped."""
        for entry in part["dropped"]:
            self.drop(Dropped(**entry))

    def drop(self, entry: Dropped) -> None:
        """Counts a dropped document."""
        self.file.write(json.dumps(vars(entry), ensure_ascii=False) + "\n")
        self.dropped[entry.reason] += 1
        self.sources[entry.source][f"dropped:{entry.reason}"] += 1

    def keep(self, document: Document, split: str) -> None:
        """Counts a document that stays."""
        size = len(document.text.encode())
        self.splits[split].update(documents=1, bytes=size)
        self.conversations += is_conversation(document)
        self.sources[document.source].update({f"{split}_documents": 1, f"{split}_bytes": size})

    def summary(self) -> dict[str, Any]:
        """Plain data."""
        return {
            **{name: {"documents": c["documents"], "bytes": c["bytes"]} for name, c in self.splits.items()},
            "sources": {name: dict(counter) for name, counter in sorted(self.sources.items())},
            "dropped": dict(self.dropped.most_common()),
            **({"conversations": self.conversations} if self.conversations else {}),
        }


def _inputs(config: DataConfig) -> list[Input]:
    return [
        Input(name, BUILT_IN.get(path, folder), Path() if path in BUILT_IN else Path(path).expanduser())
        for name, path in (config.sources or {"": config.path}).items()
    ]


def _allow_many_open_files() -> None:
    """The merge reads every part at once; many systems allow 1,024 files by default and far more on request."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS refuses what it calls unlimited; the default remains
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _run_partitions(generation: Generation, inputs: list[Input], where: Path) -> list[Path]:
    """Applies the per-document steps to every partition not done yet; returns all sorted runs of documents."""
    config, prefix = generation.config, f"added-{generation.number}/" if generation.number else ""
    partitions = [(given, partition) for given in inputs for partition in given.module.partitions(given.root)]
    marks = [where / f"{index:05d}.json" for index in range(len(partitions))]
    todo = [
        (_kind_of(given.module), given.root, partition, given.name, prefix, config.recipe, mark)
        for (given, partition), mark in zip(partitions, marks)
        if not _part_is_done(mark)
    ]
    if config.cluster:
        done = cluster_map(_run_partition, todo, config.cluster)
    else:
        done = process_map(_run_partition, todo, config.workers)
    for _ in track(done, "curate", len(todo)):
        pass
    return [where / name for mark in marks for name in read_json(mark)["runs"]]


def _kind_of(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def _part_is_done(mark: Path) -> bool:
    if not mark.exists():
        return False
    runs = ((mark.with_name(name), size) for name, size in read_json(mark)["runs"].items())
    return all(path.exists() and path.stat().st_size == size for path, size in runs)


def _run_partition(task: tuple) -> None:
    """One partition, in a worker."""
    kind, root, partition, name, prefix, recipe, mark = task
    source = {_kind_of(module): module for module in (folder, *BUILT_IN.values())}[kind]
    items = source.read(root, partition)
    if name:
        items = (dataclasses.replace(item, id=f"{prefix}{name}/{item.id}", source=name) for item in items)
    curate_partition(items, recipe, mark)


def _dropped(document: Document, reason: str, step: str) -> Dropped:
    return Dropped(document.id, document.source, reason, len(document.text.encode()), step)


def _kept(
    runs: list[Path], known: list[Path], config: DataConfig, drop: Callable[[Dropped], None]
) -> Iterator[Document]:
    """All documents in hash order of their id, a row group of each run in memory.

    Drops repeated ids and, where the recipe says so, repeated texts (16 bytes of memory a document), also of those
    in the `known` shards.
    """
    deduplicate = any(isinstance(step, ExactDuplicates) for step in build_recipe(config.recipe).values())
    before = itertools.chain.from_iterable(map(read_documents, known if deduplicate else ()))
    texts = {_digest(document) for document in before}
    last_id = None
    for document in heapq.merge(*map(read_documents, runs), key=order):
        digest = _digest(document)
        if document.id == last_id:
            drop(_dropped(document, "duplicate_id", "ids"))
        elif deduplicate and digest in texts:
            drop(_dropped(document, "exact_duplicate", "exact_duplicates"))
        else:
            texts.add(digest)
            last_id = document.id
            yield document


def _digest(document: Document) -> bytes:
    return hashlib.blake2b(document.text.encode(), digest_size=16).digest()


def _write_splits(
    runs: list[Path], known: list[Path], generation: Generation, where: Path, tally: Tally
) -> list[Path]:
    """Held out by hash of id, the rest into shards by ranges of the order hash. Returns the paths."""
    config = generation.config
    heldout = where / "heldout-00000.parquet"
    shards = [where / f"train-{index:05d}.parquet" for index in range(config.shards)]
    bound = _heldout_bound(runs, generation)
    with contextlib.ExitStack() as stack:
        writers = {path: stack.enter_context(DocumentWriter(path)) for path in [heldout, *shards]}
        for document in _kept(runs, known, config, tally.drop):
            if id_hash(document.id, "heldout") < bound:
                split, path = "heldout", heldout
            else:
                split, path = "train", shards[id_hash(document.id, "order") * config.shards >> 64]
            writers[path].add(document)
            tally.keep(document, split)
        needed = ("train",) if generation.number else ("train", "heldout")
        if not all(tally.splits[split]["documents"] for split in needed):
            raise UserError(_nothing_left(config, tally))
    return [heldout, *shards]


def _heldout_bound(runs: list[Path], generation: Generation) -> int:
    """Documents whose hash lies below are held out: the fraction asked, and of the first generation never none."""
    bound = round(generation.config.heldout_fraction * 2**64)
    if generation.number:
        return bound
    least = 2**64
    for document in _kept(runs, [], generation.config, lambda _: None):
        least = min(least, id_hash(document.id, "heldout"))
        if least < bound:  # almost always among the first few
            return bound
    return least + 1


def _nothing_left(config: DataConfig, tally: Tally) -> str:
    place = ", ".join(config.sources.values()) or config.path or "the Python installation"
    summary = tally.summary()
    reasons = ", ".join(f"{reason} {count}" for reason, count in summary["dropped"].items())
    return (
        f"{place} leaves {summary['train']['documents']} documents to train on and "
        f"{summary['heldout']['documents']} held out (dropped: {reasons or 'none'}); both need one: give more "
        "text, or change data.recipe or data.heldout_fraction"
    )
