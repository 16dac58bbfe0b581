"""Comparisons: what the statistics say, and the verb on runs of seconds."""

import json
import math

import numpy as np
import pytest
from scipy import stats

import launch
from core.files import Stage
from data.targets import TARGETS
from lab import ROOT, smoke
from scaling import compare
from scaling.compare_text import shown_share
from scaling.verdict import Interval, bootstrap_steps, holm, interval, p_less, steps_to, verdict
from train.config import TeachConfig


def test_an_interval_holds_the_mean_as_often_as_it_says():
    random = np.random.default_rng(0)
    held = [interval(random.normal(3, 2, 5)) for _ in range(4000)]
    assert np.mean([own.low < 3 < own.high for own in held]) == pytest.approx(0.95, abs=0.012)


def test_p_values_are_welchs_and_corrected_as_holm_does():
    ours, theirs = [1.0, 1.1, 0.9], [1.3, 1.5, 1.6]
    assert p_less(ours, theirs) == stats.ttest_ind(ours, theirs, equal_var=False, alternative="less").pvalue
    assert p_less([1.0, math.inf, 1.0], theirs) == 1.0
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


def test_without_a_difference_hardly_ever_a_winner():
    """Five variants of one distribution: a false claim at most as often as the level."""
    random = np.random.default_rng(1)
    claims = [
        verdict({name: random.normal(0, 1, 5) for name in "abcde"}, 0.01).winner is not None for _ in range(1000)
    ]
    assert np.mean(claims) <= 0.01


@pytest.mark.parametrize("behind", [0, 3])
def test_of_two_that_are_equal_hardly_ever_one_wins(behind):
    """Also where all others are far behind; the lower of two was chosen by looking."""
    random = np.random.default_rng(4)
    claims = 0
    for _ in range(2000):
        runs = {name: random.normal(0, 1, 5) for name in "ab"}
        runs |= {f"far {i}": random.normal(50, 1, 5) for i in range(behind)}
        claims += verdict(runs, 0.05).winner is not None
    assert claims / 2000 <= 0.06


def test_shares_say_what_is_a_bound():
    inf = math.inf
    assert shown_share(Interval(inf, inf, inf), 0.5) == "not reached"
    assert shown_share(Interval(0.9, 0.5, inf), 0.5) == "0.90 (at most 0.50 to not reached)"
    assert shown_share(Interval(0.5, 0.5, 0.6), 0.5, 2.0) == "at most 1.00 (at most 1.00 to 1.20)"
    assert shown_share(Interval(0.5, 0.5, 0.5), 0.5) == "at most 0.50"
    assert shown_share(None, 0.5) == shown_share(Interval(1.0, 1.0, 1.0), 1.0) == ""


def test_a_winner_is_named_where_it_is_one():
    random = np.random.default_rng(2)
    runs = {"muon": random.normal(3.0, 0.01, 5), "adamw": random.normal(3.2, 0.01, 5), "soap": [3.1, math.inf, 3.0]}
    won = verdict(runs, 0.01)
    assert won.winner == "muon"
    alike = verdict({**runs, "other": random.normal(3.0, 0.01, 5)}, 0.01)
    assert alike.winner is None
    assert "no winner: " in alike.said
    assert "cannot be told apart" in alike.said


def test_variants_of_equal_runs_are_one():
    runs = {"muon": [3.0, 3.01, 3.02], "adamw": [3.2, 3.21, 3.22], "muonclip": [3.0, 3.01, 3.02]}
    assert verdict(runs, 0.01).winner == "muon = muonclip"


def test_the_interval_of_steps_holds_them_nearly_as_often_as_it_says():
    random = np.random.default_rng(3)
    true = steps_to(3.1, [0.5, 1.0], [3.2, 3.0])
    held = []
    for _ in range(120):
        ours, theirs = random.normal([[3.2], [3.0]], 0.01, (2, 5)), random.normal(3.1, 0.01, 5)
        found = bootstrap_steps(theirs, [0.5, 1.0], ours, draws=200)
        held.append(found.low < true < found.high)
    assert 0.9 <= np.mean(held) <= 0.99


def test_steps_to_a_loss_lie_between_the_lengths_that_were_run():
    lengths, losses = [0.5, 1.0], [3.2, 3.0]
    assert steps_to(3.0, lengths, losses) == pytest.approx(1.0)
    assert steps_to(3.1, lengths, losses) == pytest.approx(math.sqrt(0.5))
    assert steps_to(3.3, lengths, losses) == 0.5  # at most
    assert steps_to(2.9, lengths, losses) == math.inf
    found = bootstrap_steps([3.1, 3.1, 3.1], lengths, np.array([[3.19, 3.2, 3.21], [2.99, 3.0, 3.01]]))
    assert found.low < found.mean < found.high


def race(workdir, corpus, *flags):
    config = workdir.parent / "race.py"
    config.write_text(RACE)
    given = [*smoke(workdir, corpus, "--config.train.steps=8", "--config.train.eval_every=3")[1:], *flags]
    arguments = launch.parse_arguments(["compare", f"--config={config}", *given])
    launch.open_experiment(arguments).run("compare")
    return json.loads((workdir / "compare" / "compare.json").read_text())


RACE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from experiments import smoke
from ml_collections import ConfigDict

def get_config():
    config = smoke.get_config()
    with config.unlocked():
        config.optim.warmup_steps = 1
        config.compare = ConfigDict(dict(baseline="slow", seeds=2, lengths=(0.5, 1.0)))
        config.compare.variants = ConfigDict(dict(
            slow=dict(tune=(("optim.learning_rate", (1e-5, 2e-5)), ("optim.b2", (0.95, 0.9)))),
            quick=dict(set=(("optim.learning_rate", 1e-2),)),
            also=dict(tuned_as="slow"),
            mad=dict(set=(("optim.learning_rate", 3e38), ("optim.skip.nonfinite_limit", 2))),
        ))
    return config
"""


def prepared(finished, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    for name in ("curated", "tokenizer", "tokens"):
        (workdir / name).symlink_to(finished / name)
    return workdir


def quickly(run, folder, *, make_evaluate):
    """In place of training: rows as it writes them, with a loss that falls as the rate grows, and at 3e38 none."""
    del make_evaluate
    rate, steps = run.optim.learning_rate, run.train.steps
    loss = 4 - math.log10(1 + 1e4 * rate) - steps / 100 + 1e-3 * run.seed + run.optim.b2 / 1e3
    (folder / "train").mkdir()
    rows = [
        {"step": step, "tokens_per_second": 1000.0, "seconds": 1.0 * step, "heldout_bits_per_byte": loss}
        for step in (4, steps)
        if rate < 1
    ]
    (folder / "train" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_comparison_is_made_once_and_told(finished, corpus, tmp_path, capsys, monkeypatch):
    workdir = prepared(finished, tmp_path)
    monkeypatch.setattr(compare, "train", quickly)
    found = race(workdir, corpus)
    told = capsys.readouterr()
    slow, quick, mad = (found["variants"][name] for name in ("slow", "quick", "mad"))
    assert [len(slow["tuning"]), len(quick["tuning"])] == [3, 0]  # b2=0.9 was tried with the rates
    assert slow["tuned"] == {"optim.learning_rate": 2e-5, "optim.b2": 0.9}
    assert slow["at_the_edge"] == ["optim.learning_rate", "optim.b2"]
    assert found["variants"]["also"]["tuned"] == slow["tuned"]  # though its name comes first
    assert {length: len(runs) for length, runs in quick["runs"].items()} == {"0.5": 2, "1": 2}
    assert {length: len(runs) for length, runs in slow["runs"].items()} == {"1": 2}
    assert all(one["loss"] is None and "no finite held-out loss" in one["failed"] for one in mad["runs"]["1"])
    lines = told.out.rstrip().splitlines()
    assert lines[2].startswith("| quick | ")
    assert "at most 0.50" in lines[2]
    assert any(line.startswith("| mad | 4 runs failed") for line in lines)
    assert "Quick ends lowest" in lines[-1]
    assert "17 of 17" in told.err
    assert {path.name for path in (workdir / "compare").iterdir()} >= {"compare.html", "final.png", "curves.png"}
    monkeypatch.setattr(compare, "train", None)
    assert race(workdir, corpus) == found  # nothing was trained


def test_trials_find_stored_targets_in_the_workdir_or_they_are_made(finished, corpus, tmp_path, monkeypatch):
    """Made once for all trials that ask for the same, over the workdir's tokens."""
    workdir, seen, made = prepared(finished, tmp_path), {}, []

    def make(config, folder):
        made.append((config.tokens, (folder / "tokens").resolve()))
        Stage(folder / TARGETS, {"teach": config.decides(), "tokens": []}).finish([], {})

    def look(run, folder, *, make_evaluate):
        seen.setdefault(run.teach.tokens, set()).add((folder / TARGETS).resolve())
        quickly(run, folder, make_evaluate=make_evaluate)

    monkeypatch.setattr(compare, "train", look)
    monkeypatch.setattr(compare, "teach", make)
    make(TeachConfig(), workdir)
    race(
        workdir, corpus, "--config.objective.targets.weight=0.5",
        "--config.compare.variants.quick.set=(('teach.tokens', 20), ('optim.learning_rate', 1e-2))",
    )  # fmt: skip
    assert [tokens for tokens, _ in made] == [50, 20]
    assert len({tokens for _, tokens in made}) == 1
    assert seen[50] == {workdir / TARGETS}
    assert {path.parents[1] for path in seen[20]} == {workdir / "compare" / "taught"}
    assert len(seen[20]) == 1


def test_whole_runs_of_fewer_steps_are_told_as_such(finished, corpus, tmp_path, capsys, monkeypatch):
    workdir = prepared(finished, tmp_path)
    monkeypatch.setattr(compare, "train", quickly)
    found = race(
        workdir, corpus, "--config.compare.variants.quick.lengths=(0.5,)",
        "--config.compare.variants.quick.tune=(('optim.b2', (0.95, 0.9)),)",
    )  # fmt: skip
    quick = found["variants"]["quick"]
    assert {length: len(runs) for length, runs in quick["runs"].items()} == {"0.5": 2}
    assert {one["length"] for one in quick["tuning"]} == {0.5}
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert lines[2].startswith("| quick, 0.5 of the steps | ")
    assert "| at most 0.50 |" in lines[2]
    assert "Quick ends lowest" in lines[-1]


@pytest.mark.slow
def test_a_real_comparison_finds_the_better_rate(finished, corpus, tmp_path):
    found = race(prepared(finished, tmp_path), corpus)
    final = {name: [one["loss"] for one in own["runs"]["1"]] for name, own in found["variants"].items()}
    assert max(final["quick"]) < min(final["slow"])
    assert final["also"] == final["slow"]
    assert all("not finite" in one["failed"] for one in found["variants"]["mad"]["runs"]["1"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.compare.baseline=fast"], "baseline='fast' is none of also, mad, quick, slow"),
        (
            ["--config.optim.warmup_steps=7"],
            "warmup_steps=7 and a decay over the last 2 do not fit into train.steps=4",
        ),
        (["--config.compare.variants.quick.tune=(('optim.b2', ()),)"], "variants.quick.tune: optim.b2 has no values"),
        (["--config.compare.variants.slow.lengths=(0.5, 1.0)"], "lengths=(0.5, 1.0): the baseline has all the steps"),
        (
            ["--config.compare.variants.quick.lengths=(0.5, 1.5)"],
            "lengths=(0.5, 1.5) must be ascending shares up to 1",
        ),
        (["--config.compare.lengths=(0.5,)"], "lengths=(0.5,) must end with 1"),
        (["--config.compare.seeds=1"], "of one run nobody knows the spread"),
        (["--config.compare.variants.quick.tuned_as=mod"], "variants.quick.tuned_as='mod' is none of mad, "),
        (["--config.compare.variants.quick.set=(('optim.lr', 1),)"], "unknown config key optim.lr"),
    ],
)
def test_comparisons_that_cannot_be_are_refused_before_anything_runs(finished, corpus, tmp_path, flags, message):
    from core.errors import UserError

    workdir = prepared(finished, tmp_path)
    with pytest.raises(UserError, match=message.replace("(", r"\(").replace(")", r"\)")):
        race(workdir, corpus, *flags)
    assert not (workdir / "compare").exists()
