"""JSON lines and Parquet files: their columns, and what damage and hostile rows cost."""

import gzip
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from core.errors import UserError
from data.document import Document, Dropped
from data.sources import folder, jsonl, parquet


def read_all(root):
    return [item for group in folder.partitions(root) for item in folder.read(root, group)]


def as_strings(payloads, kind):
    """An Arrow column of strings that holds any bytes, as some writers make them."""
    binary = pa.large_binary() if kind == pa.large_string() else pa.binary()
    return pa.Array.from_buffers(kind, len(payloads), pa.array(payloads, binary).buffers())


def test_a_line_over_the_limit_costs_that_line_only(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "a.jsonl.zst"
    bomb = b'{"text": "' + b"a" * 10_000_000 + b'"}\n'
    path.write_bytes(zstandard.compress(bomb + b'{"text": "after"}\n'))
    found = list(jsonl.read(path, "a"))
    assert [getattr(item, "reason", None) for item in found] == ["line_too_long", None]
    assert found[1].text == "after"


@pytest.mark.parametrize("talk", [False, True])
def test_a_row_over_the_limit_costs_that_row_only(tmp_path, monkeypatch, talk):
    monkeypatch.setattr(parquet, "MAX_ROW_BYTES", 10_000)
    said = ["before", "a" * 1_000_000, "after"]
    table = {"messages": [[{"role": "assistant", "content": one}] for one in said]} if talk else {"text": said}
    pq.write_table(pa.table(table), tmp_path / "a.parquet", compression="zstd")
    first, second, third = read_all(tmp_path)
    assert ("before" in first.text, "after" in third.text) == (True, True)
    assert (second.id, second.reason) == ("a.parquet:2", "row_too_long")
    assert second.size >= 1_000_000


def test_a_text_that_a_file_says_once_for_all_rows_is_not_held_as_often(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "BATCH_BYTES", 10 << 20)
    text = pa.DictionaryArray.from_arrays(np.zeros(64, np.int32), pa.array(["a" * 1_000_000]))
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet", compression="zstd", store_schema=False)
    assert (tmp_path / "a.parquet").stat().st_size < 5_000
    before = pa.total_allocated_bytes()
    items = parquet.read(tmp_path / "a.parquet", "a")
    assert len(next(items).text) == 1_000_000
    assert pa.total_allocated_bytes() - before < 30 << 20  # of 64 million
    assert sum(1 for _ in items) == 63


def test_fields_that_are_not_unicode_are_left_out(tmp_path):
    fields = dict.fromkeys(("id", "url", "language", "license"), "\ud800")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "ok", **fields}))
    columns = {key: as_strings([b"\xff", b"fine"], pa.string()) for key in fields}
    pq.write_table(pa.table({"text": ["ok", "ok"], **columns}), tmp_path / "b.parquet")
    assert read_all(tmp_path) == [
        Document(id="a.jsonl:1", text="ok", source="jsonl", url="a.jsonl:1"),
        Document(id="b.parquet:1", text="ok", source="parquet", url="b.parquet:1"),
        Document(id="fine", text="ok", source="parquet", url="fine", language="fine", license="fine"),
    ]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_a_parquet_row_that_is_not_unicode_costs_that_row_only(tmp_path, kind):
    payloads = [b"one", b"caf\xe9", None, "drei é".encode()] * 50
    column = as_strings(payloads, kind)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet", row_group_size=70)
    found = read_all(tmp_path)
    assert [item.id for item in found] == [f"a.parquet:{number + 1}" for number in range(200)]
    assert [getattr(item, "text", None) for item in found] == ["one", None, None, "drei é"] * 50
    assert found[1] == Dropped("a.parquet:2", "parquet", "undecodable", 4)
    assert found[2].reason == "no_text"


def test_parquet_is_read_a_few_rows_at_a_time(tmp_path):
    table = pa.table({"text": [str(number) * 20_000 for number in range(100, 700)]})
    pq.write_table(table, tmp_path / "a.parquet", write_batch_size=16)
    before = pa.total_allocated_bytes()
    items = parquet.read(tmp_path / "a.parquet", "a")
    assert next(items).text.startswith("100100")
    assert pa.total_allocated_bytes() - before < 12 << 20  # of 36 MB in one row group
    items.close()


def test_jsonl_is_read_a_line_at_a_time(tmp_path):
    whole = gzip.compress(b'{"text": "first"}\n' + os.urandom(5_000_000).hex().encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:-1000])
    items = jsonl.read(tmp_path / "a.jsonl.gz", "a")
    assert next(items).text == "first"
    assert list(items) == [Dropped("a", "jsonl", "damaged_file", len(whole) - 1000, detail="truncated")]


@pytest.mark.parametrize(("ending", "compress"), [("gz", gzip.compress), ("zst", zstandard.compress)])
def test_of_a_truncated_file_whole_lines_are_kept(tmp_path, ending, compress):
    lines = [json.dumps({"text": os.urandom(500).hex()}) for _ in range(400)]
    payload = compress("\n".join(lines).encode())
    for size in (10, len(payload) // 2, len(payload) - 1):
        (tmp_path / f"a.jsonl.{ending}").write_bytes(payload[:size])
        *before, last = read_all(tmp_path)
        assert last == Dropped(f"a.jsonl.{ending}", "jsonl", "damaged_file", size, detail="truncated")
        assert [json.dumps({"text": one.text}) for one in before] == lines[: len(before)]
    assert len(before) > 200


def test_of_a_damaged_parquet_file_the_rows_before_are_kept(tmp_path):
    texts = [os.urandom(500).hex() for _ in range(1000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=100, compression="zstd")
    payload = bytearray((tmp_path / "a.parquet").read_bytes())
    middle = len(payload) // 2
    payload[middle : middle + 2000] = bytes(2000)
    (tmp_path / "a.parquet").write_bytes(payload)
    *before, last = read_all(tmp_path)
    assert (last.id, last.reason, last.size) == ("a.parquet", "damaged_file", len(payload))
    assert [one.text for one in before] == texts[: len(before)]
    assert 300 < len(before) < 600


def test_parquet_without_text_is_refused(tmp_path):
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="has no column `text` of strings, nor `messages`; it has body"):
        list(parquet.read(tmp_path / "a.parquet", "a"))


FINEWEB = {
    "text": "text", "id": "<urn:uuid:1>", "dump": "CC-MAIN-2013-20", "url": "http://a.org/1", "language": "en",
    "date": "2013-05-18T05:48:54Z", "file_path": "s3://a/b.warc.gz", "language_score": 0.98, "token_count": 7,
}  # fmt: skip


def write_tables(where, rows):
    (where / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), where / "b.parquet")


def test_what_fineweb_publishes_is_read_with_its_dates(tmp_path):
    write_tables(tmp_path, [FINEWEB])
    kept = {"id": "<urn:uuid:1>", "url": "http://a.org/1", "language": "en", "meta": {"date": FINEWEB["date"]}}
    assert read_all(tmp_path) == [Document(text="text", source=source, **kept) for source in ("jsonl", "parquet")]


def test_columns_may_have_other_names(tmp_path):
    rows = [
        {"content": "one", "text": "not this", "page": "http://a.org", "url": "nor this", "id": "1"},
        {"content": None, "text": "nor this", "page": None, "url": None, "id": "2"},
    ]
    write_tables(tmp_path, rows)
    columns = {"text": "content", "url": "page", "date": "page"}
    for name in ("a.jsonl", "b.parquet"):
        first, second = folder.read(tmp_path, [name], columns)
        assert (first.id, first.text, first.url) == ("1", "one", "http://a.org")
        assert first.meta == {"date": "http://a.org"}
        assert second.reason == "no_text"


def test_an_id_may_be_an_integer(tmp_path):
    write_tables(tmp_path, [{"text": "one", "id": 17}, {"text": "two", "id": None}, {"text": "three", "id": -2}])
    talk = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
    pq.write_table(pa.table({"messages": [talk], "id": pa.array([2**64 - 1], pa.uint64())}), tmp_path / "c.parquet")
    (tmp_path / "d.jsonl").write_text(json.dumps({"messages": talk, "id": 10**30}))
    pq.write_table(pa.table({"text": ["x"], "number": pa.array([5], pa.int8())}), tmp_path / "e.parquet")
    assert [item.id for item in read_all(tmp_path)] == [
        *("17", "a.jsonl:2", "-2"),
        *("17", "b.parquet:2", "-2"),
        *(str(2**64 - 1), str(10**30), "e.parquet:1"),
    ]
    assert [item.id for item in folder.read(tmp_path, ["e.parquet"], {"id": "number"})] == ["5"]


@pytest.mark.parametrize("value", [True, 1.5, [1], {"a": 1}, ""])
def test_nothing_else_is_an_id(tmp_path, value):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "one", "id": value}))
    pq.write_table(pa.table({"text": ["one"], "id": [value]}), tmp_path / "b.parquet")
    assert [item.id for item in read_all(tmp_path)] == ["a.jsonl:1", "b.parquet:1"]


def test_a_column_that_is_missing_is_named(tmp_path):
    write_tables(tmp_path, [{"content": "one", "id": 1}])
    with pytest.raises(UserError, match=r"no column `text` of strings.*it has content, id; data\.columns can name"):
        list(folder.read(tmp_path, ["b.parquet"]))
    for columns, said in (
        ({"text": "body"}, "`body`.*its text"),
        ({"text": "content", "url": "id"}, "`id`.*its url"),
    ):
        with pytest.raises(UserError, match=rf"b\.parquet has no column {said}; it has content, id"):
            list(folder.read(tmp_path, ["b.parquet"], columns))
    assert [item.reason for item in folder.read(tmp_path, ["a.jsonl"], {"text": "body"})] == ["no_text"]
