"""The export-data stage: curated documents as folders that Hugging Face `datasets` and TFDS load.

    workdir/export-data/parquet/                        a dataset repository: README.md, data/train-00000-of-00002.parquet
    workdir/export-data/tfds/quintet_corpus/1.0.0/      ArrayRecord; made where the package tensorflow-datasets is

Columns are those of a document, all strings; `meta` is JSON and has the messages of conversations. The same documents
give the same bytes.
"""

import contextlib
import importlib.util
import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from core.files import Stage, atomic_write, read_json, read_stage
from core.progress import Progress, say
from data.config import DataConfig
from data.curate.engine import generations
from data.curate.recipe import build_recipe
from data.curated import Piece, pieces
from data.dataset_card import write_card
from data.document import SCHEMA

VERSION = 1
FOLDER = "export-data"
PARQUET, TFDS = "parquet", "tfds"


def export_data(config: DataConfig, workdir: Path) -> Path:
    """Makes `workdir/export-data` and returns it."""
    folders = [generation.folder for generation in generations(config, workdir)]
    hashes = [read_stage(folder, "curate")["summary"]["hashes"] for folder in folders]
    kinds = [PARQUET, *([TFDS] if importlib.util.find_spec("tensorflow_datasets") else [])]
    stage = Stage(workdir / FOLDER, {"version": VERSION, "curated": hashes, "kinds": kinds}, stale="replace")
    if stage.finished:
        say(f"export-data: {stage.folder} is up to date")
        return stage.folder
    for kind in (PARQUET, TFDS):  # what a run that was stopped, or another corpus, left
        shutil.rmtree(stage.folder / kind, ignore_errors=True)
    found = pieces(folders)
    summary = {split: sum(piece.documents for piece in own) for split, own in found.items()}
    _write_parquet(stage.folder / PARQUET, found, sum(summary.values()))
    reports = [read_json(folder / "report.json") for folder in folders]
    write_card(stage.folder / PARQUET / "README.md", summary, reports, list(build_recipe(config.recipe)))
    say(f"export-data: datasets.load_dataset({str(stage.folder / PARQUET)!r}) loads it")
    if TFDS in kinds:
        _prepare(folders, stage.folder / TFDS)
        say(f"export-data: tfds.data_source('quintet_corpus', data_dir={str(stage.folder / TFDS)!r}) loads it")
    else:
        say("export-data: nothing for TFDS, whose package is not here; `pip install -e .[tfds]` brings it")
    files = sorted(path for kind in kinds for path in (stage.folder / kind).rglob("*") if path.is_file())
    stage.finish(files, summary)
    return stage.folder


def _write_parquet(folder: Path, found: Mapping[str, list[Piece]], documents: int) -> None:
    """Files by split, named as the Hub names them."""
    bar = Progress("parquet", documents)
    for split, own in found.items():
        for number, piece in enumerate(own):
            path = folder / "data" / f"{split}-{number:05d}-of-{len(own):05d}.parquet"
            with atomic_write(path) as file, pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
                for table in piece.tables():
                    writer.write_table(table)
                    bar.update(bar.done + table.num_rows)
    bar.finish(f"{documents:,} documents")


def _prepare(folders: list[Path], where: Path) -> None:
    from data.tfds_builder import QuintetCorpus  # imports TFDS

    with contextlib.redirect_stdout(io.StringIO()):  # it says that it downloads
        QuintetCorpus(curated=folders, data_dir=where).download_and_prepare()
