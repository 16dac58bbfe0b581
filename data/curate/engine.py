"""Runs the recipe: partitions in parallel, then one merge in hash order that splits and writes the shards.

    workdir/curated/train-00000.parquet ...   documents in hash order of their id
    workdir/curated/heldout-00000.parquet     documents never trained on
    workdir/curated/signatures/               by which near-duplicates are found; where the recipe has minhash
    workdir/curated/dropped.jsonl             id, source, reason, size and step of every dropped document
    workdir/curated/report.html               what came of it, to look at; drawn from report.json and samples.json

A partition's result is written to `parts/` as soon as it is done, so that an interrupted run continues. Documents of
`data.added` go through the same recipe into folders of their own, `workdir/added-1/curated/` and so on, so that what
was curated before stays as it is.
"""

import dataclasses
import itertools
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

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
from core.progress import Progress, count, say
from data.cluster import cluster_map
from data.config import DataConfig
from data.curate.merge import Merge, find_near_duplicates, write_splits
from data.curate.minhash import MinHash
from data.curate.partition import SIGNATURES, curate_partition, drops_of, read_drops, signatures_of
from data.curate.recipe import at, build_recipe, find, own_module, recipe_spec
from data.curate.report import PAGE, draw, write_report
from data.curate.runs import gather
from data.curate.tally import Tally
from data.packages import versions
from data.sources import folder, python_chat, python_installation, remote, tfds
from data.workers import process_map

VERSION = 3
FOLDER = "curated"
BUILT_IN = {"": python_installation, "python:chat": python_chat}  # what the data room brings, by its path


class Input(NamedTuple):
    """One place that documents come from."""

    name: str  # of the source; empty leaves it to the kind of input
    module: ModuleType
    root: Path | str  # an address, or a list of such, is no path, nor is a dataset's name
    options: dict[str, Any]  # for what reads it


class Generation(NamedTuple):
    """Documents that come together: those of the beginning, or an entry of `data.added`."""

    number: int
    config: DataConfig
    recipe: tuple[dict[str, Any], ...]  # the config's, as it runs in this workdir
    folder: Path


def generations(config: DataConfig, workdir: Path) -> list[Generation]:
    """What is curated at the beginning, and each addition as a config of its own."""
    recipe = at(workdir, config.recipe)
    first = Generation(0, dataclasses.replace(config, added=()), recipe, workdir / FOLDER)
    return [first] + [
        Generation(number, dataclasses.replace(config, path="", sources=sources, added=()), recipe, folder / FOLDER)
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
    steps = build_recipe(generation.recipe)
    spec |= _made_with(steps)
    if generation.number:
        spec["known"] = {str(path.relative_to(path.parents[1])): hash_file(path) for path in known}
    stage = Stage(generation.folder, spec, stale=stale)
    if stage.finished:
        say(f"curate: {stage.folder} is up to date")
        if not (stage.folder / PAGE).exists():
            say(f"curate: {draw(stage.folder)} is drawn again")
        return stage.summary

    for step in steps.values():
        if hasattr(step, "prepare"):
            step.prepare()
    parts = stage.folder / "parts"
    marks = _run_partitions(generation, inputs, parts)
    runs = [parts / name for mark in marks for name in read_json(mark)["runs"]]
    signatures, near = [], None
    if step := find(steps, MinHash):
        signatures = list(map(signatures_of, marks))
        earlier = sorted(path for shard in known for path in (shard.parent / SIGNATURES).glob("*.minhash"))
        near = find_near_duplicates(config, step, signatures, list(dict.fromkeys(earlier)), parts)
    dropped = stage.folder / "dropped.jsonl"
    with atomic_write(dropped, "w") as file:
        tally = Tally(file)
        for mark in marks:
            tally.add_part(read_json(mark), read_drops(drops_of(mark)))
        runs = gather(runs, parts / "gathered", config.workers)
        merge = Merge(config, runs, known, near, generation.number > 0, parts)
        shards = write_splits(merge, stage.folder, tally)
    summary = {**tally.summary(), "hashes": {path.name: hash_file(path) for path in shards}}
    report = write_report(stage.folder, tally, config)
    stage.finish([*shards, dropped, *report, *signatures], summary)
    shutil.rmtree(parts)
    say(
        f"curate: {summary['train']['documents']:,} documents to train on, {summary['heldout']['documents']:,} "
        f"held out, {sum(summary['dropped'].values()):,} dropped; see {stage.folder / PAGE}"
    )
    return summary


def _made_with(steps: dict[str, Any]) -> dict[str, Any]:
    """What decides beside a recipe's settings: the files that its steps read, and the packages that they rest on."""
    files = {key: found for name, step in steps.items() for key, found in _files(name, step).items()}
    return ({"files": files} if files else {}) | versions(steps.values())


def _files(name: str, step: Any) -> dict[str, str]:
    """Hashes of the files that a step reads, and of a user's own module, by its name and theirs.

    Of several alike the later have a number.
    """
    found: dict[str, str] = {}
    own = [path] if (path := own_module(step)) else []
    for path in [*own, *(step.files() if hasattr(step, "files") else ())]:
        alike = (f"{name}: {path.name}{f' ({number})' if number else ''}" for number in itertools.count())
        found[next(key for key in alike if key not in found)] = hash_file(path)
    return found


def config_spec(config: DataConfig) -> dict[str, Any]:
    """What of the config and the code decides the curated documents; the input does too."""
    decides = {"path": config.path, "heldout_fraction": config.heldout_fraction, "shards": config.shards}
    if config.sources:
        decides["sources"] = config.sources
    if config.columns:
        decides["columns"] = config.columns
    return {"version": VERSION, "data": {**decides, "recipe": recipe_spec(config.recipe)}}


def require_curated(config: DataConfig, workdir: Path) -> None:
    """Refuses curated documents of another config, or made with other files than its steps would read now.

    The raw input need not be at hand any more, and those files neither.
    """
    for generation in generations(config, workdir):
        manifest = read_stage(generation.folder, "curate")
        require_spec(generation.folder, manifest, config_spec(generation.config))
        made_with = manifest["spec"].get("files", {})
        for name, step in build_recipe(generation.recipe).items():
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


def _inputs(config: DataConfig) -> list[Input]:
    return [_input(name, path, config) for name, path in (config.sources or {"": config.path}).items()]


def _input(name: str, path: str, config: DataConfig) -> Input:
    return Input(name, *source_of(path), {} if path in BUILT_IN else {"columns": config.columns})


def source_of(path: str) -> tuple[ModuleType, Path | str]:
    """What reads a path of a config, and what it is told to read."""
    if path in BUILT_IN:
        return BUILT_IN[path], Path()
    if tfds.is_tfds(path) or remote.is_remote(path):
        return tfds if tfds.is_tfds(path) else remote, path
    return folder, Path(path).expanduser()


def _run_partitions(generation: Generation, inputs: list[Input], where: Path) -> list[Path]:
    """Applies the per-document steps to every partition not done yet; returns the marks of all."""
    config, prefix = generation.config, f"added-{generation.number}/" if generation.number else ""
    partitions = [(given, partition) for given in inputs for partition in given.module.partitions(given.root)]
    marks = [where / f"{index:05d}.json" for index in range(len(partitions))]
    near = find(build_recipe(generation.recipe), MinHash) is not None
    todo = [
        (_kind_of(given.module), given.root, partition, given.options, given.name, prefix, generation.recipe, mark)
        for (given, partition), mark in zip(partitions, marks)
        if not _part_is_done(mark, near)
    ]
    _show_progress(todo, config)
    return marks


def _show_progress(todo: list[tuple], config: DataConfig) -> None:
    """Runs the partitions under a bar that counts them, with documents as they are done."""
    bar = Progress("curate", len(todo))
    documents = 0

    def watch(number: int) -> None:
        nonlocal documents
        documents = number
        bar.update(bar.done, f"{documents:,} documents, {count(bar.rate(documents))}/s")

    if config.cluster:  # whose workers cannot tell on their way
        done = cluster_map(_run_partition, todo, config.cluster)
        done = (watch(documents + read) for read in done)
    else:
        done = process_map(_run_partition, todo, config.workers, watch)
    for _ in bar.over(done):
        pass
    bar.finish(f"{documents:,} documents")


def _kind_of(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def _part_is_done(mark: Path, near: bool) -> bool:
    if near and not signatures_of(mark).exists():
        return False
    part = read_json(mark) if mark.exists() else {}
    if "tally" not in part or not isinstance(part["dropped"], int):  # of an older version
        return False
    files = {drops_of(mark).name: part["dropped"], **part["runs"]}
    paths = ((mark.with_name(name), size) for name, size in files.items())
    return all(path.exists() and path.stat().st_size == size for path, size in paths)


def _run_partition(task: tuple) -> int:
    """One partition, in a worker; how many documents it has read."""
    kind, root, partition, options, name, prefix, recipe, mark = task
    source = {_kind_of(module): module for module in (folder, remote, tfds, *BUILT_IN.values())}[kind]
    items = source.read(root, partition, **options)
    if name:
        items = (dataclasses.replace(item, id=f"{prefix}{name}/{item.id}", source=name) for item in items)
    return curate_partition(items, recipe, mark)
