import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from core.errors import UserError
from data.document import Document, Dropped
from data.sources import folder, html, jsonl, parquet, python_installation, text


def read_all(root):
    return [item for group in folder.partitions(root) for item in folder.read(root, group)]


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
        "c.html": "one\ntwo & three\n",
        "x": "é",
        "e.jsonl.gz:1": "two",
        "e.jsonl.gz:3": "three",
        "f.jsonl.zst:1": "four",
        "g.parquet:1": "five",
    }
    assert [(item.id, item.reason) for item in found if isinstance(item, Dropped)] == [("g.parquet:2", "no_text")]


def test_what_cannot_be_read_is_dropped_with_a_reason(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.html").write_bytes(b"<p>\xff</p>")
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


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_damaged_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"damaged" * 10)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        read_all(tmp_path)


def test_a_truncated_gzip_is_named(tmp_path):
    payload = gzip.compress(os.urandom(1000).hex().encode())
    (tmp_path / "a.jsonl.gz").write_bytes(payload[: len(payload) // 2])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz is damaged"):
        read_all(tmp_path)


def test_parquet_without_text_is_refused(tmp_path):
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="has no column `text` of strings; it has body"):
        list(parquet.read(tmp_path / "a.parquet", "a"))


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        folder.partitions(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds none of the files that are read"):
        folder.partitions(tmp_path)


def test_links_do_not_lead_out_of_the_folder(tmp_path):
    (tmp_path / "secret.txt").write_text("not yours")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "a.txt").write_text("yours")
    (inside / "link.txt").symlink_to(tmp_path / "secret.txt")
    assert [path.name for path in folder.files(inside)] == ["a.txt"]


def test_a_single_file_is_a_corpus(tmp_path):
    (tmp_path / "a.txt").write_text("alone")
    assert [item.text for item in read_all(tmp_path / "a.txt")] == ["alone"]


def test_a_long_text_is_cut_at_blank_lines_and_loses_nothing():
    paragraphs = [f"{number} " + "x" * 900 + "\n\n" for number in range(200)]
    whole = "".join(paragraphs) + "\n\nend"
    pieces = text.split_long(whole)
    assert "".join(pieces) == whole
    assert len(pieces) > 2
    assert all(len(piece) <= text.LONG_TEXT for piece in pieces)
    assert all(piece[0].isdigit() for piece in pieces[1:])


def test_html_survives_what_pages_do():
    parser = html.VisibleText()
    parser.feed("<div>a<style>x{}</style><b>b</b><script>if (a<b) {}</script><p>c<p>d<svg><title>t</title></svg>e")
    parser.close()
    assert parser.text() == "ab\nc\nde\n"


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
