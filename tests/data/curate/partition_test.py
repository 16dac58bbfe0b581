"""A batch through steps of the user's own: columns of every type that they may add."""

import dataclasses
import datetime
import decimal
import json
from typing import ClassVar

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError, explain
from data.config import DataConfig
from data.curate import engine
from data.curate.only import Only
from data.curate.partition import from_batch, through, to_batch
from data.curate.step import Outcome, TextRule, replace
from data.curate.tally import PartTally
from data.document import Document

COLUMNS: dict[str, pa.Array] = {}  # what `Adds` adds, whatever the batch


@dataclasses.dataclass(frozen=True)
class Adds:
    """Adds a column."""

    version: ClassVar[int] = 1
    column: str = "found"

    def __call__(self, batch):
        return Outcome(batch.append_column(self.column, COLUMNS[self.column]), [None] * batch.num_rows)


def metas(monkeypatch, column, name="found"):
    """What of a column ends up in the `meta` of documents, which have one already."""
    monkeypatch.setitem(COLUMNS, name, column)
    batch = to_batch([Document(str(number), "text", "", meta={"own": 1}) for number in range(len(column))])
    kept, _ = through({"my:Adds": Adds(name)}, batch, PartTally(["my:Adds"]))
    found = [document.meta for document in from_batch(kept)]
    assert all(meta.pop("own") == 1 for meta in found)
    json.dumps(found, allow_nan=False)
    return [meta[name] for meta in found]


NOON = datetime.datetime(2026, 3, 29, 12, 0, 0, 120_000)


@pytest.mark.parametrize(
    ("values", "kind", "said"),
    [
        ([NOON.date()], None, "2026-03-29"),
        ([NOON], pa.timestamp("us"), "2026-03-29T12:00:00.120000"),
        ([NOON], pa.timestamp("s"), "2026-03-29T12:00:00"),
        ([NOON.replace(tzinfo=datetime.UTC)], pa.timestamp("ms", "UTC"), "2026-03-29T12:00:00.120000+00:00"),
        ([1_774_785_600_123_456_789], pa.timestamp("ns"), "2026-03-29T12:00:00.123456"),
        ([NOON.time()], None, "12:00:00.120000"),
        ([[NOON.date(), None]], None, ["2026-03-29", None]),
        ([{"when": NOON, "score": 0.5}], None, {"when": "2026-03-29T12:00:00.120000", "score": 0.5}),
        (["text"], pa.large_string(), "text"),
        (["text"], pa.dictionary(pa.int8(), pa.string()), "text"),
        ([2**64 - 1], pa.uint64(), 2**64 - 1),
        ([True], None, True),
        ([None], pa.binary(), None),
        ([float("nan")], None, None),
        ([float("inf")], pa.float32(), None),
        ([[1.5, float("-inf")]], None, [1.5, None]),
    ],
)
def test_what_json_can_say_goes_into_meta(monkeypatch, values, kind, said):
    assert metas(monkeypatch, pa.array(values, kind)) == [said]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([None, b"ab"]), r"column found of binary does not fit into JSON \(\"b'ab'\" is a bytes\)"),
        (pa.array([decimal.Decimal("1.5")] * 2), r"column found of decimal128\(2, 1\) .*is a Decimal"),
        (pa.array([datetime.timedelta(1)] * 2), r"column found of duration\[us\] .*is a timedelta"),
        (
            pa.array([[("a", 1)]] * 2, pa.map_(pa.string(), pa.int8())),
            r"column found of map<string, int8.* is a tuple",
        ),
        (pa.array([[1], [2**60 + 1]], pa.list_(pa.timestamp("ns"))), r"column found of list<.*anosecond"),
        (pa.array([2**62] * 2, pa.timestamp("us")), r"column found of timestamp\[us\] does not fit"),
    ],
)
def test_what_json_cannot_say_is_told_with_its_step_and_column(monkeypatch, column, said):
    with pytest.raises(UserError, match="step my:Adds: its " + said) as told:
        metas(monkeypatch, column)
    assert "\n" not in str(told.value)


VALUES = st.one_of(
    st.lists(st.none() | st.booleans(), min_size=1),
    st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=1),
    st.lists(st.none() | st.floats(), min_size=1),
    st.lists(st.none() | st.text(), min_size=1),
    st.lists(st.none() | st.dates(), min_size=1),
    st.lists(st.none() | st.datetimes(), min_size=1),
    st.lists(st.none() | st.times(), min_size=1),
    st.lists(st.lists(st.floats() | st.none()), min_size=1),
)


@settings(deadline=None, derandomize=True)
@given(VALUES)
def test_values_are_found_again(values):
    with pytest.MonkeyPatch.context() as patch:
        found = metas(patch, pa.array(values))
    for value, said in zip(values, found, strict=True):
        if isinstance(value, datetime.date | datetime.time):
            assert type(value).fromisoformat(said) == value
        elif isinstance(value, float):
            assert said == value or (said is None and value - value != 0)
        elif not isinstance(value, list):
            assert said == value


def test_a_column_that_a_later_step_takes_out_may_be_anything(monkeypatch):
    monkeypatch.setitem(COLUMNS, "found", pa.array([b"ab"]))

    def takes_out(batch):
        return Outcome(batch.drop_columns(["found"]), [None])

    kept, _ = through({"one": Adds(), "other": takes_out}, to_batch([Document("a", "text", "")]))
    assert [document.meta for document in from_batch(kept)] == [{}]


def test_a_step_that_gives_what_json_cannot_say_ends_curation_in_one_line(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    given = DataConfig(str(tmp_path / "in.jsonl"), recipe=({"step": "curate_lab:Digest"},), workers=1)
    with pytest.raises(UserError, match=r"step curate_lab:Digest: its column digest of binary .* JSON"):
        engine.curate(given, tmp_path / "w")


def three():
    return to_batch([Document(f"d{number}", "text" * number, "s", language="de") for number in range(3)])


@pytest.mark.parametrize(
    ("gives", "said"),
    [
        (lambda _: None, "gave a NoneType instead of an Outcome"),
        (lambda batch: (batch, [None] * 3), "gave a tuple instead of an Outcome"),
        (lambda batch: Outcome(batch, None), "gave an Outcome whose `reasons` is a NoneType"),
        (lambda _: Outcome(None, []), "gave an Outcome whose `batch` is a NoneType"),
        (lambda batch: Outcome(batch, [None] * 3, "abc"), "gave an Outcome whose `details` is a str"),
        (lambda batch: Outcome(batch, [None]), "gave 3 documents and 1 reasons of 3"),
        (lambda batch: Outcome(batch.slice(1), [None] * 3), "gave 2 documents and 3 reasons of 3"),
        (lambda batch: Outcome(batch, [None, True, None]), "gave True as the reason of document d1, which is"),
        (lambda batch: Outcome(batch, [None] * 3, ["a"]), "gave 1 details of 3 reasons"),
        (lambda batch: Outcome(batch, ["a"] * 3, ["a", "b", 3]), "gave 3 as the detail of document d2"),
        (lambda batch: Outcome(batch.drop_columns(["text"]), [None] * 3), "without a string text of every document"),
        (lambda batch: Outcome(replace(batch, "url", ["a", None, "b"]), [None] * 3), "without a string url of every"),
        (lambda _: 1 // 0, r"failed on the batch that begins with document d0 \(ZeroDivisionError: integer .*\)"),
        (lambda _: [].pop().x, r"\(IndexError: pop from empty list\); --debug shows where in the code"),
        (lambda _: Outcome(), r"\(TypeError: "),
    ],
)  # fmt: skip
@pytest.mark.parametrize("only", [False, True])
def test_what_a_step_must_not_give_is_told_with_its_name(gives, said, only):
    with pytest.raises(UserError, match=f"^step my:Own .*{said}"):
        through({"my:Own": Only(gives, "de") if only else gives}, three())


class Fails(TextRule):
    """On one text."""

    def __init__(self, error):
        self.error = error

    def reason(self, text):
        if text == "text":
            raise self.error
        return "empty" if not text else None


def test_a_rule_that_fails_is_told_with_the_document_and_its_traceback_is_at_hand():
    with pytest.raises(UserError, match=r"^step my:Own failed on document d1 \(ZeroDivisionError\); --debug") as told:
        through({"my:Own": Fails(ZeroDivisionError())}, three())
    assert isinstance(told.value.__cause__.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("error", [UserError("this text is refused"), OSError(28, "No space left on device", "here")])
def test_what_a_rule_tells_the_user_itself_is_told_so(error):
    with pytest.raises(type(error)) as told:
        through({"my:Own": Only(Fails(error), "de")}, three())
    assert explain(told.value).line in ("this text is refused", "here: no space is left on the disk")


def test_a_rule_that_answers_true_is_told():
    with pytest.raises(UserError, match="step my:Own gave True as the reason of document d1"):
        through({"my:Own": Answers()}, three())


class Answers(TextRule):
    """As a predicate would."""

    def reason(self, text):
        return text == "text" or None
