"""The explain verb, as a user runs it on a finished run."""

import shutil

import numpy as np
import pytest

from data.tokenize import open_split
from lab import launch, smoke
from train.metrics import read_metrics


def table(result):
    assert result.returncode == 0, result.stderr
    head, *rows = (line.split("\t") for line in result.stdout.splitlines())
    return [dict(zip(head, row)) for row in rows]


def loss_of_step(finished, corpus, folder, step):
    """What training logs for a step, from the checkpoint before it on."""
    workdir = shutil.copytree(finished, folder / "run")
    shutil.rmtree(workdir / "train" / "checkpoints" / "24")
    result = launch("train", *smoke(workdir, corpus, "--config.train.log_every=1"))
    assert "from step 20" in result.stderr
    rows = read_metrics(workdir / "train" / "metrics.jsonl")
    return next(row["loss"] for row in rows if row["step"] == step and "loss" in row)


def test_a_step_has_its_documents_and_their_loss(finished, corpus, tmp_path):
    """The mean over the step's tokens is the loss that training would log for that step."""
    result = launch("explain", "--step=21", *smoke(finished, corpus))
    rows = table(result)
    assert "loss in nats a token under the checkpoint of step 20" in result.stderr
    assert {int(row["row"]) for row in rows} == set(range(8))
    shards = open_split(finished, "train")
    total = predicted = 0
    for row in rows:
        begin, end = map(int, row["tokens"].split("-"))
        length = int(shards.lengths[shards.find(row["document"])])
        count = min(end, length - 1) - begin
        total, predicted = total + count * float(row["loss"]), predicted + count
    assert total / predicted == pytest.approx(loss_of_step(finished, corpus, tmp_path, 21), abs=1e-4)


def test_a_document_has_its_steps_and_they_agree(finished, corpus):
    identifier = open_split(finished, "train").document_id(0)
    rows = table(launch("explain", f"--document={identifier}", *smoke(finished, corpus)))
    assert rows
    assert {row["when"] for row in rows} == {"past"}
    step = rows[-1]["step"]
    there = table(launch("explain", f"--step={step}", "--checkpoint=20", *smoke(finished, corpus)))
    own = [row for row in there if row["document"] == identifier]
    assert {(row["row"], row["positions"], row["tokens"], row["epoch"]) for row in own} == {
        (row["row"], row["positions"], row["tokens"], row["epoch"]) for row in rows if row["step"] == step
    }
    assert np.isfinite([float(row["loss"]) for row in own]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "explain takes either --step=K or --document=ID"),
        (["--step=25"], "step 25 is not in this run, whose steps are 1 to 24"),
        (["--step=3", "--checkpoint=4"], "holds no checkpoint of step 4; there are [20, 24]"),
        (["--document=none"], "document none is not trained on: there is none of this id"),
    ],
)
def test_what_cannot_be_explained(finished, corpus, arguments, message):
    result = launch("explain", *arguments, *smoke(finished, corpus))
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_held_out_documents_are_said_to_be(finished, corpus):
    identifier = open_split(finished, "heldout").document_id(0)
    result = launch("explain", f"--document={identifier}", *smoke(finished, corpus))
    assert "is not trained on: it is held out" in result.stderr
