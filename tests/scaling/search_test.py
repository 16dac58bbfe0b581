"""`plan --search`: which ways are tried, which are compiled, and what is told of them."""

import html
import importlib.util
import re

import pytest

import launch
from plans_lab import plan
from scaling import search_run
from scaling.chips import parse_topology
from scaling.search import Way, candidates, fitting, nearest, rank

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="no libtpu wheel for this platform: the TPU compiler is missing",
)


def test_the_search_prefers_what_fits(config, tmp_path, capsys):
    code, found = plan(config, tmp_path, "--topology=h100:8", "--search", "--config.batch.rows=65536")
    assert code == 0
    ways = found["search"]["ways"]
    assert ways[0]["best"]
    assert all(one["why"] for one in ways[1:])
    assert found["search"]["fit"] < found["search"]["tried"]
    assert any("does not fit" in one["why"] for one in ways)
    quicker = [one for one in ways[1:] if one["seconds"] < ways[0]["seconds"] - 1e-3]
    assert all("does not fit" in one["why"] for one in quicker)
    said = capsys.readouterr().out
    assert f"best: {found['search']['flags']}" in said
    assert said.index("BEST") < said.index("Plan of small")


@needs_libtpu
@pytest.mark.slow
def test_the_search_compiles_the_best_and_not_twice(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(search_run, "COMPILED", 2)
    flags = ("--topology=v5e:2x2", "--search")
    _, first = plan(config, tmp_path, *flags)
    assert "2 of 2" in capsys.readouterr().err
    ways = first["search"]["ways"]
    assert [one["source"] for one in ways[:3]] == ["compiled", "compiled", "estimate"]
    assert ways[0]["seconds"] == first["time"]["total"] <= ways[1]["seconds"]
    _, second = plan(config, tmp_path, *flags)
    assert capsys.readouterr().err.count("compiled already") == 2
    assert second["search"] == first["search"]


class Compiler:
    """In the place of compiling: says that all ways need as much as the estimate and some more."""

    def __init__(self, monkeypatch, fit):
        self.real, self.asked, self.fit = search_run.make_plan, 0, fit  # the number of the first that fits
        monkeypatch.setattr(search_run, "has_compiler", lambda _: True)
        monkeypatch.setattr(search_run, "make_plan", self.plan)

    def plan(self, *arguments):
        found = self.real(*arguments, compiles=False)
        self.asked += 1
        return {**found, "source": "compiled", "memory": found["memory"] | {"fits": self.asked >= self.fit}}


@pytest.mark.parametrize(("fit", "compiled", "code"), [(1, 5, 0), (5, 5, 0), (7, 7, 0), (99, 12, 2)])
def test_the_search_goes_on_until_something_fits(config, tmp_path, capsys, monkeypatch, fit, compiled, code):
    compiler = Compiler(monkeypatch, fit)
    found = plan(config, tmp_path, "--topology=v5e:2x4", "--search")
    said = capsys.readouterr().err
    assert (found[0], compiler.asked) == (code, compiled)
    assert ("none of 5 fits; on until one does, 12 at most" in said) == (fit > 5)
    assert ("none of the 12 ways that were compiled fits" in said) == (fit > 12)
    assert found[1]["memory"]["fits"] == (fit <= 12)
    assert [one["source"] for one in found[1]["search"]["ways"]].count("compiled") == compiled


def test_the_search_compiles_the_way_of_the_config_too(config, tmp_path, capsys, monkeypatch):
    Compiler(monkeypatch, 1)
    own = ["--config.mesh.replica=2", "--config.model.remat=full"]
    _, found = plan(config, tmp_path, "--topology=v5e:2x4", "--search", *own)
    assert "1 of 5: replica 2 x fsdp 4, 2 microbatches, remat full" in capsys.readouterr().err
    ways = {one["shown"]: one for one in found["search"]["ways"]}
    assert ways["replica 2 x fsdp 4, 2 microbatches, remat full"]["source"] == "compiled"


def test_a_search_mends_a_mesh_that_is_not_of_the_devices(config, tmp_path):
    code, found = plan(config, tmp_path, "--topology=h100:8", "--search", "--config.mesh.replica=3")
    assert code == 0
    assert "--config.mesh.replica=1 " in found["search"]["flags"]


def test_a_search_proposes_what_splits_every_stage(config, tmp_path):
    """Not the config's own two microbatches: the second stage has two rows for two devices."""
    stages = "({'tokens': 1638400}, {'tokens': 163840, 'rows': 2})"
    flags = ("--config.train.steps=0", f"--config.batch.stages={stages}")
    code, found = plan(config, tmp_path, "--topology=h100:2", "--search", *flags)
    assert code == 0
    assert found["settings"]["microbatches"] == 1
    assert all("microbatches" not in one["shown"] for one in found["search"]["ways"])


def test_all_ways_that_fit_are_counted(config, tmp_path, capsys):
    """Not only those that are told."""
    _, found = plan(config, tmp_path, "--topology=h100:8", "--search")
    arguments = launch.parse_arguments(["plan", f"--config={config}", f"--workdir={tmp_path}"])
    run, topology = launch.open_experiment(arguments).training, parse_topology("h100:8")
    stage = run.batch.plan(run.train.steps)[0]
    ranked = rank(run, topology, stage, candidates(run, topology, stage))
    search = found["search"]
    assert search["tried"] == len(ranked) == len(search["ways"]) + search["more"]
    assert search["fit"] == len(fitting(ranked, topology)) > len(search["ways"])
    assert f"{len(ranked)} ways to split the run, {search['fit']} fit by the estimate" in capsys.readouterr().out


def test_the_page_says_how_to_make_it_again(config, tmp_path):
    asked = ["--topology=h100:8", "--stage=1", "--search"]
    plan(config, tmp_path, *asked, "--config.seed=3")
    page = (tmp_path / "plan" / "plan.html").read_text()
    command = html.unescape(re.search(r"<pre>\s*(python launch.py plan .*?)</pre>", page)[1])
    assert all(flag in command.split() for flag in (f"--config={config}", "--config.seed=3", *asked))


def test_every_way_multiplies_to_the_devices(config, tmp_path):
    arguments = launch.parse_arguments(["plan", f"--config={config}", f"--workdir={tmp_path}"])
    run = launch.open_experiment(arguments).training
    stage = run.batch.plan(run.train.steps)[0]
    for name, slices in (("v5e:4x4", 1), ("v5e:2x2", 2)):
        topology = parse_topology(name, slices)
        ways = list(candidates(run, topology, stage))
        assert ways
        for way in ways:
            assert way.replica * way.fsdp * way.tensor * way.context == topology.devices
            assert stage.rows % (way.replica * way.fsdp * way.microbatches) == 0
            assert way.replica % slices == 0


def test_margins_and_ways_are_plain(config, tmp_path):
    arguments = launch.parse_arguments(["plan", f"--config={config}", f"--workdir={tmp_path}"])
    run = launch.open_experiment(arguments).training
    topology, stage = parse_topology("h100:8"), run.batch.plan(run.train.steps)[0]
    found = nearest(run, topology, stage)
    asked = Way(1, 8, 1, 1, 2, "branches")
    assert sum(a != b for a, b in zip(found.way, asked)) == 1  # one setting changes, for the way asked did not fit
    assert fitting([found], topology) == [found]
