"""Curation on a Ray cluster of two nodes on this machine: the bytes of processes, also when a node dies."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from typing import ClassVar

import pytest

from core.errors import UserError
from data.config import DataConfig
from data.curate.engine import curate
from data.curate.step import TextRule
from experiments.data.fineweb import RECIPE as FINEWEB
from lab import ROOT, make_corpus, real

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow
SOURCES = 8


@dataclasses.dataclass(frozen=True)
class Slowly(TextRule):
    """So that there is time to kill a node."""

    version: ClassVar[int] = 1
    seconds: float = 0.1
    odd: bool = False

    def reason(self, text):
        time.sleep(self.seconds)
        if text.startswith("stop"):
            raise UserError("this text is refused")
        return "odd" if self.odd and len(text) % 2 else None


@pytest.fixture(autouse=True)
def step(monkeypatch):
    """Makes this module's step one that a recipe can name."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "data" / "curate"))


@pytest.fixture
def nodes(monkeypatch):
    from ray.cluster_utils import Cluster

    folders = [ROOT, ROOT / "tests", ROOT / "tests" / "data" / "curate"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    yield cluster, second
    ray.shutdown()
    cluster.shutdown()


def config(folder, **changed):
    """Several sources, so that there are as many partitions."""
    for number in range(SOURCES):
        if not (folder / f"s{number}").exists():
            make_corpus(folder / f"s{number}", seed=number)
    sources = {f"s{number}": str(folder / f"s{number}") for number in range(SOURCES)}
    recipe = ({"step": "cluster_test:Slowly", "odd": True}, {"step": "exact_duplicates"})
    return DataConfig(sources=sources, recipe=recipe, shards=2, workers=2, **changed)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_a_node_that_dies_changes_no_byte(nodes, tmp_path):
    cluster, second = nodes
    curate(config(tmp_path / "text"), tmp_path / "here")
    parts, killed = tmp_path / "there" / "curated" / "parts", []

    def kill():
        while not list(parts.glob("*.json")):
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)
        killed.append(len(list(parts.glob("*.json"))))

    killer = threading.Thread(target=kill)
    killer.start()
    curate(config(tmp_path / "text", cluster=cluster.address), tmp_path / "there")
    killer.join()
    assert killed[0] < SOURCES  # while it ran
    assert contents(tmp_path / "there" / "curated") == contents(tmp_path / "here" / "curated")


def test_fineweb_is_the_same_as_on_one_machine(nodes, tmp_path):
    """Its recipe on real pages; the lists of addresses are those of datatrove, and left out where it is not."""
    has_lists = importlib.util.find_spec("datatrove") is not None
    recipe = tuple(one for one in FINEWEB if has_lists or one["step"] != "url_filter")
    own = {"sources": {"web": str(real("warc")), "gold": str(real("html_gold"))}, "recipe": recipe, "workers": 2}
    program = f"""
        from pathlib import Path
        from data.config import DataConfig
        from data.curate.engine import curate
        curate(DataConfig(**{own!r}), Path("here"))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]  # Daft runs in one way in a process
    subprocess.run(command, cwd=tmp_path, timeout=300, check=True)
    curate(DataConfig(cluster=nodes[0].address, **own), tmp_path / "there")
    here, there = (contents(tmp_path / name / "curated") for name in ("here", "there"))
    assert here.keys() == there.keys()
    assert [name for name in here if here[name] != there[name]] == []
    summary = json.loads(here["manifest.json"])["summary"]
    assert summary["train"]["documents"] >= 5  # the pages are mostly no prose
    assert len(summary["dropped"]) > 5


def test_relative_paths_are_those_of_the_program(nodes, tmp_path):
    """Ray's workers are in the folder in which Ray was started, the program in another."""
    recipe = ({"step": "length", "min_chars": 20}, {"step": "minhash", "method": "fast"})
    sources = {f"s{number}": f"text/s{number}" for number in range(SOURCES)}
    given = {"sources": sources, "recipe": recipe, "shards": 2}
    program = f"""
        from pathlib import Path
        from data.config import DataConfig
        from data.curate.engine import curate
        curate(DataConfig(cluster={nodes[0].address!r}, **{given!r}), Path("there"))
    """
    curate(dataclasses.replace(config(tmp_path / "text"), recipe=recipe), tmp_path / "here")
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    files = [contents(tmp_path / name / "curated") for name in ("here", "there")]
    assert files[0].keys() == files[1].keys()
    assert [name for name in files[0] if files[0][name] != files[1][name]] == ["manifest.json"]  # it has the paths


def test_what_a_task_refuses_is_one_line(nodes, tmp_path):
    own = config(tmp_path / "text", cluster=nodes[0].address)
    (tmp_path / "text" / "s3" / "005.txt").write_text("stop")
    with pytest.raises(UserError, match=r"^this text is refused$"):
        curate(own, tmp_path / "there")


def test_a_cluster_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    with pytest.raises(UserError, match="no Ray cluster answers"):
        curate(config(tmp_path / "text", cluster="127.0.0.1:1"), tmp_path / "there")
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"  # Ray tells its makers of its use unless it is asked not to
