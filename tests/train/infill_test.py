"""Runs that rearrange documents, or leave repetitions out: they train, go on, and are refused where they cannot."""

import shutil

import numpy as np
import pytest

from core.files import read_json
from data.tokenize import open_split, open_tokenizer
from lab import launch, make_corpus, smoke
from train.metrics import read_metrics

SENTINELS = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
SPECIAL = f"--config.tokenizer.special={SENTINELS}"
FIM = "--config.objective.fill_in_the_middle"
REPEATS = "--config.objective.repeats"


@pytest.fixture(scope="module")
def repeating(tmp_path_factory):
    """The small corpus, and files that say one thing over and over."""
    folder = make_corpus(tmp_path_factory.mktemp("repeating"))
    for number in range(12):
        (folder / f"again-{number}.txt").write_text(f"of {number} rows\n" + "= " * 60 + f"\nthat was {number}\n")
    return folder


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory, repeating):
    """A workdir with tokens of that corpus and the three tokens."""
    workdir = tmp_path_factory.mktemp("tokenized") / "run"
    for verb in ("curate", "tokenize"):
        done(launch(verb, *flags(workdir, repeating)))
    return workdir


def flags(workdir, corpus, *more):
    """Without a recipe, which would drop what is repeated."""
    quick = ("--config.train.log_every=1", "--config.train.eval_every=0", "--config.optim.warmup_steps=1")
    return smoke(workdir, corpus, SPECIAL, "--config.data.recipe=()", *quick, *more)


def losses(workdir):
    return {row["step"]: row["loss"] for row in read_metrics(workdir / "train" / "metrics.jsonl") if "loss" in row}


def done(result):
    assert result.returncode == 0, result.stderr
    return result


def refused(result, message):
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert message in result.stderr.strip().splitlines()[-1]


def test_a_run_that_fills_in_the_middle_trains_and_goes_on_to_the_same_bits(tokenized, repeating, tmp_path):
    """With packing, and rows that change on the way."""
    workdir = shutil.copytree(tokenized, tmp_path / "run")
    stages = "[{'tokens': 6144, 'row_length': 64}, {'tokens': 6144, 'rows': 4, 'row_length': 128}]"
    own = flags(workdir, repeating, f"{FIM}.rate=0.5", f"--config.batch.stages={stages}", "--config.train.steps=0",
                "--config.batch.packing=best_fit")  # fmt: skip
    done(launch("train", *own))
    before = losses(workdir)
    assert len(before) == 24
    assert before[24] < before[1] - 0.5
    assert read_json(workdir / "train" / "manifest.json")["spec"]["objective"]["fill_in_the_middle"]["rate"] == 0.5

    newest = workdir / "train" / "checkpoints" / "24"
    fingerprints = read_json(newest / "manifest.json")["arrays"]
    shutil.rmtree(newest)
    assert "from step 20" in done(launch("train", *own)).stderr
    assert losses(workdir) == before
    assert read_json(newest / "manifest.json")["arrays"] == fingerprints

    shown = done(launch("explain", "--step=21", *own)).stdout.splitlines()[1:]
    names = {line.split("\t")[-1] for line in shown}
    assert names <= {open_split(workdir, "train").document_id(n) for n in range(len(open_split(workdir, "train")))}
    assert np.isfinite([float(line.split("\t")[6]) for line in shown if line.split("\t")[6] != "-"]).all()
    done(launch("inspect-data", *own))
    text = done(launch("generate", *own, "--prompt=the model", "--suffix= by someone.", "--max-tokens=4")).stdout
    assert text.startswith("the model")
    assert text.endswith(" by someone.\n")
    refused(launch("generate", *own, "--suffix=x", "--chat"), "--suffix is the end of a text")

    refused(launch("train", *own, f"{FIM}.rate=0.25"), "objective.fill_in_the_middle.rate was 0.5, is 0.25")


def test_a_run_that_leaves_repetitions_out_trains_and_counts_them(tokenized, repeating, tmp_path):
    predicted = {}
    for mask in ("span", "row"):
        workdir = shutil.copytree(tokenized, tmp_path / mask)
        own = flags(workdir, repeating, f"{REPEATS}.mask={mask}", "--config.batch.packing=split")
        done(launch("train", *own))
        rows = [row for row in read_metrics(workdir / "train" / "metrics.jsonl") if "predicted" in row]
        predicted[mask] = np.array([row["predicted"] for row in rows])
        found = losses(workdir)
        assert found[24] < found[1] - 0.5
    assert predicted["span"].min() < 0.95
    assert predicted["span"].max() > 0.98
    assert (predicted["row"] <= predicted["span"]).all()
    assert (predicted["row"] < predicted["span"]).any()


def test_what_is_not_asked_for_is_not_in_the_spec(finished):
    """So that a run from before these objectives goes on."""
    spec = read_json(finished / "train" / "manifest.json")["spec"]
    assert set(spec["objective"]) == {"z_loss"}


def test_tokens_that_the_tokenizer_lacks_are_refused_before_anything_runs(finished, corpus, tokenized, tmp_path):
    own = smoke(tmp_path / "new", corpus, f"{FIM}.rate=0.5")
    result = launch(*own)
    refused(result, "'<fim_prefix>' is not a special token of the tokenizer that config.tokenizer trains")
    assert "tokenizer.special=['<fim_prefix>', '<fim_suffix>', '<fim_middle>']" in result.stderr
    assert not (tmp_path / "new" / "curated").exists()

    given = open_tokenizer(finished).path
    result = launch(*own, f"--config.tokenizer.path={given}")
    refused(result, f"'<fim_prefix>' is not a special token of {given}")

    own = flags(tokenized, corpus, f"{FIM}.rate=0.5", f"{FIM}.middle=<fim_midle>", f"{FIM}.sources=('cod',)")
    refused(launch("train", *own), "fill_in_the_middle.middle: '<fim_midle>' is not a special token")


def test_a_source_that_is_not_there_is_refused(tokenized, repeating):
    result = launch("train", *flags(tokenized, repeating, f"{FIM}.rate=0.5", f"{FIM}.sources=('cod',)"))
    refused(result, "fill_in_the_middle.sources names a source cod that no document has")
    assert not (tokenized / "train").exists()
