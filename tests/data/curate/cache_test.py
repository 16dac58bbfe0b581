"""Processes that begin at once with an empty cache: one makes its files, the others find them."""

import multiprocessing
import time

import numpy as np
import pytest

from curate_lab import write_lists
from data.curate.cache import made_once
from data.curate.decontaminate import Decontaminate
from data.curate.partition import to_batch
from data.curate.url import UrlFilter
from data.document import Document

ITEM = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."


def in_two_processes(function, *arguments):
    """What the function gives in each of two processes that call it at once, and what they end with."""
    context = multiprocessing.get_context("spawn")
    together, found = context.Barrier(2), context.SimpleQueue()
    processes = [context.Process(target=call, args=(together, found, function, arguments)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    return [found.get() for _ in processes]


def call(together, found, function, arguments):
    together.wait(100)
    found.put(function(*arguments))


def make_slowly(log):
    """The file, with a line in the log by whoever makes it."""

    def make(paths):
        with log.open("a") as file:
            file.write("made\n")
        time.sleep(0.5)
        paths[0].write_text("whole")

    return made_once(["a.txt"], make, "letters")[0].read_text()


def test_one_of_two_processes_makes_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert in_two_processes(make_slowly, tmp_path / "log") == ["whole", "whole"]
    assert (tmp_path / "log").read_text() == "made\n"


def reasons(step):
    """Of a document, by a step that finds the cache empty, since `prepare` ran elsewhere, and is slow to fill it."""
    save = np.save

    def save_slowly(file, array):
        save(file, array)
        time.sleep(0.3)

    np.save = save_slowly
    return step(to_batch([Document("a", ITEM, "", "http://bad.com/")])).reasons


@pytest.fixture
def steps(tmp_path):
    """Those that have something in the cache."""
    (tmp_path / "clips.txt").write_text(ITEM)
    write_lists(tmp_path, "bad.com\n", "http://fine.org/bad page\n")
    return {"url": UrlFilter(lists=str(tmp_path)), "items": Decontaminate((str(tmp_path / "clips.txt"),))}


@pytest.mark.parametrize(("name", "reason"), [("url", "domain"), ("items", "contaminated_clips")])
def test_a_step_fills_the_cache_itself_also_in_two_processes(steps, tmp_path, monkeypatch, name, reason):
    if name == "url":
        pytest.importorskip("tldextract")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert in_two_processes(reasons, steps[name]) == [[reason], [reason]]
