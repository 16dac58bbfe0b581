import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from core.errors import UserError
from core.files import fingerprint, write_json
from data.document import Document, Dropped
from data.sources import folder, html, jsonl, parquet, python_installation, text


def read_all(root):
    return [item for group in folder.partitions(root) for item in folder.read(root, group)]


def as_strings(payloads, kind):
    """An Arrow column of strings that holds any bytes, as some writers make them."""
    binary = pa.large_binary() if kind == pa.large_string() else pa.binary()
    return pa.Array.from_buffers(kind, len(payloads), pa.array(payloads, binary).buffers())


def test_a_folder_of_every_kind(tmp_path):
    (tmp_path / "a.txt").write_text("plain\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.md").write_text("# title\n")
    (tmp_path / "c.html").write_text("<p>one</p><script>no()</script><p>two &amp; three</p>")
    line = json.dumps({"text": "é", "id": "x", "license": "CC0-1.0"}) + "\n"
    (tmp_path / "d.jsonl").write_text(line)
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(b'{"text": "two"}\n\n{"text": "three"}'))
    (tmp_path / "f.jsonl.zst").write_bytes(zstandard.compress(b'{"text": "four"}\n'))
    pq.write_table(pa.table({"text": ["five", None], "url": ["u", "v"]}), tmp_path / "g.parquet")
    (tmp_path / "h.bin").write_bytes(b"\0\1")
    found = read_all(tmp_path)
    texts = {item.id: item.text for item in found if isinstance(item, Document)}
    assert texts == {
        "a.txt": "plain\n",
        "deep/b.md": "# title\n",
        "c.html": "<p>one</p><script>no()</script><p>two &amp; three</p>",
        "x": "é",
        "e.jsonl.gz:1": "two",
        "e.jsonl.gz:3": "three",
        "f.jsonl.zst:1": "four",
        "g.parquet:1": "five",
    }
    assert [(item.id, item.reason) for item in found if isinstance(item, Dropped)] == [("g.parquet:2", "no_text")]


def test_what_cannot_be_read_is_dropped_with_a_reason(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.html").write_bytes(bytes(range(256)))
    lines = [
        b'{"text": "ok"}',
        b"not json",
        b'{"body": 1}',
        b'"\xff"',
        rb'{"text": "\ud800"}',
        b"[" * 100_000,
    ]
    (tmp_path / "c.jsonl").write_bytes(b"\n".join(lines))
    reasons = {item.id: item.reason for item in read_all(tmp_path) if isinstance(item, Dropped)}
    assert reasons == {
        "a.txt": "undecodable",
        "b.html": "undecodable",
        "c.jsonl:2": "not_json",
        "c.jsonl:3": "no_text",
        "c.jsonl:4": "undecodable",
        "c.jsonl:5": "undecodable",
        "c.jsonl:6": "not_json",
    }


def test_a_line_over_the_limit_costs_that_line_only(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "a.jsonl.zst"
    bomb = b'{"text": "' + b"a" * 10_000_000 + b'"}\n'
    path.write_bytes(zstandard.compress(bomb + b'{"text": "after"}\n'))
    found = list(jsonl.read(path, "a"))
    assert [getattr(item, "reason", None) for item in found] == ["line_too_long", None]
    assert found[1].text == "after"


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


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_damaged_file_is_dropped_and_others_are_read(tmp_path, name):
    (tmp_path / name).write_bytes(b"damaged" * 10)
    (tmp_path / "b.txt").write_text("text")
    found, other = read_all(tmp_path)
    assert (found.id, found.reason, found.size) == (name, "damaged_file", 70)
    assert found.detail
    assert str(tmp_path) not in found.detail  # or the bytes of a corpus would depend on where files lie
    assert other.text == "text"


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


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet", "a.xml.bz2"])
def test_a_disk_that_fails_is_no_damaged_file(tmp_path, monkeypatch, name):
    """Or another run would find other documents."""
    (tmp_path / name).write_bytes(b"")

    def fails(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(jsonl.io, "BufferedReader", fails)
    monkeypatch.setattr(parquet.pq, "ParquetFile", fails)
    monkeypatch.setattr("data.sources.wiki.bz2.BZ2File", fails)
    with pytest.raises(UserError, match=rf"{name} cannot be read \(Input/output error\)"):
        read_all(tmp_path)


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


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        folder.partitions(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds none of the files that are read"):
        folder.partitions(tmp_path)


def test_files_that_are_not_read_are_told_by_their_endings(tmp_path, capsys):
    (tmp_path / "deep" / ".git").mkdir(parents=True)
    for name in ("a.txt", ".DS_Store", "deep/.git/objects", "deep/b.MD"):
        (tmp_path / name).write_text("text")
    folder.inputs(tmp_path)
    assert capsys.readouterr().err == ""
    (tmp_path / "more.txt.gz").write_bytes(b"")
    folder.inputs(tmp_path)
    told = f"data.path={tmp_path}: 1 file is not read, by their endings: .txt.gz 1\n"
    assert capsys.readouterr().err == told
    for name in ("x.v1.json", "y.v2.JSON", "deep/b.csv", "README", "a.sentence of several words", "z.\x1b[2J"):
        (tmp_path / name).write_text("")
    folder.inputs(tmp_path)
    told = f"data.path={tmp_path}: 7 files are not read, by their endings: none 3, .json 2, .csv 1, .txt.gz 1\n"
    assert capsys.readouterr().err == told
    for number in range(1000):
        (tmp_path / f"a.{number}").write_text("")
    folder.inputs(tmp_path)
    told = capsys.readouterr().err
    assert "1,007 files are not read" in told
    assert told.endswith(", .100 1, .101 1, .102 1, 996 other endings 996\n")


def test_links_do_not_lead_out_of_the_folder(tmp_path):
    (tmp_path / "secret.txt").write_text("not yours")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "a.txt").write_text("yours")
    (inside / "link.txt").symlink_to(tmp_path / "secret.txt")
    assert [path.name for path in folder.files(inside)] == ["a.txt"]


def test_links_are_counted(tmp_path, capsys):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0123").write_text("text")
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "a.txt").symlink_to("../../blobs/0123")
    (snapshot / "b").symlink_to("../../blobs")
    (snapshot / "dangling.txt").symlink_to("../../blobs/4567")
    (snapshot / "circle.txt").symlink_to("circle.txt")
    with pytest.raises(
        UserError, match=r"2 links lead outside.*set data.path to the folder they point to"
    ) as failure:
        folder.partitions(snapshot)
    assert f"({tmp_path / 'blobs'})" in str(failure.value)
    assert f"one that holds both ({tmp_path})" in str(failure.value)
    assert [item.text for item in read_all(tmp_path)] == ["text"]
    (snapshot / "c.txt").write_text("own")
    assert [name for name, _, _ in folder.inputs(snapshot)["files"]] == ["c.txt"]
    assert "2 links lead out of this folder" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(UserError, match="closed cannot be read"):
        folder.partitions(tmp_path)


def test_a_failing_walk_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "closed").mkdir()

    def scandir(path, scan=os.scandir):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"closed cannot be read \(Permission denied\)"):
        folder.partitions(tmp_path)


def test_an_older_output_is_not_a_source(tmp_path):
    for name in ("curated.stale-1", "notes.stale-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.md").write_text("text")
    write_json(tmp_path / "curated.stale-1" / "manifest.json", {})
    assert [item.id for item in read_all(tmp_path)] == ["notes.stale-1/a.md"]


def test_names_may_be_any_bytes(tmp_path):
    where = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(where)
    line = json.dumps({"text": "jsonl"})
    for name, payload in {b"\xff.txt": "text", b"\xff.html": "html", b"\xff.jsonl": line}.items():
        Path(os.fsdecode(where + b"/" + name)).write_text(payload)
    with open(where + b"/\xff.parquet", "wb") as file:
        pq.write_table(pa.table({"text": ["parquet"]}), file)
    (tmp_path / r"\xff.txt").write_text("backslash")
    assert fingerprint(folder.inputs(tmp_path))
    found = {item.id: item for item in read_all(tmp_path)}
    assert {name: item.text for name, item in found.items()} == {
        r"caf\xe9/\xff.txt": "text",
        r"caf\xe9/\xff.html": "html",
        r"caf\xe9/\xff.jsonl:1": "jsonl",
        r"caf\xe9/\xff.parquet:1": "parquet",
        r"\x5cxff.txt": "backslash",
    }
    assert all(name.encode() and item.url == name for name, item in found.items())
    alone = Path(os.fsdecode(where + b"/\xff.txt"))
    assert [item.id for item in read_all(alone)] == [r"\xff.txt"]


def test_a_name_leads_back_to_its_path():
    raw = [
        b"plain",
        "é".encode(),
        b"\xe9",
        rb"\xe9",
        rb"\x5c",
        rb"\\xe9",
        b"\\\xe9",
        b"\\x\xe9",
        rb"\xE9",
        rb"\xg",
        b"a/\xff/b",
    ]
    paths = [Path(os.fsdecode(name)) for name in raw]
    names = [folder.to_name(path) for path in paths]
    assert [folder.to_path(name) for name in names] == paths
    assert len(set(names)) == len(raw)
    assert names[:3] == ["plain", "é", r"\xe9"]


def test_a_single_file_is_a_corpus(tmp_path):
    (tmp_path / "a.txt").write_text("alone")
    assert [item.text for item in read_all(tmp_path / "a.txt")] == ["alone"]


def test_a_long_text_is_cut_at_blank_lines_and_loses_nothing():
    paragraphs = [f"{number} " + "x" * 900 + "\n\n" for number in range(200)]
    whole = "".join(paragraphs) + "\n\nend"
    pieces = list(text.split_long(whole))
    assert "".join(pieces) == whole
    assert len(pieces) > 2
    assert all(len(piece) <= text.LONG_TEXT for piece in pieces)
    assert all(piece[0].isdigit() for piece in pieces[1:])


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\n\n\n", "\r\n\r\n\r\n", "\n", "\r\n"])
def test_a_long_text_is_cut_after_paragraphs_or_else_lines(end):
    whole = "".join(f"{number} xxxx{end}" for number in range(100))
    pieces = list(text.split_long(whole, 50))
    assert "".join(pieces) == whole
    assert all(0 < len(piece) <= 50 and piece[0].isdigit() and piece.endswith(end) for piece in pieces)


def test_a_long_text_without_lines_is_cut_at_the_limit():
    assert list(text.split_long("x" * 27 + "\n\ny\n\n", 10)) == ["x" * 10, "x" * 10, "x" * 7 + "\n\n", "y\n\n"]
    assert list(text.split_long("\n" * 25, 10)) == ["\n" * 10, "\n" * 10, "\n" * 5]


def test_pieces_of_a_long_text_are_numbered(tmp_path, monkeypatch):
    monkeypatch.setattr(text.split_long, "__defaults__", (10,))
    (tmp_path / "a.txt").write_bytes(b"first\r\n\r\nsecond\r\n")
    (tmp_path / "b.txt").write_text("short")
    (tmp_path / "c.txt").write_text("")
    found = [(item.id, item.text) for item in read_all(tmp_path)]
    assert found == [
        ("a.txt#0", "first\r\n\r\n"),
        ("a.txt#1", "second\r\n"),
        ("b.txt", "short"),
        ("c.txt", ""),  # the recipe counts it as too short
    ]


def test_html_survives_what_pages_do():
    page = "<div>a<style>x{}</style><b>b</b><script>if (a<b) {}</script><p>c<p>d<svg><title>t</title></svg>e"
    assert html.visible_text(page) == "ab\nc\nde\n"


@pytest.mark.parametrize(
    ("page", "visible"),
    [
        ("<html><head><title>T</title><meta charset=utf-8><body><p>one", "one\n"),
        ("<head><title>T</title><p>one", "one\n"),
        ("<head><title>T <b>x</b></title>\n one <b>two</b>", "one two\n"),
        ("<head><noscript><div>no</div></noscript><template><p>no</template><link></head>yes", "yes\n"),
        ("<head><noscript>no<body>yes", "yes\n"),
        ("<title>T</title><p>one", "T\none\n"),
    ],
)
def test_html_needs_no_end_tag_of_head(page, visible):
    assert html.visible_text(page) == visible


@pytest.mark.parametrize(
    ("page", "visible"),
    [
        ("<p title='a>b' class=\"c>\">one", "one\n"),
        ("<a href=x?y=1>1 < 2 && 3<4</a>", "1 < 2 && 3<4\n"),
        ("<!DOCTYPE html><!-- <p>no --->a<!-->b<?php no ?>c</>d</ no>e", "abcde\n"),
        ("<SCRIPT>'</b>' + no</Script >a<svg/>b<style>no", "ab\n"),
        ("one<p", "one\n"),
        ("&eacute;&#233;&lt;&bogus;", "éé<&bogus;\n"),
        ("&#" + "9" * 10_000 + ";", "\ufffd\n"),
    ],
)
def test_html_is_read_as_the_standard_says(page, visible):
    assert html.visible_text(page) == visible


@pytest.mark.parametrize(
    ("page", "visible"),
    [
        ("<a " * 20_000, ""),
        ("<a b='" * 20_000, ""),
        ("<!--" * 20_000, ""),
        ("</" * 100_000, ""),
        ("<svg>" * 50_000 + "</p>" * 50_000, ""),
        ("<svg>" * 50_000 + "</svg>" * 50_000 + "after", "after"),
        ("<head><svg></head>" * 20_000 + "after", "after"),
        ("<script></script" * 20_000, ""),
        ("<" * 100_000, "<" * 100_000),
        ("&" * 100_000, "&" * 100_000),
    ],
    ids=lambda value: value[:20],
)
def test_html_takes_time_in_proportion_to_a_hostile_page(page, visible):
    assert html.visible_text(page) == visible + "\n"


def test_the_python_installation_is_real_text_with_a_licence():
    ids, sources = set(), set()
    for partition in python_installation.partitions(None):
        for item in python_installation.read(None, partition):
            if isinstance(item, Document):
                assert item.license == "PSF-2.0"
                assert item.url.startswith("python:")
                assert item.id not in ids
                ids.add(item.id)
                sources.add(item.source)
    assert {"python/source/argparse", "python/builtins/math"} <= ids
    assert "python-source" in sources
    assert len(ids) > 300
    assert not any("test" in identifier.split(".") for identifier in ids)


def test_docstrings_are_gathered_once_each():
    import itertools

    gathered = python_installation.docstrings(itertools)
    assert "itertools.chain\n" in gathered
    assert gathered.count(itertools.chain.__doc__.strip()) == 1


def test_the_python_installation_is_known_by_every_name_and_size(tmp_path, monkeypatch):
    def inputs(sizes):
        for name, size in sizes.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("#" * size)
        python_installation.modules.cache_clear()
        return python_installation.inputs(None)

    monkeypatch.setattr(python_installation.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    try:
        first = inputs({"a.py": 1, "b/__init__.py": 2, "site-packages/c.py": 3, "b/test/d.py": 4})
        assert first["modules"] == 2
        assert [name for name, _ in python_installation.modules()] == ["a", "b"]
        assert python_installation.modules() is python_installation.modules()
        assert inputs({"a.py": 2, "b/__init__.py": 1}) != first  # the sum is the same
        assert inputs({"a.py": 1, "b/__init__.py": 2, "site-packages/c.py": 5}) == first
    finally:
        python_installation.modules.cache_clear()
