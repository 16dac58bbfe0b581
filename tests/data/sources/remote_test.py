"""Files behind HTTP and in stores, from servers that fail and lists that lie."""

import bz2
import functools
import gzip
import io
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from archives_lab import PAGE, crawl, gz
from core.errors import UserError
from data.config import DataConfig
from data.curate.engine import curate
from data.document import Document, Dropped, read_documents
from data.sources import download, remote
from lab import ROOT

packed = functools.partial(gzip.compress, mtime=0)  # or the names of tests would hold the hour

ARCHIVE = gz(crawl(20))


@pytest.fixture
def memory():
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def read_all(root):
    return [item for group in remote.partitions(root) for item in remote.read(root, group)]


def texts(root):
    return sorted(item.text for item in read_all(root) if isinstance(item, Document))


PAGES = sorted(PAGE.format(number) for number in range(20))


def test_a_file_behind_http_is_read_by_its_ending(server):
    server.files["/a/b.warc.gz?signed=1"] = ARCHIVE
    root = f"{server.url}/a/b.warc.gz?signed=1"
    assert remote.is_remote(root)
    assert texts(root) == PAGES
    found = remote.inputs(root)
    assert found["files"] == [[root, len(ARCHIVE), '"one"']]
    server.tag = '"two"'
    assert remote.inputs(root) != found


def test_what_has_no_id_is_named_by_its_address(server):
    server.files["/a.jsonl?key=secret"] = b'{"text": "one"}\nno\n'
    server.files["/b.html"] = b"<p>two"
    place = f"{server.url}/a.jsonl"
    assert read_all(f"{server.url}/a.jsonl?key=secret") == [
        Document(id=f"{place}:1", text="one", source="jsonl", url=f"{place}:1"),
        Dropped(f"{place}:2", "jsonl", "not_json", 3),
    ]
    assert read_all(f"{server.url}/b.html")[0].url == f"{server.url}/b.html"


def test_a_file_in_a_store_and_a_pattern_of_them(memory, capsys):
    for number in range(3):
        memory.pipe(f"/bucket/deep/{number}.jsonl", json.dumps({"text": str(number)}).encode())
    memory.pipe("/bucket/deep/3.bin", b"")
    assert texts("memory://bucket/deep/1.jsonl") == ["1"]
    assert texts("memory://bucket/deep/*.jsonl") == texts("memory://bucket/*/*") == ["0", "1", "2"]
    found = remote.inputs("memory://bucket/deep/*")
    assert "deep/*: 1 file is not read, by their endings: .bin 1" in capsys.readouterr().err
    assert [url for url, _, _ in found["files"]] == [f"memory://bucket/deep/{number}.jsonl" for number in range(3)]
    memory.pipe("/bucket/deep/1.jsonl", b'{"text": "x"}')
    assert remote.inputs("memory://bucket/deep/*") != found
    assert remote.partitions("memory://bucket/deep/*") == [[url for url, _, _ in found["files"]]]


def test_a_list_of_paths_leads_to_its_own_server(server, memory):
    paths = "crawl/a.warc.gz\n\ncrawl/b c.jsonl\n"
    server.files |= {"/x/warc.paths.gz": packed(paths.encode()), "/crawl/a.warc.gz": ARCHIVE}
    server.files["/crawl/b%20c.jsonl"] = b'{"text": "b"}'
    root = f"{server.url}/x/warc.paths.gz"
    assert remote.partitions(root) == [[f"{server.url}/crawl/a.warc.gz"], [f"{server.url}/crawl/b c.jsonl"]]
    assert texts(root) == sorted([*PAGES, "b"])
    found = remote.inputs(root)
    assert found["files"] == 2
    server.files["/x/warc.paths.gz"] = packed(b"crawl/b.warc.gz\ncrawl/c.warc.gz")
    assert remote.inputs(root)["paths"] != found["paths"]
    memory.pipe("/bucket/x/wet.paths", paths.encode())
    assert remote.partitions("memory://bucket/x/wet.paths")[0] == ["memory://bucket/crawl/a.warc.gz"]


def test_a_list_here_leads_to_common_crawl(tmp_path):
    path = tmp_path / "warc.paths"
    path.write_text("crawl-data/CC-MAIN-2024-22/segments/1/warc/a.warc.gz\n")
    assert remote.is_remote(str(path))
    expected = "https://data.commoncrawl.org/crawl-data/CC-MAIN-2024-22/segments/1/warc/a.warc.gz"
    assert remote.partitions(str(path)) == [[expected]]


@pytest.mark.parametrize(
    "line",
    [
        "file:///etc/passwd.txt",
        "/etc/passwd.txt",
        "../../etc/passwd.txt",
        "a/../../b.txt",
        "a\\..\\b.txt",
        "//evil.example/a.txt",
        "http://evil.example/a.txt",
        "local::file:///etc/passwd.txt",
        "a\x00.txt",
        "a\tb.txt",
    ],
)
def test_a_list_leads_nowhere_else(tmp_path, line):
    path = tmp_path / "warc.paths"
    path.write_text(f"good.txt\n{line}\n")
    with pytest.raises(UserError, match=r"warc\.paths, line 2: .* is not a relative path"):
        remote.partitions(str(path))


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"", "names no files"),
        (b"a.bin", "line 1: 'a.bin' is none of the files that are read"),
        (b"\xff", "cannot be read"),
        (packed(b"a.txt\n" * 100)[:-5], "cannot be read"),
    ],
)
def test_a_list_that_is_none_is_told_in_one_line(tmp_path, payload, said):
    path = tmp_path / "warc.paths"
    path.write_bytes(payload)
    with pytest.raises(UserError, match=said):
        remote.inputs(str(path))
    with pytest.raises(UserError, match=r"nowhere\.paths cannot be read"):
        remote.inputs(str(tmp_path / "nowhere.paths"))


def test_a_list_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "MAX_LIST_BYTES", 1000)
    path = tmp_path / "warc.paths.gz"
    path.write_bytes(packed(b"a.txt\n" * 1000))
    with pytest.raises(UserError, match="longer than a list"):
        remote.inputs(str(path))


@pytest.mark.parametrize("root", ["file:///etc/passwd.txt", "ftp://a/b.txt", "local://a.txt", "a::https://b/c.txt"])
def test_other_schemes_are_not_read(root):
    for function in (remote.inputs, remote.partitions):
        with pytest.raises(UserError, match=r"is not read; (known are|did you mean)"):
            function(root)


def test_what_a_server_refuses_for_now_is_asked_for_again(server):
    server.files["/a.warc.gz"] = ARCHIVE
    server.manners += [("status", 503), ("status", 429), ("cut", 1000), ("cut", 500)]
    assert texts(f"{server.url}/a.warc.gz") == PAGES
    assert server.waits == [1.0, 2.0, 4.0, 8.0]
    assert [part for _, part in server.asked] == [None, None, None, "bytes=1000-", "bytes=1500-"]


def test_a_file_that_changes_meanwhile_is_fetched_anew(server):
    server.files["/a.jsonl"] = b'{"text": "old"}'
    server.manners.append(("cut", 5))
    download_open = download._open
    opened = []

    def change(seen, start):
        if opened:
            server.tag = '"two"'
        opened.append(start)
        return download_open(seen, start)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "_open", change)
        assert texts(f"{server.url}/a.jsonl") == ["old"]
    assert opened == [0, 5]


@pytest.mark.parametrize(("status", "asked"), [(404, 1), (403, 1), (410, 1), (500, download.ATTEMPTS)])
def test_a_file_that_cannot_be_had_is_told_in_one_line(server, status, asked):
    server.files["/a.txt"] = b"text"
    server.manners += [("status", status)] * 20
    with pytest.raises(UserError, match=rf"http://127.*/a\.txt cannot be read \(HTTP Error {status}"):
        read_all(f"{server.url}/a.txt")
    assert len(server.asked) == asked
    assert sum(server.waits) <= 127


def test_nobody_answers(server, capsys):
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1/a\.txt cannot be read \(.*refused"):
        remote.inputs("http://127.0.0.1:1/a.txt")
    assert len(server.waits) == download.ATTEMPTS - 1
    assert "tried again in 2 s" in capsys.readouterr().err


def test_a_file_that_is_too_large_is_refused(server, tmp_path):
    server.files["/a.txt"] = b"x" * 100
    with pytest.raises(UserError, match="has 100 bytes, more than the 10"):
        download.fetch(f"{server.url}/a.txt", tmp_path / "a", 10)
    unsaid = download.Remote(f"{server.url}/a.txt", None, "")
    with (tmp_path / "b").open("wb") as file, pytest.raises(UserError, match="more than the 10 bytes"):
        download._copy(unsaid, file, 10)


def test_a_full_disk_is_told_at_once(server, tmp_path):
    server.files["/a.txt"] = b"x" * 100_000
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(UserError, match=r"/a cannot be written \(File too large\); TMPDIR names another place"):
            download.fetch(f"{server.url}/a.txt", tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not server.waits


def test_a_server_that_sends_next_to_nothing_is_given_up(server, tmp_path, monkeypatch):
    server.files["/a.txt"] = b"x" * 100
    server.manners += [("cut", 10)] * 20
    clock = iter(range(0, 10_000, 61))
    monkeypatch.setattr(download.time, "monotonic", lambda: next(clock))
    with pytest.raises(UserError, match="less than 2,000 bytes a second"):
        download.fetch(f"{server.url}/a.txt", tmp_path / "a")


@pytest.mark.usefixtures("memory")
def test_missing_files_and_patterns_of_stores_are_named():
    with pytest.raises(UserError, match=r"memory://bucket/a\.txt cannot be read"):
        remote.inputs("memory://bucket/a.txt")
    with pytest.raises(UserError, match=r"memory://bucket/\*\.txt names none of the files that are read"):
        remote.inputs("memory://bucket/*.txt")
    with pytest.raises(UserError, match="HTTP has no lists of files"):
        remote.inputs("https://example.com/*.txt")
    with pytest.raises(UserError, match="names none of the files"):
        remote.inputs("https://example.com/folder/")


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(download.STORES, "s3", "s3fs_that_nobody_has")
    with pytest.raises(UserError, match=r"needs the package s3fs_that_nobody_has; .*pip install -e \.\[remote\]"):
        remote.inputs("s3://bucket/a.txt")


def test_damage_is_told_of_the_address(server):
    server.files["/a.jsonl.gz"] = packed(b'{"text": "one"}\n' * 100)[:-20]
    *before, last = read_all(f"{server.url}/a.jsonl.gz")
    assert (last.id, last.reason, last.detail) == (f"{server.url}/a.jsonl.gz", "damaged_file", "truncated")
    assert {item.text for item in before} <= {"one"}


def test_nothing_is_left_behind(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote.tempfile, "tempdir", str(tmp_path))
    server.files["/a.warc.gz"] = ARCHIVE
    items = remote.read("", [f"{server.url}/a.warc.gz"])
    next(items)
    assert [*tmp_path.iterdir()]
    items.close()
    assert not [*tmp_path.iterdir()]


@pytest.mark.skipif(not remote.OPEN_FILES.is_dir(), reason="needs /proc, as Linux has it")
def test_a_process_that_is_killed_leaves_no_bytes(server, tmp_path):
    lines = b"".join(json.dumps({"text": "x" * 1000}).encode() + b"\n" for _ in range(3000))
    server.files["/a.jsonl"] = lines
    script = f"""
        import os, signal
        from data.sources import remote
        items = remote.read("", ["{server.url}/a.jsonl"])
        assert next(items).id == "{server.url}/a.jsonl:1"
        os.kill(os.getpid(), signal.SIGKILL)
    """
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("where", [remote.OPEN_FILES, remote.Path("/nowhere")])
def test_what_is_fetched_is_read_with_proc_and_without(server, tmp_path, monkeypatch, where):
    pytest.importorskip("mwparserfromhell")
    monkeypatch.setattr(remote.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(remote, "OPEN_FILES", where)
    server.files |= {"/warc.paths.gz": packed(b"a.warc.gz\nb.parquet\nc.xml.bz2\nd.jsonl"), "/a.warc.gz": ARCHIVE}
    table = io.BytesIO()
    pq.write_table(pa.table({"text": ["row"]}), table)
    revision = "<revision><text>wiki</text></revision>"
    page = f"<mediawiki><page><title>T</title><ns>0</ns><id>1</id>{revision}</page></mediawiki>"
    server.files |= {"/b.parquet": table.getvalue(), "/c.xml.bz2": bz2.compress(page.encode())}
    server.files["/d.jsonl"] = b'{"text": "line"}'
    server.manners = [("well", None)] * 4 + [("cut", 100)]
    assert texts(f"{server.url}/warc.paths.gz") == sorted([*PAGES, "row", "wiki\n", "line"])
    assert not [*tmp_path.iterdir()]


def test_a_corpus_from_elsewhere_is_that_of_a_folder(server, tmp_path):
    server.files |= {
        "/list.paths": b"a.warc.gz\nb.jsonl",
        "/a.warc.gz": ARCHIVE,
        "/b.jsonl": b'{"text": "b", "id": "b"}',
    }
    here = tmp_path / "here"
    here.mkdir()
    (here / "a.warc.gz").write_bytes(ARCHIVE)
    (here / "b.jsonl").write_bytes(server.files["/b.jsonl"])
    shards = []
    for name, path in (("a", str(here)), ("b", f"{server.url}/list.paths")):
        sources = DataConfig(sources={"web": path}, shards=1, heldout_fraction=0.3, workers=1)
        curate(sources, tmp_path / name)
        shards.append([one for part in sorted((tmp_path / name).rglob("*.parquet")) for one in read_documents(part)])
    assert [one.id for one in shards[0]] == [one.id for one in shards[1]]
    assert [one.text for one in shards[0]] == [one.text for one in shards[1]]
    assert len(shards[0]) == 21
