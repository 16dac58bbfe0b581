"""The export-data stage: curated documents as folders that Hugging Face `datasets` and TFDS load.

    workdir/export-data/parquet/                   a dataset of the Hub: README.md, data/train-00000-of-00001.parquet
    workdir/export-data/tfds/quintet_corpus/1.0.0/ ArrayRecord; made where the package tensorflow-datasets is

Columns are those of a document, all strings; `meta` is JSON and has the messages of conversations. The same documents
give the same bytes.
"""

import contextlib
import importlib.util
import io
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq

from core.files import Stage, atomic_write, read_json, read_stage
from core.progress import Progress, say
from data.config import DataConfig
from data.curate.engine import generations
from data.curate.recipe import build_recipe
from data.curated import Piece, pieces
from data.dataset_card import Size, write_card
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
    sizes = _write_parquet(stage.folder / PARQUET, pieces(folders))
    reports = [read_json(folder / "report.json") for folder in folders]
    write_card(stage.folder / PARQUET / "README.md", sizes, reports, list(build_recipe(config.recipe)))
    say(f"export-data: datasets.load_dataset({str(stage.folder / PARQUET)!r}) loads it")
    if TFDS in kinds:
        _prepare(folders, stage.folder / TFDS)
        say(f"export-data: tfds.data_source('quintet_corpus', data_dir={str(stage.folder / TFDS)!r}) loads it")
    else:
        say("export-data: nothing for TFDS, whose package is not here; `pip install -e .[tfds]` brings it")
    files = sorted(path for kind in kinds for path in (stage.folder / kind).rglob("*") if path.is_file())
    stage.finish(files, {split: size._asdict() for split, size in sizes.items()})
    return stage.folder


def _write_parquet(folder: Path, found: Mapping[str, list[Piece]]) -> dict[str, Size]:
    """Files by split, named as the Hub names them; and how large the splits are."""
    sizes = {split: Size(sum(piece.documents for piece in own), 0) for split, own in found.items()}
    bar = Progress("parquet", sum(size.documents for size in sizes.values()))
    for split, own in found.items():
        for number, piece in enumerate(own):
            path = folder / "data" / f"{split}-{number:05d}-of-{len(own):05d}.parquet"
            with atomic_write(path) as file, pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
                for table in piece.tables():
                    writer.write_table(table)
                    sizes[split] = Size(sizes[split].documents, sizes[split].bytes + table.nbytes)
                    bar.update(bar.done + table.num_rows)
    bar.finish(f"{bar.done:,} documents")
    return sizes


def _prepare(folders: list[Path], where: Path) -> None:
    from data.tfds_builder import QuintetCorpus  # imports TFDS

    # It says that it downloads, and makes a folder for that.
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory(prefix="quintet-") as nothing:
        QuintetCorpus(curated=folders, data_dir=where).download_and_prepare(download_dir=nothing)
