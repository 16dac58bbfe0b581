"""Stages, amendments, added documents and skipped steps of a real run, through the command line."""

import json
import shutil

import pytest

import launch
from core.files import fingerprint, read_json
from lab import ROOT, make_corpus
from train.metrics import read_metrics

STAGES = [
    {"tokens": 8 * 64 * 6, "mixture": {"web": 0.7, "code": 0.3}},
    {"tokens": 4 * 128 * 6, "rows": 4, "row_length": 128, "packing": "best_fit", "mixture": {"web": 1, "code": 1}},
]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    return [make_corpus(folder / name, files=8, seed=seed) for seed, name in enumerate(("web", "code", "more"))]


@pytest.fixture(scope="module")
def staged(corpora, tmp_path_factory):
    """A run of two stages to its end; not to be changed."""
    workdir = tmp_path_factory.mktemp("staged") / "run"
    for verb in ("curate", "tokenize", "train"):
        assert launch.main([verb, *arguments(workdir, corpora)]) == 0
    return workdir


def arguments(workdir, corpora, stages=STAGES, **changes):
    config = {
        "data.sources": {"web": str(corpora[0]), "code": str(corpora[1])},
        "data.heldout_fraction": 0.1,
        "tokenizer.vocab_size": 320,
        "batch.stages": stages,
        "optim.warmup_steps": 2,
        "train.steps": 0,
        "train.checkpoint_every": 4,
        "train.keep_checkpoints": 4,
        "train.log_every": 1,
        **changes,
    }
    flags = [f"--config.{key}={value}" for key, value in config.items()]
    return [f"--config={ROOT / 'experiments' / 'smoke.py'}", f"--workdir={workdir}", *flags]


def copy(staged, workdir, trained=False):
    """The documents and tokens of a run, and what it trained where a test goes on from that."""
    workdir.mkdir()
    for name in ("curated", "tokenizer", "tokens"):
        (workdir / name).symlink_to(staged / name)
    if trained:
        shutil.copytree(staged / "train", workdir / "train")
    return workdir


def losses(workdir):
    rows = read_metrics(workdir / "train" / "metrics.jsonl")
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def history(workdir):
    return read_json(workdir / "train" / "history.json")["records"]


def test_stages_follow_one_another(staged):
    rows = [row for row in read_metrics(staged / "train" / "metrics.jsonl") if "loss" in row]
    assert [row["tokens"] for row in rows] == [512 * step for step in range(1, 13)]
    assert [stage["steps"] for stage in history(staged)[0]["stages"]] == [6, 6]
    saved = read_json(staged / "train" / "checkpoints" / "12" / "record.json")
    assert saved["history"] == history(staged)


def test_another_config_is_refused_and_with_amend_holds_from_here_on(staged, corpora, tmp_path, capsys):
    workdir = copy(staged, tmp_path / "run")
    short = [STAGES[0], {**STAGES[1], "tokens": 4 * 128 * 2}]
    assert launch.main(["train", *arguments(workdir, corpora, short)]) == 0
    longer = [STAGES[0], {**STAGES[1], "mixture": {"web": 0.2, "code": 0.8}}]
    before = (workdir / "train" / "manifest.json").read_bytes()
    capsys.readouterr()
    assert launch.main(["train", *arguments(workdir, corpora, longer)]) == 2
    assert "the config contradicts the history of this run (stages[1].mixture.code was 1.0, is 0.8)" in (
        capsys.readouterr().err
    )
    assert launch.main(["eval", *arguments(workdir, corpora, longer)]) == 2
    assert (workdir / "train" / "manifest.json").read_bytes() == before
    assert launch.main(["train", *arguments(workdir, corpora, longer), "--amend"]) == 0
    assert [record["step"] for record in history(workdir)] == [0, 8]
    assert sorted(losses(workdir)) == list(range(1, 13))
    # Amended, it is the run of the config it was given, and is up to date.
    capsys.readouterr()
    assert launch.main(["train", *arguments(workdir, corpora, longer)]) == 0
    assert "is up to date" in capsys.readouterr().err


def test_a_skipped_window_gets_the_data_that_comes_after_it(staged, corpora, tmp_path, capsys):
    workdir = copy(staged, tmp_path / "run")
    assert launch.main(["train", *arguments(workdir, corpora)]) == 0
    assert losses(workdir) == losses(staged)
    assert launch.main(["train", *arguments(workdir, corpora), "--skip=9:10"]) == 0
    assert {step: loss for step, loss in losses(workdir).items() if step < 9} == {
        step: loss for step, loss in losses(staged).items() if step < 9
    }
    assert losses(workdir)[9] != losses(staged)[9]
    assert history(workdir)[1]["skip"] == 2
    explained = []
    for where, step in ((workdir, 9), (staged, 11)):
        capsys.readouterr()
        assert launch.main(["explain", *arguments(where, corpora), f"--step={step}"]) == 0
        explained.append([line.split("\t")[:5] for line in capsys.readouterr().out.splitlines()])
    assert explained[0] == explained[1]
    # The same command once more does not skip once more.
    assert launch.main(["train", *arguments(workdir, corpora), "--skip=9:10"]) == 0
    assert len(history(workdir)) == 2
    assert launch.main(["train", *arguments(workdir, corpora), "--skip=2:3"]) == 2
    assert "no checkpoint from before step 2 is left to go back to" in capsys.readouterr().err


def test_what_is_refused_changes_nothing(staged, corpora, tmp_path, capsys):
    """A command that ends with an error leaves the history, the checkpoints and the finished run as they were."""
    workdir = copy(staged, tmp_path / "run", trained=True)
    folder = workdir / "train"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    unknown = [STAGES[0], {**STAGES[1], "tokens": 1 << 16, "mixture": {"none": 1}}]
    for flags in (["--amend"], ["--rebuild"]):
        assert launch.main(["train", *arguments(workdir, corpora, unknown), *flags]) == 2
        assert "names a source none that no document has" in capsys.readouterr().err
    for skip, message in (("13:14", "step 14 is not in this run"), ("1:1", "no checkpoint from before step 1")):
        assert launch.main(["train", *arguments(workdir, corpora), f"--skip={skip}"]) == 2
        assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert launch.main(["train", *arguments(workdir, corpora)]) == 0
    assert "is up to date" in capsys.readouterr().err


def test_a_finished_run_without_its_last_checkpoint_makes_it_again(staged, corpora, tmp_path, capsys):
    workdir = copy(staged, tmp_path / "run", trained=True)
    (workdir / "train" / "checkpoints" / "12" / "record.json").write_text("{}")
    capsys.readouterr()
    assert launch.main(["train", *arguments(workdir, corpora)]) == 0
    error = capsys.readouterr().err
    assert "12 is damaged (record.json has 2 bytes instead of" in error
    assert "from step 8" in error
    assert losses(workdir) == losses(staged)


def test_a_damaged_history_is_refused_and_the_checkpoint_holds_it_too(staged, corpora, tmp_path, capsys):
    workdir = copy(staged, tmp_path / "run", trained=True)
    path = workdir / "train" / "history.json"
    good = path.read_text()
    for damaged in (good.replace('"skip": 0', '"skip": 7'), "[]", "{}", good.replace("stages", "stagez")):
        path.write_text(damaged)
        capsys.readouterr()
        assert launch.main(["explain", "--step=3", *arguments(workdir, corpora)]) == 2
        assert "history.json is damaged; without that file the history of the newest" in capsys.readouterr().err
    path.unlink()
    assert launch.main(["explain", "--step=3", *arguments(workdir, corpora)]) == 0


def test_documents_are_added_to_a_run_under_way(corpora, tmp_path, capsys):
    workdir = tmp_path / "run"
    stages = [{**STAGES[0], "tokens": 512 * 100}]
    half = arguments(workdir, corpora, [{**STAGES[0], "tokens": 512 * 8}])
    for verb in ("curate", "tokenize", "train"):
        assert launch.main([verb, *half]) == 0
    more = arguments(workdir, corpora, stages, **{"data.added": ({"web": str(corpora[2])},)})
    assert launch.main(["train", *more]) == 2
    assert "added-1/curated is not finished; run `launch.py curate`" in capsys.readouterr().err
    for verb in ("curate", "tokenize"):
        assert launch.main([verb, *more]) == 0
    assert launch.main(["train", *more]) == 2
    assert "train --amend` lets it hold from the next step on" in capsys.readouterr().err
    assert launch.main(["train", *more, "--amend"]) == 0
    assert [len(record["documents"]) for record in history(workdir)] == [1, 2]
    capsys.readouterr()
    assert launch.main(["explain", *more, "--document=added-1/web/000.txt"]) == 0
    steps = [int(line.split("\t")[0]) for line in capsys.readouterr().out.splitlines()[1:]]
    assert steps
    assert min(steps) > 8
    # Documents that are gone from the config, or other ones, are another run.
    assert launch.main(["train", *arguments(workdir, corpora, stages)]) == 2
    assert "data.added may only get longer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.steps": 5}, "config train.steps and batch.stages both say how long to train; give one of them"),
        ({"batch.stages": ()}, "config train.steps and batch.stages both leave open how long to train"),
        ({"batch.stages": [{"tokens": 512, "mixture": {"web": -1}}]}, "stages[0].mixture: the weight of web is -1"),
        ({"batch.stages": [{"tokens": 512, "mixture": {"web": 0}}]}, "stages[0].mixture: all weights are zero"),
        ({"batch.stages": [{"tokens": 1 << 14, "mixture": {"wep": 1}}]}, "names a source wep that no document has"),
        ({"batch.stages": [{"tokens": 512, "row": 1}]}, "unknown config key batch.stages[0].row; did you mean"),
        ({"batch.stages": [{"tokens": 1 << 24, "row_length": 1 << 17}]}, "not a row of 131,072 and the one after it"),
        (
            {"batch.max_epochs": {"web": 1}, "batch.stages": [{"tokens": 1 << 20, "mixture": {"web": 1}}]},
            "have run dry after step",
        ),
        (
            {"batch.max_epochs": {"web": 1}, "batch.stages": [{"tokens": 512}]},
            "max_epochs needs a mixture that names",
        ),
    ],
)
def test_impossible_data_is_one_line(staged, corpora, tmp_path, capsys, changes, message):
    workdir = copy(staged, tmp_path / "run")
    assert launch.main(["train", *arguments(workdir, corpora, **changes)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_shards_of_another_tokenizer_are_refused(corpora, tmp_path, capsys):
    workdir = tmp_path / "run"
    for verb in ("curate", "tokenize"):
        assert launch.main([verb, *arguments(workdir, corpora)]) == 0
    manifest = workdir / "tokens" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["spec"]["tokenizer"] = "0" * 32
    del content["fingerprint"]
    content["fingerprint"] = fingerprint(content)
    manifest.write_text(json.dumps(content))
    capsys.readouterr()
    assert launch.main(["train", *arguments(workdir, corpora)]) == 2
    assert "was encoded by another tokenizer than" in capsys.readouterr().err
