import json
import time
import types

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from core.errors import UserError
from data.config import BatchConfig
from data.pipeline import Batches
from data.shards import TokenDocument, TokenShards, write_shard
from lab import make_plan
from train.goodput import Goodput, read
from train.metrics import Journal, read_metrics

PLAN = types.SimpleNamespace(steps=100, tokens_before=lambda step: 10 * step)


def journal(folder, start=0):
    return Journal(folder, start, PLAN, Goodput())


def test_rows_after_the_checkpoint_are_removed_on_resume(tmp_path):
    first = journal(tmp_path)
    for step in (10, 20, 30):
        first.log(step, {"loss": 1.0 / step})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # cut off by a kill
    resumed = journal(tmp_path, start=20)
    resumed.log(30, {"loss": 7.0})
    resumed.close()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert rows[-1]["loss"] == 7.0
    assert rows[-1]["tokens"] == 300
    assert rows[2]["seconds"] >= rows[1]["seconds"]


def test_what_is_not_finite_is_left_out_and_ends_the_run_after_so_many_in_a_row(tmp_path):
    documents = [TokenDocument(f"page-{number}", "web", [1] * 40, 40) for number in range(9)]
    shards = TokenShards(tmp_path, [write_shard(tmp_path / "t.array_record", documents, np.dtype("<u2"))], "<u2")
    plan = make_plan(shards, BatchConfig(rows=4, row_length=40), steps=100)
    book = Journal(tmp_path, 0, plan, Goodput(), nonfinite_limit=3)
    book.log(10, {"loss": float("nan"), "nonfinite_in_a_row": 2, "skipped_steps": 2})
    book.log(20, {"loss": 1.5, "nonfinite_in_a_row": 0, "skipped_steps": 3})
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert "loss" not in first
    assert (first["nonfinite_in_a_row"], second["loss"]) == (2, 1.5)
    with pytest.raises(UserError) as refusal:
        book.log(30, {"loss": 1.5, "nonfinite_in_a_row": 8})  # five steps after the third, which none were taken in
    message = str(refusal.value)
    assert "the loss or the gradients of steps 23 to 25 were not finite" in message
    names = [shards.document_id(found.piece.document) for found in Batches(plan).documents(22)]
    assert f"step 23 read {', '.join(dict.fromkeys(names))} (`launch.py explain --step=23`" in message
    assert "train --skip=23:25" in message


def test_tensorboard_gets_the_same_numbers(tmp_path):
    book = journal(tmp_path)
    book.log(10, {"loss": 2.5, "grad_norm": 0.5})
    book.close()
    (events,) = (tmp_path / "tensorboard").glob("events.*")
    found = {}
    payload = events.read_bytes()
    while payload:  # length (8 bytes), its crc (4), the event, its crc (4)
        length = int.from_bytes(payload[:8], "little")
        event = event_pb2.Event.FromString(payload[12 : 12 + length])
        found.update({value.tag: (event.step, value.simple_value) for value in event.summary.value})
        payload = payload[16 + length :]
    assert found["loss"] == (10, 2.5)
    assert found["grad_norm"] == (10, 0.5)


def test_paused_time_is_not_training_time(tmp_path):
    book = journal(tmp_path)
    before = book.clock
    with book.paused():
        book_clock_inside = book.clock
    assert book_clock_inside == before
    assert book.clock > before
    book.close()
    assert json.dumps(read_metrics(book.path)) == "[]"


def test_every_second_belongs_to_one_kind_and_lost_steps_are_rework(tmp_path, monkeypatch):
    """By a clock that stands still but where the test moves it."""
    clock = [100.0]

    def pass_by(seconds):
        clock[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    goodput = Goodput()
    first = Journal(tmp_path, 0, PLAN, goodput)
    for kind, step in (("compile", 10), ("step", 20), ("data", 30)):
        goodput.switch(kind)
        pass_by(2.0)
        with goodput.on("eval"):
            pass_by(1.0)
        pass_by(0.5)
        first.log(step, {"loss": 1.0})
    first.close()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    spent = read(rows[-1])
    assert sum(spent.values()) == pytest.approx(10.5)
    assert {kind: spent[kind] for kind in ("compile", "step", "data", "eval", "rework")} == pytest.approx(
        {"compile": 2.5, "step": 2.5, "data": 2.5, "eval": 3.0, "rework": 0.0}
    )
    resumed = Goodput()
    Journal(tmp_path, 10, PLAN, resumed).close()
    assert resumed.seconds["rework"] == pytest.approx(7.0)
    assert resumed.seconds["compile"] == pytest.approx(2.5)


def test_arrays_are_lists_of_four_digits_and_not_given_to_tensorboard(tmp_path):
    book = journal(tmp_path)
    book.log(10, {"loss": 2.5, "max_logit_LN": np.array([[1.23456, 98765.4], [0.000123456, -3.0]])})
    book.close()
    (row,) = read_metrics(book.path)
    assert row["max_logit_LN"] == [[1.235, 98770.0], [0.0001235, -3.0]]
    (events,) = (tmp_path / "tensorboard").glob("events.*")
    assert b"max_logit_LN" not in events.read_bytes()
