"""Runs the recipe: partitions in parallel, then one merge in hash order that splits and writes the shards.

    workdir/curated/train-00000.parquet ...   documents in hash order of their id
    workdir/curated/heldout-00000.parquet     documents never trained on
    workdir/curated/dropped.jsonl             id, source, reason and size of every dropped document

A partition's result is written to `parts/` as soon as it is done, so that an interrupted run continues.
"""

import collections
import contextlib
import dataclasses
import hashlib
import heapq
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from core.errors import UserError
from core.files import Stage, Stale, atomic_write, hash_file, read_json, write_json
from core.progress import say, track
from data.config import DataConfig
from data.curate.steps import ExactDuplicates, build_recipe, recipe_spec
from data.document import Document, DocumentWriter, Dropped, id_hash, read_documents
from data.sources import folder, python_installation
from data.workers import process_map

VERSION = 1
FOLDER = "curated"


def curate(config: DataConfig, workdir: Path, *, stale: Stale = "refuse") -> dict[str, Any]:
    """Makes `workdir/curated` and returns its summary: documents and bytes kept and dropped, by source."""
    source, root = _source(config)
    decides = {"path": config.path, "heldout_fraction": config.heldout_fraction, "shards": config.shards}
    spec = {"version": VERSION, "data": {**decides, "recipe": recipe_spec(config.recipe)}}
    stage = Stage(workdir / FOLDER, {**spec, "input": source.inputs(root)}, stale=stale)
    if stage.finished:
        say(f"curate: {stage.folder} is up to date")
        return stage.summary

    parts = _run_partitions(config, source, root, stage.folder)
    tally, least = Tally(), 2**64 - 1
    bound = round(config.heldout_fraction * 2**64)
    for part in parts:
        counts = read_json(part.with_suffix(".json"))
        tally.add_part(counts)
        least = min(least, counts["least_chance"])
    # A corpus of a few documents still holds one out: the one with the smallest hash.
    kept = _keep(_merge(parts), build_recipe(config.recipe), tally)
    shards = _write_splits(kept, config, max(bound, least + 1), stage.folder, tally)
    dropped = stage.folder / "dropped.jsonl"
    with atomic_write(dropped, "w") as file:
        file.writelines(json.dumps(vars(entry), ensure_ascii=False) + "\n" for entry in tally.dropped)
    summary = {**tally.summary(), "hashes": {path.name: hash_file(path) for path in shards}}
    stage.finish([*shards, dropped], summary)
    shutil.rmtree(stage.folder / "parts")
    say(
        f"curate: {summary['train']['documents']:,} documents to train on, {summary['heldout']['documents']:,} "
        f"held out, {len(tally.dropped):,} dropped"
    )
    return summary


@dataclasses.dataclass
class Tally:
    """Counts for the report: what came in, what was dropped for which reason, what stayed."""

    sources: dict[str, collections.Counter] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(collections.Counter)
    )
    splits: dict[str, collections.Counter] = dataclasses.field(
        default_factory=lambda: {"train": collections.Counter(), "heldout": collections.Counter()}
    )
    dropped: list[Dropped] = dataclasses.field(default_factory=list)

    def add_part(self, counts: dict[str, Any]) -> None:
        """Adds what one partition dropped."""
        for entry in counts["dropped"]:
            self.drop(Dropped(**entry))

    def drop(self, entry: Dropped) -> None:
        """Counts a dropped document."""
        self.dropped.append(entry)
        self.sources[entry.source][f"dropped:{entry.reason}"] += 1

    def keep(self, document: Document, split: str) -> None:
        """Counts a document that stays."""
        size = len(document.text.encode())
        self.splits[split].update(documents=1, bytes=size)
        self.sources[document.source].update({f"{split}_documents": 1, f"{split}_bytes": size})

    def summary(self) -> dict[str, Any]:
        """Plain data, with the drops added up by reason."""
        reasons = collections.Counter(entry.reason for entry in self.dropped)
        return {
            **{name: {"documents": c["documents"], "bytes": c["bytes"]} for name, c in self.splits.items()},
            "sources": {name: dict(counter) for name, counter in sorted(self.sources.items())},
            "dropped": dict(reasons.most_common()),
        }


def _source(config: DataConfig) -> tuple[ModuleType, Path]:
    if not config.path:
        return python_installation, Path()
    return folder, Path(config.path).expanduser()


def _run_partitions(config: DataConfig, source: ModuleType, root: Path, where: Path) -> list[Path]:
    """Applies the per-document steps to every partition not done yet; returns the parts in partition order."""
    partitions = source.partitions(root)
    parts = [where / "parts" / f"{index:05d}.parquet" for index in range(len(partitions))]
    todo = [
        (source.__name__.rpartition(".")[2], root, partition, config.recipe, part)
        for partition, part in zip(partitions, parts)
        if not part.with_suffix(".json").exists()
    ]
    for _ in track(process_map(_run_partition, todo, config.workers), "curate", len(todo)):
        pass
    return parts


def _run_partition(task: tuple) -> None:
    """One partition: its documents through the steps, sorted by hash of id; the .json is the mark of done."""
    source_name, root, partition, recipe, part = task
    source = {"folder": folder, "python_installation": python_installation}[source_name]
    steps = [step for step in build_recipe(recipe) if not isinstance(step, ExactDuplicates)]
    kept, dropped = [], []
    for item in source.read(root, partition):
        if isinstance(item, Dropped):
            dropped.append(item)
        elif reason := next((reason for step in steps if (reason := step(item.text))), None):
            dropped.append(_dropped(item, reason))
        else:
            kept.append(item)
    with DocumentWriter(part) as writer:
        for document in sorted(kept, key=_order):
            writer.add(document)
    chances = (id_hash(document.id, "heldout") for document in kept)
    counts = {"dropped": [vars(entry) for entry in dropped], "least_chance": min(chances, default=2**64 - 1)}
    write_json(part.with_suffix(".json"), counts)


def _order(document: Document) -> tuple[int, str]:
    return id_hash(document.id, "order"), document.id


def _dropped(document: Document, reason: str) -> Dropped:
    return Dropped(document.id, document.source, reason, len(document.text.encode()))


def _merge(parts: list[Path]) -> Iterator[Document]:
    """All documents in hash order of their id, a row group of each part in memory."""
    return heapq.merge(*(read_documents(part) for part in parts), key=_order)


def _keep(documents: Iterable[Document], steps: list[Any], tally: Tally) -> Iterator[Document]:
    """Drops repeated ids and, where the recipe says so, repeated texts (16 bytes of memory a document)."""
    deduplicate = any(isinstance(step, ExactDuplicates) for step in steps)
    texts: set[bytes] = set()
    last_id = None
    for document in documents:
        digest = hashlib.blake2b(document.text.encode(), digest_size=16).digest()
        if document.id == last_id:
            tally.drop(_dropped(document, "duplicate_id"))
        elif deduplicate and digest in texts:
            tally.drop(_dropped(document, "exact_duplicate"))
        else:
            texts.add(digest)
            last_id = document.id
            yield document


def _write_splits(documents: Iterable[Document], config: DataConfig, bound: int, where: Path, tally: Tally):
    """Held out by hash of id, the rest into shards by ranges of the order hash. Returns the paths."""
    heldout = where / "heldout-00000.parquet"
    shards = [where / f"train-{index:05d}.parquet" for index in range(config.shards)]
    with contextlib.ExitStack() as stack:
        writers = {path: stack.enter_context(DocumentWriter(path)) for path in [heldout, *shards]}
        for document in documents:
            if id_hash(document.id, "heldout") < bound:
                split, path = "heldout", heldout
            else:
                split, path = "train", shards[id_hash(document.id, "order") * config.shards >> 64]
            writers[path].add(document)
            tally.keep(document, split)
        if not all(counter["documents"] for counter in tally.splits.values()):
            raise UserError(_nothing_left(config, tally))
    return [heldout, *shards]


def _nothing_left(config: DataConfig, tally: Tally) -> str:
    place = config.path or "the Python installation"
    summary = tally.summary()
    reasons = ", ".join(f"{reason} {count}" for reason, count in summary["dropped"].items())
    return (
        f"{place} leaves {summary['train']['documents']} documents to train on and "
        f"{summary['heldout']['documents']} held out (dropped: {reasons or 'none'}); both need one: give more "
        "text, or change data.recipe or data.heldout_fraction"
    )
