"""A web archive becomes shards that are trained on, by one command as a user gives it."""

import json
import random

import pytest

from archives_lab import gz, record, response
from core.files import read_json
from curate_lab import WORDS
from data.document import read_documents
from lab import launch
from train.metrics import read_metrics

CONFIG = """
from experiments import smoke


def get_config():
    config = smoke.get_config()
    with config.unlocked():
        config.data.sources = {sources!r}
        config.data.recipe = (
            {{"step": "extract", "method": "resiliparse"}},
            {{"step": "length", "min_chars": 200}},
            {{"step": "minhash", "method": "fast"}},
            {{"step": "exact_duplicates"}},
        )
        config.data.heldout_fraction = 0.2
        config.tokenizer.vocab_size = 320
        config.train.steps = 10
    return config
"""
PAGES = 60


def prose(seed):
    words = random.Random(seed)
    return " ".join(f"{' '.join(words.choices(WORDS, k=12)).capitalize()}." for _ in range(12))


def page(number):
    nav = '<nav><a href="/">Home</a></nav>'
    return f"<html><title>T</title><body>{nav}<article><p>{prose(number)}</p></article></body></html>".encode()


@pytest.mark.slow
def test_a_web_archive_is_trained_on_with_its_source_and_licence(tmp_path):
    texts = [record("warcinfo", b"software: none\r\n"), *(response(number, page(number)) for number in range(PAGES))]
    again, short = response(PAGES, page(0)), response(PAGES + 1, b"<html><p>short")
    (tmp_path / "crawl.warc.gz").write_bytes(gz([*texts, again, short])[:-1])  # and cut off
    lines = [{"text": prose(1000 + number), "license": "CC0-1.0"} for number in range(20)]
    (tmp_path / "notes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    sources = {"web": str(tmp_path / "crawl.warc.gz"), "notes": str(tmp_path / "notes.jsonl")}
    config, workdir = tmp_path / "web.py", tmp_path / "run"
    config.write_text(CONFIG.format(sources=sources))
    flags = [f"--config={config}", f"--workdir={workdir}"]
    result = launch(*flags)
    assert result.returncode == 0, result.stderr
    summary = read_json(workdir / "curated" / "manifest.json")["summary"]
    assert summary["train"]["documents"] + summary["heldout"]["documents"] == PAGES + 20
    assert summary["dropped"] == {"near_duplicate": 1, "truncated_record": 1}
    kept = [one for path in (workdir / "curated").glob("*.parquet") for one in read_documents(path)]
    assert {one.text.strip() for one in kept if one.source == "web"} == {prose(number) for number in range(PAGES)}
    assert read_metrics(workdir / "train" / "metrics.jsonl")[-1]["step"] == 10
    told = launch("explain", "--step=10", *flags)
    head, *rows = (line.split("\t") for line in told.stdout.splitlines())
    origins = {(row["source"], row["license"]) for row in (dict(zip(head, row)) for row in rows)}
    assert origins == {("web", "-"), ("notes", "CC0-1.0")}
