"""Curation that is killed at any instant: the same command goes on, to the bytes of an unbroken run."""

import json
import os
import random
import signal
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
MOST_FILES = 60  # of some 80 that a run makes
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


def files_below(folder):
    return {os.path.join(place, name) for place, _, names in os.walk(folder) for name in names}


def wait_for_files(process, folder, count):
    """Until the process has made so many, some of them for a moment only, or has ended."""
    before, seen = files_below(folder), set()
    while len(seen) < count and process.poll() is None:
        seen |= files_below(folder) - before
        time.sleep(0.001)


def test_a_curation_killed_again_and_again_gives_the_same_bytes(tmp_path):
    write_sources(tmp_path / "in")
    assert start(tmp_path, tmp_path / "whole", 1).wait() == 0
    whole = contents(tmp_path / "whole" / "curated")
    assert {Path(name).suffix for name in whole} == {".parquet", ".jsonl", ".json", ".html", ".minhash"}
    chance, kills, finished = random.Random(0), 0, 0
    while kills < KILLS:
        workdir = tmp_path / f"killed-{finished}"
        process = start(tmp_path, workdir, 1 + kills % 2)
        wait_for_files(process, workdir, chance.randint(1, MOST_FILES))
        time.sleep(chance.choice((0, 0, 0.05)))
        process.kill()
        if process.wait() == 0:
            assert contents(workdir / "curated") == whole
            finished += 1
        else:
            assert process.returncode == -signal.SIGKILL
            kills += 1
    assert start(tmp_path, workdir, 2).wait() == 0
    assert contents(workdir / "curated") == whole
