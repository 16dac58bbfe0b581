"""The page of inspect-data: its notices, its pictures, and a change shown before it is made."""

import re

import pytest

from core.files import read_json
from core.page import Page
from data.config import BatchConfig
from data.corpus import Corpus
from data.history import ask, continue_history, from_json, read, skip, write
from data.inspect import measure, parts_of, readings
from data.plan import Plan
from evals import draw
from evals import figures_data as figures
from evals.inspect_data import Change, _history, _notices, change_of
from lab import FakeShards, launch, make_corpus

CONFIG = """
from experiments import smoke

def get_config():
    config = smoke.get_config()
    with config.unlocked():
        config.data.sources = {"plain": "PLAIN", "short": "SHORT", "spare": "SPARE"}
        config.data.heldout_fraction = 0.2
        config.tokenizer.vocab_size = 320
        config.train.steps = 0
        config.batch.packing = "best_fit"
        config.batch.max_epochs = {"short": 2}
        config.batch.stages = (
            {"tokens": 8 * 64 * 30, "mixture": {"plain": 0.7, "short": 0.4}},
            {"tokens": 8 * 700 * 30, "row_length": 700, "mixture": {"plain": 1.0}},
        )
    return config.lock()
"""


def text_of(plan, change=None):
    page, parts = Page("x"), parts_of(plan)
    _history(page, plan, change)
    _notices(page, plan, parts, readings(plan), measure(parts)[0])
    return page.render()


def test_amendments_and_skips_are_noticed():
    corpus = Corpus(FakeShards([20, 9] * 45, ["a", "b", "c"] * 30), 0)
    config = BatchConfig(rows=4, row_length=8, mixture={"a": 1, "b": 1})
    history = (ask(config, 20, corpus.generations),)
    changed = BatchConfig(rows=4, row_length=8, mixture={"a": 1, "b": 3})
    history = continue_history(history, ask(changed, 30, corpus.generations, 10), amend=True)
    text = text_of(Plan(skip(history, 15, 4), corpus, 0))
    assert "after step 10 the config was amended" in text
    assert "after step 15 4 batches are left out" in text
    assert "The weights of stage 1 sum to 2; they are normalised" in text
    assert "Never read: </strong>c." in text


def test_a_change_not_yet_made_is_told_from_those_that_were(tmp_path):
    corpus = Corpus(FakeShards([20, 9] * 45, generations=(80,)), 0)
    config = BatchConfig(rows=4, row_length=8)
    before = (ask(config, 20, corpus.generations[:1]),)
    write(tmp_path / "history.json", before)
    assert change_of(Plan(before, corpus, 0), tmp_path) is None
    assert change_of(Plan(before, corpus, 0), tmp_path / "none.json") is None
    plan = Plan(continue_history(before, ask(config, 30, corpus.generations, 10), amend=True), corpus, 0)
    change = change_of(plan, tmp_path)
    assert change == Change(10, "stages[0].steps was 20, is 30; 1 more in data.added")
    assert "the change would hold after step 10, the last that is saved" in text_of(plan, change)
    assert "was amended" not in text_of(plan, change)
    begun = Plan((ask(config, 30, corpus.generations),), corpus, 0)
    assert "would begin the run anew" in text_of(begun, change_of(begun, tmp_path))


def test_many_sources_stay_legible():
    read = {f"s{i}": 60.0 - i for i in range(60)}
    drawing = draw.svg(figures.epochs(read, {"s0": 70}), "x", "epochs")
    assert "60.00 of 70</text>" in drawing
    assert "49 others, each at most</text>" in drawing


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The workdir, its arguments, and what the verb said."""
    folder = tmp_path_factory.mktemp("inspect")
    text = CONFIG
    for seed, (name, files) in enumerate((("plain", 60), ("short", 8), ("spare", 8))):
        make_corpus(folder / name, files=files, sentences=10, seed=seed)
        text = text.replace(name.upper(), str(folder / name))
    (folder / "config.py").write_text(text)
    arguments = [f"--config={folder / 'config.py'}", f"--workdir={folder / 'run'}"]
    early = launch("inspect-data", *arguments)
    for verb in ("curate", "tokenize"):
        assert launch(verb, *arguments).returncode == 0
    result = launch("inspect-data", *arguments)
    assert result.returncode == 0, result.stderr
    return folder / "run" / "inspect-data", arguments, early, result


def test_the_verb_makes_a_page_of_its_own(made):
    folder, arguments, early, result = made
    assert early.returncode == 2
    assert "run `launch.py curate`" in early.stderr.splitlines()[-1]
    text = (folder / "inspect-data.html").read_text()
    pictures = {"schedule", "mixture", "autocorrelation-1", "padding", "cut", "headless", "epochs", "lengths"}
    pictures |= {"bytes-per-token"}
    assert {path.stem for path in folder.glob("*.png")} == pictures
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))
    assert not re.search(r"https?:|<script|\bsrc=", text)
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    top = text.partition('<dl class="tiles"')[0]
    assert "<strong>Runs dry: </strong>short (step " in top
    assert "<strong>Never read: </strong>spare." in top
    assert "<strong>Stage 2 pads " in top
    assert "The weights of stage 1 sum to 1.1; they are normalised." in top
    assert "nothing is mixed there" in text
    assert "inspect-data: 60 steps" in result.stderr
    assert f"{folder}/inspect-data.html" in result.stderr
    assert "is up to date" in launch("inspect-data", *arguments).stderr


def test_a_change_of_a_run_under_way_is_shown_before_it_is_made(made, tmp_path):
    folder, arguments, _, _ = made
    run = folder.parent
    before = (folder / "inspect-data.html").read_text()
    asked = read_json(folder / "manifest.json")["spec"]["history"]
    write(run / "train" / "history.json", from_json(asked))
    (run / "train" / "checkpoints" / "20").mkdir(parents=True)
    assert "Not yet so" not in before
    path = tmp_path / "config.py"
    path.write_text((folder.parent.parent / "config.py").read_text().replace('{"plain": 1.0}', '{"spare": 1.0}'))
    changed = [f"--config={path}", *arguments[1:]]
    result = launch("inspect-data", *changed)
    assert result.returncode == 0, result.stderr
    text = (folder / "inspect-data.html").read_text()
    assert "amended after step 20: " in result.stderr
    assert "the change would hold after step 20, the last that is saved" in text
    assert "stages[1].mixture.plain was 1.0, is null" in text
    assert read(run / "train" / "history.json") == from_json(asked)  # nothing is changed yet
    refused = launch("explain", *changed, "--document=x")
    assert refused.returncode == 2
    assert "contradicts the history of this run" in refused.stderr
    assert "is up to date" not in launch("inspect-data", *arguments).stderr
    assert "Not yet so" not in (folder / "inspect-data.html").read_text()
