"""Readers of files from strangers, fed with what is nearly right: documents and drops come out."""

import bz2
import functools
import gzip
import io
import json
import signal
import zlib
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archives_lab import arc, crawl, gz, record, response, zst, zst_with_dictionary
from core.errors import UserError
from data.document import Document, Dropped
from data.sources import folder

packed = functools.partial(gzip.compress, mtime=0)  # or the names of tests would hold the hour

brotli = pytest.importorskip("brotli")
pytest.importorskip("resiliparse")
pytest.importorskip("mwparserfromhell")
SECONDS = 60  # a file of a few KB takes a thousandth of that; a hang takes longer

BODY = "<html><meta charset=windows-1251><p>Широкая электрификация<p>words &amp; more".encode("windows-1251") * 3
CODED = [
    response(1, packed(BODY), Content_Encoding="gzip"),
    response(2, zlib.compress(BODY), Content_Encoding="deflate"),
    response(3, brotli.compress(BODY), Content_Encoding="br"),
    response(4, zstandard.compress(BODY), Content_Encoding="zstd"),
    response(5, b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY), Transfer_Encoding="chunked"),
    response(6, BODY, Content_Type=None),
    record("conversion", b"a text\nof two lines", WARC_Record_ID="<urn:uuid:7>", Content_Type="text/plain"),
]
LINES = b"".join(json.dumps({"text": f"line {number}", "id": str(number)}).encode() + b"\n" for number in range(20))
PAGES = "".join(
    f"<page><title>T{number}</title><ns>0</ns><id>{number}</id><revision><text>'''a''' [[b|c]] {{d}} [[File:e|f]]\n"
    "== g ==\n{|\n| h\n|}\n* i &lt;ref>j&lt;/ref></text></revision></page>\n"
    for number in range(5)
)
DUMP = f"<mediawiki xml:lang='en'><siteinfo><dbname>w</dbname></siteinfo>{PAGES}</mediawiki>".encode()
TABLE = io.BytesIO()
pq.write_table(
    pa.table({"text": [f"row {number}" for number in range(200)], "id": range(200)}), TABLE, row_group_size=50
)
FILES = {
    "a.warc": b"".join(crawl(3)),
    "b.warc": b"".join(CODED),
    "c.warc.gz": gz(crawl(3) + CODED),
    "d.warc.gz": packed(b"".join(crawl(3)), mtime=0),
    "e.warc.zst": zst(crawl(2) + CODED),
    "f.warc.zst": zst_with_dictionary(crawl(2), compressed=True),
    "g.arc": b"".join(arc(3)),
    "h.arc.gz": gz(arc(3)),
    "i.html": BODY,
    "j.jsonl": LINES,
    "k.jsonl.gz": packed(LINES, mtime=0),
    "l.jsonl.zst": zstandard.compress(LINES),
    "m.xml": DUMP,
    "n.xml.gz": packed(DUMP, mtime=0),
    "o.xml.bz2": bz2.compress(DUMP),
    "p.parquet": TABLE.getvalue(),
}


class Change(NamedTuple):
    """What happens to a file at a place, told as a fraction of its length."""

    kind: str
    place: float
    number: int

    def apply(self, payload: bytes) -> bytes:
        at = int(self.place * len(payload))
        before, after = payload[:at], payload[at:]
        if self.kind == "cut":
            return before
        if self.kind == "flip":
            return before + bytes([after[0] ^ (1 << self.number % 8)]) + after[1:] if after else before
        if self.kind == "remove":
            return before + after[self.number :]
        if self.kind == "repeat":
            return before + after[: self.number] * 3 + after[self.number :]
        if self.kind == "zeros":
            return before + bytes(self.number) + after
        other = [*FILES.values()][self.number % len(FILES)]  # splice
        return before + other[int(self.place * len(other)) // 2 :]


KINDS = ["cut", "flip", "remove", "repeat", "zeros", "splice"]
CHANGES = st.builds(Change, st.sampled_from(KINDS), st.floats(0, 0.999), st.integers(0, 3000))
BROKEN = st.tuples(st.sampled_from(sorted(FILES)), st.lists(CHANGES, min_size=1, max_size=4))


def stop(*_):
    raise TimeoutError("a reader hangs")


def check(where, broken):
    name, changes = broken
    payload = FILES[name]
    for change in changes:
        payload = change.apply(payload)
    (where / name).write_bytes(payload)
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    error = ""
    try:
        items = list(folder.read(where, [name]))
    except UserError as told:
        items, error = [], str(told)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert not error or f"{name} has no column" in error  # of a table whose columns have other names then
    for item in items:
        assert isinstance(item, Document | Dropped)
        assert item.id
        for text in (item.id, getattr(item, "text", ""), getattr(item, "url", "")):
            text.encode()
        json.dumps(vars(item))


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_read_before_it_is_broken(where, name):
    (where / name).write_bytes(FILES[name])
    items = list(folder.read(where, [name]))
    assert items
    assert all(isinstance(item, Document) for item in items)


@settings(deadline=None, max_examples=300, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(broken=BROKEN)
def test_broken_files(where, broken):
    check(where, broken)


@pytest.mark.slow
@settings(deadline=None, max_examples=10_000, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(broken=BROKEN)
def test_ten_thousand_broken_files(where, broken):
    check(where, broken)
