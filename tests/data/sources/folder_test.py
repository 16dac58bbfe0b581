"""Folders of documents: what is read of them, and what is told of the rest."""

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
from data.sources import folder, jsonl, parquet


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


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_damaged_file_is_dropped_and_others_are_read(tmp_path, name):
    (tmp_path / name).write_bytes(b"damaged" * 10)
    (tmp_path / "b.txt").write_text("text")
    found, other = read_all(tmp_path)
    assert (found.id, found.reason, found.size) == (name, "damaged_file", 70)
    assert found.detail
    assert str(tmp_path) not in found.detail  # or the bytes of a corpus would depend on where files lie
    assert other.text == "text"


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
