"""Sorted runs of documents merged in groups until few are left, so that the last merge opens few files at once."""

import heapq
from collections.abc import Iterator
from pathlib import Path

from core.progress import track
from data.curate.partition import order
from data.document import Document, DocumentWriter, read_documents
from data.workers import process_map

FAN_IN = 64  # runs that are read together; each holds a row group, about a megabyte


def merged(runs: list[Path]) -> Iterator[Document]:
    """The documents of sorted runs in their order."""
    return heapq.merge(*map(read_documents, runs), key=order)


def gather(runs: list[Path], where: Path, workers: int) -> list[Path]:
    """At most `FAN_IN` runs with the documents of all; those that are made lie in `where`."""
    level = 0
    while len(runs) > FAN_IN:
        groups = [runs[at : at + FAN_IN] for at in range(0, len(runs), FAN_IN)]
        paths = [where / f"{level}-{number}.parquet" for number in range(len(groups))]
        for _ in track(process_map(_write, list(zip(groups, paths)), workers), "gather", len(groups)):
            pass
        runs, level = paths, level + 1
    return runs


def _write(task: tuple[list[Path], Path]) -> None:
    runs, path = task
    with DocumentWriter(path) as writer:
        for document in merged(runs):
            writer.add(document)
