"""Curation that is killed at any instant: the same command goes on, to the bytes of an unbroken run."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from curate_lab import WORDS
from lab import ROOT

pytest.importorskip("daft")
pytestmark = pytest.mark.slow
KILLS, SOURCES = 12, 6
RECIPE = (
    {"step": "length", "min_chars": 20},
    {"step": "letters"},
    {"step": "minhash", "method": "fast"},
    {"step": "exact_duplicates"},
)
PROGRAM = """
import json, sys
from pathlib import Path
from data.config import DataConfig
from data.curate.engine import curate
if __name__ == "__main__":
    folder, workdir, recipe, workers = sys.argv[1:]
    sources = {path.name: str(path) for path in sorted(Path(folder).iterdir())}
    given = {"sources": sources, "recipe": tuple(json.loads(recipe)), "shards": 2, "heldout_fraction": 0.2}
    curate(DataConfig(**given, workers=int(workers)), Path(workdir))
"""


def write_sources(folder):
    """Texts of which every fifth is nearly another's and every seventh is another's, and one that is too short."""
    for source in range(SOURCES):
        chance, rows = random.Random(source % 3), []
        for number in range(300):
            words = chance.choices(WORDS, k=80)
            if number % 5 == 0:
                words[source] = "changed"
            rows.append({"id": f"{number}", "text": " ".join(words) if number else "short"})
            if number % 7 == 0:
                rows.append({"id": f"{number} again", "text": rows[-1]["text"]})
        path = folder / f"s{source}" / "a.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(map(json.dumps, rows)))


def start(folder, workdir, workers):
    (folder / "program.py").write_text(PROGRAM)
    given = [str(folder / "in"), str(workdir), json.dumps(RECIPE), str(workers)]
    command = [sys.executable, str(folder / "program.py"), *given]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_curation_killed_again_and_again_gives_the_same_bytes(tmp_path):
    write_sources(tmp_path / "in")
    began = time.monotonic()
    assert start(tmp_path, tmp_path / "whole", 1).wait() == 0
    most, chance, finished = time.monotonic() - began, random.Random(0), 0
    whole = contents(tmp_path / "whole" / "curated")
    assert {Path(name).suffix for name in whole} == {".parquet", ".jsonl", ".json", ".html", ".minhash"}
    for kill in range(KILLS):
        process = start(tmp_path, tmp_path / f"killed-{finished}", 1 + kill % 2)
        time.sleep(chance.uniform(0.3, 1.0) * most)  # before, nothing is imported
        process.kill()
        if process.wait() == 0:  # already
            assert contents(tmp_path / f"killed-{finished}" / "curated") == whole
            finished += 1
    assert start(tmp_path, tmp_path / f"killed-{finished}", 2).wait() == 0
    assert contents(tmp_path / f"killed-{finished}" / "curated") == whole
