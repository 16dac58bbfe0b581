"""The main text of pages, and what pages that end badly cost: themselves."""

import collections
import gzip
import json
import os
import re
import signal
import textwrap
from statistics import harmonic_mean

import pytest

from core.errors import UserError
from data import parser, parser_child
from data.curate.extract import Extract
from data.curate.partition import to_batch
from data.document import Document
from lab import real

PROSE = "The river rose in the night, and by morning the lower fields lay under water as far as the old mill."
PAGE = f"""<html><head><title>Flood</title><script>var a = "no text";</script></head><body><nav><a href="/">Home</a>
<a href="/news">News</a></nav><article><h1>Flood</h1>{f"<p>{PROSE}</p>" * 4}</article></body></html>"""
SLOW = "<a " + " ".join(f"a{number}=1" for number in range(100_000)) + ">x</a>"  # quadratic in both parsers
METHODS = ("trafilatura", "resiliparse", "visible")


def run(step, *documents):
    """What is left of documents, with their reasons."""
    outcome = step(to_batch(list(documents)))
    return list(zip(outcome.batch.to_pylist(), outcome.reasons))


@pytest.mark.parametrize("method", METHODS)
def test_only_pages_become_their_text(method):
    page = Document("a", PAGE, "warc", meta={"media_type": "text/html", "date": "2026-01-01"})
    text = Document("b", PAGE, "jsonl", meta={"said": '"media_type" of nothing'})
    (first, none), (second, also_none) = run(Extract(method=method), page, text)
    assert none is also_none is None
    assert PROSE in first["text"]
    assert "<p>" not in first["text"]
    assert "no text" not in first["text"]
    assert json.loads(first["meta"]) == {"date": "2026-01-01"}
    assert second["text"] == PAGE
    assert json.loads(second["meta"]) == text.meta


@pytest.mark.parametrize("method", ["trafilatura", "resiliparse"])
def test_navigation_is_no_main_text(method):
    text, reason = Extract(method=method).text(PAGE)
    assert reason is None
    assert "News" not in text


@pytest.mark.parametrize("method", ["trafilatura", "resiliparse"])
@pytest.mark.parametrize("page", ["", "   ", "<html>", "<p", "<!-- " * 1000])
def test_a_page_without_text_is_named(method, page):
    assert Extract(method=method).text(page) == ("", "extract_empty")
    ((left, reason),) = run(Extract(method=method), Document("a", page, "warc", meta={"media_type": "text/html"}))
    assert (left["text"], reason) == (page, "extract_empty")


@pytest.mark.parametrize("method", ["trafilatura", "resiliparse"])
@pytest.mark.parametrize(
    "page",
    [
        "<div>" * 10_000 + PROSE + "</div>" * 10_000,
        "<b>" * 50_000 + PROSE,
        PAGE.replace("river", "ri\0ver"),
        PAGE.replace("river", "&#xD800;&#0;&#99999999;"),
        PAGE.replace("river", "ri\ud800ver"),
        "<table><tr><td>" * 2_000 + PROSE,
    ],
    ids=["deep", "open", "NUL", "references", "surrogate", "tables"],
)
def test_hostile_pages_end_in_text_or_a_reason(method, page):
    text, reason = Extract(method=method).text(page)
    assert bool(text.strip()) == (reason is None)
    text.encode()


@pytest.mark.parametrize("method", ["trafilatura", "resiliparse"])
def test_a_page_that_takes_too_long_costs_itself_alone(method):
    step = Extract(method=method, seconds=1.0)
    before = step.text(PAGE)
    assert step.text(SLOW) == ("", "extract_timeout")
    assert step.text(PAGE) == before


def test_a_program_that_ignores_the_timers_signal_does_not_take_it_from_the_child():
    before = signal.signal(signal.SIGPROF, signal.SIG_IGN)  # as libtpu does wherever it is loaded
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF})
    child = parser.Parser("resiliparse", seconds=1.0)
    try:
        assert child.text(SLOW) == ("", "extract_timeout")
    finally:
        child.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGPROF, before)


def test_what_killed_the_child_is_not_blamed_on_the_next_page():
    step = Extract(method="resiliparse", seconds=2.0)
    before = step.text(PAGE)
    os.kill(parser.parser("resiliparse", 2.0, step.memory_mb).child.process.pid, signal.SIGSEGV)
    assert step.text(PAGE) == before


def test_a_page_that_crashes_the_parser_costs_itself_alone(tmp_path, monkeypatch):
    script = tmp_path / "crashes.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, sys
            from multiprocessing.connection import Connection
            connection = Connection(int(sys.argv[1]))
            connection.recv_bytes()
            connection.send_bytes(b"+")
            while True:
                page = connection.recv_bytes()
                if b"crash" in page:
                    os.abort()
                connection.send_bytes(b"+" + page)
            """
        )
    )
    monkeypatch.setattr(parser, "SCRIPT", script)
    step = Extract(seconds=3.0)
    assert [step.text(page) for page in ("a", "crash", "b", "crash")] == [
        ("a", None),
        ("", "extract_crash"),
        ("b", None),
        ("", "extract_crash"),
    ]


def test_a_child_that_does_not_start_is_told_in_one_line(tmp_path, monkeypatch):
    script = tmp_path / "broken.py"
    script.write_text("raise ImportError('lxml.html.clean is now a separate project')")
    monkeypatch.setattr(parser, "SCRIPT", script)
    with pytest.raises(UserError, match=r"does not start .*separate project"):
        Extract(seconds=4.0).text("a")


def test_what_an_extractor_may_not_take_is_named():
    def too_much(page):
        return page * (1 << 50)

    def too_long(_):
        return "a" * (parser_child.MAX_TEXT + 1)

    def fails(_):
        raise RecursionError

    found = [parser_child.answer(function, b"ab", 10.0) for function in (too_much, too_long, fails)]
    assert found == [b"-extract_memory", b"-extract_too_long", b"-extract_error"]


def shingles(text):
    words = re.findall(r"\w+", text)
    return collections.Counter(tuple(words[start : start + 4]) for start in range(max(1, len(words) - 3)))


@pytest.mark.parametrize(("method", "least"), [("trafilatura", 0.96), ("resiliparse", 0.89)])
def test_main_text_of_every_sixth_gold_page(method, least):
    """By runs of four words, each page weighing the same; all pages and others are in benchmarks/extract.py."""
    folder = real("html_gold/scrapinghub")
    gold = json.loads((folder / "ground-truth.json").read_text())
    step, precision, recall = Extract(method=method), [], []
    for name in sorted(gold)[::6]:
        page = gzip.decompress((folder / "html" / f"{name}.html.gz").read_bytes()).decode("utf-8")
        wanted, found = shingles(gold[name]["articleBody"]), shingles(step.text(page)[0])
        both = (wanted & found).total()
        precision.append(both / found.total())
        recall.append(both / wanted.total())
    assert harmonic_mean([sum(precision) / len(precision), sum(recall) / len(recall)]) >= least
