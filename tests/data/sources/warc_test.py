"""Web archives, whole and damaged, beside what other readers find in them."""

import collections
import functools
import gzip
import itertools
import tracemalloc
import zlib

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from archives_lab import PAGE, arc, crawl, gz, http, record, response, zst, zst_with_dictionary
from data.document import Document, Dropped
from data.sources import archive, warc
from lab import real

packed = functools.partial(gzip.compress, mtime=0)  # or the names of tests would hold the hour

brotli = pytest.importorskip("brotli")
pytest.importorskip("resiliparse")


def read(tmp_path, payload, name="a.warc"):
    path = tmp_path / name
    path.write_bytes(payload)
    return list(warc.read(path, name))


def pages(items):
    """The numbers of the pages of a crawl; whose texts and fields are all right."""
    found = []
    for item in items:
        if isinstance(item, Document):
            number = int(item.url.rpartition("/")[2])
            assert item.text == PAGE.format(number)
            assert item.meta == {"media_type": "text/html", "date": "2024-05-18T01:58:10Z"}
            found.append(number)
    return found


def drops(items):
    return [(item.id, item.reason) for item in items if isinstance(item, Dropped)]


def test_a_page_is_a_document_with_its_date(tmp_path):
    assert read(tmp_path, response(1)) == [
        Document(
            id="00000001",
            text=PAGE.format(1),
            source="warc",
            url="http://example.com/1",
            meta={"media_type": "text/html", "date": "2024-05-18T01:58:10Z"},
        )
    ]


PACKED = {
    "a.warc": b"".join,
    "b.warc.gz": gz,
    "c.warc.gz": lambda records: packed(b"".join(records)),
    "d.warc.gz": b"".join,  # not compressed at all
    "e.warc.zst": zst,
    "f.warc.zst": lambda records: zst_with_dictionary(records, compressed=False),
    "g.warc.zst": lambda records: zst_with_dictionary(records, compressed=True),
    "h.warc.gz": lambda records: gz(records) + bytes(5000),
    "i.warc.gz": lambda records: gz([one.removesuffix(b"\r\n\r\n") for one in records]),
}


@pytest.mark.parametrize("name", PACKED)
def test_records_are_the_same_however_they_are_packed(tmp_path, name):
    found = read(tmp_path, PACKED[name](crawl(20)), name)
    assert pages(found) == list(range(20))
    assert [item.id for item in found] == [f"{number:08d}" for number in range(20)]


@pytest.mark.parametrize(("name", "pack"), [("a.arc", b"".join), ("b.arc.gz", gz)])
def test_arc_files_hold_the_same_pages(tmp_path, name, pack):
    found = read(tmp_path, pack(arc(20)), name)
    assert pages(found) == list(range(20))
    assert found[0].id == f"{name}:{len(arc(0)[0])}"


def test_an_arc_url_may_hold_spaces(tmp_path):
    line = b"http://example.com/a b 1 127.0.0.1 20240518015810 text/html; charset=latin-1 %d\n"
    block = http("<p>é".encode("latin-1"), Content_Type=None)
    (found,) = read(tmp_path, line % len(block) + block + b"\n", "a.arc")
    assert (found.url, found.text) == ("http://example.com/a b 1", "<p>é")


def test_what_is_no_page_is_counted_or_no_document(tmp_path):
    page = PAGE.format(0).encode()
    found = read(
        tmp_path,
        b"".join([
            response(1, b"\x89PNG", Content_Type="image/png"),
            response(2, warc={"WARC_Identified_Payload_Type": "application/pdf"}),
            response(3, page, warc={"WARC_Identified_Payload_Type": "text/html"}, Content_Type="image/png"),
            response(4, page, Content_Type="Application/XHTML+XML; charset=utf-8"),
            response(5, page, Content_Type=None),
            response(6, b"just words", Content_Type=None),
            response(7, b" \n<!-- <p> --><!-- --> <HTML lang=en>", Content_Type="unknown"),
            response(8, b""),
            response(9, page, status="404 Not Found"),
            response(10, page, Content_Type="text/plain"),
            record("resource", page, WARC_Record_ID="<urn:uuid:11>", Content_Type="text/html"),
            record("resource", b"log", WARC_Record_ID="<urn:uuid:12>", Content_Type="text/plain"),
            record("revisit", http(b""), WARC_Record_ID="<urn:uuid:13>"),
            record("metadata", b"a: b", WARC_Record_ID="<urn:uuid:14>", Content_Type="text/html"),
            record("response", b"HTTP/1.1 200 OK\r\nContent-Type: text/html", WARC_Record_ID="<urn:uuid:15>"),
        ]),
    )  # fmt: skip
    kept = [item.id.lstrip("0") for item in found if isinstance(item, Document)]
    assert kept == ["3", "4", "5", "7", "9", "11"]
    assert [(identifier.lstrip("0"), reason) for identifier, reason in drops(found)] == [
        ("1", "media_type"),
        ("2", "media_type"),
        ("6", "media_type"),
        ("8", "no_text"),
        ("10", "media_type"),
        ("12", "media_type"),
        ("15", "no_text"),
    ]


def test_a_text_of_a_wet_file_is_no_page(tmp_path):
    text = "Überschrift\nand a line".encode()
    block = record("conversion", text, WARC_Record_ID="<urn:uuid:1>", WARC_Date="2024", Content_Type="text/plain")
    (found,) = read(tmp_path, gz([block]), "a.warc.wet.gz")
    assert found == Document(id="1", text=text.decode(), source="warc", meta={"date": "2024"})


def test_truncation_by_the_crawler_is_told(tmp_path):
    (found,) = read(tmp_path, response(1, warc={"WARC_Truncated": "length"}))
    assert found.meta["truncated"] == "length"


def test_headers_may_be_folded_and_bracketed(tmp_path):
    given = {"WARC_Target_URI": "\r\n <http://example.com/1>", "WARC_Record_ID": "<urn:uuid:7>"}
    (found,) = read(tmp_path, response(1, warc=given))
    assert (found.id, found.url) == ("7", "http://example.com/1")


@pytest.mark.parametrize("identifier", ["", "<>", "a\0b", "a\x1b[2Jb"])
def test_a_record_without_an_id_has_its_place(tmp_path, identifier):
    first, second = response(1), response(2, warc={"WARC_Record_ID": identifier})
    assert read(tmp_path, first + second)[1].id == f"a.warc:{len(first)}"


def chunked(body):
    pieces = [body[start : start + 7] for start in range(0, len(body), 7)]
    return b"".join(b"%x;ext=1\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


BODY = PAGE.format(1).encode()
CODED = [
    ("gzip", None, packed(BODY)),
    ("x-gzip", None, packed(BODY[:20]) + packed(BODY[20:])),
    ("deflate", None, zlib.compress(BODY)),
    ("deflate", None, zlib.compress(BODY)[2:-4]),
    ("br", None, brotli.compress(BODY)),
    ("zstd", None, zstandard.compress(BODY)),
    ("gzip, br", None, brotli.compress(packed(BODY))),
    (None, "chunked", chunked(BODY)),
    ("GZIP", "Chunked", chunked(packed(BODY))),
    ("identity", "identity", BODY),
    ("utf-8", None, BODY),
    # What heads say of bodies that were decoded before they were stored:
    ("gzip", None, BODY),
    ("deflate", None, BODY),
    ("br", None, BODY),
    ("zstd", None, BODY),
    ("gzip", "chunked", BODY),
    ("gzip", "chunked", packed(BODY)),
    ("gzip", None, packed(BODY) + b"rubbish"),
]


@pytest.mark.parametrize(("content", "transfer", "body"), CODED)
def test_bodies_are_decoded(tmp_path, content, transfer, body):
    (found,) = read(tmp_path, response(1, body, Content_Encoding=content, Transfer_Encoding=transfer))
    assert pages([found]) == [1]


@pytest.mark.parametrize("body", [packed(BODY)[:-12], chunked(BODY)[:-30], brotli.compress(BODY)[:-5]])
def test_of_a_body_that_is_cut_off_the_beginning_stays(tmp_path, body):
    coding = {b"\x1f": {"Content_Encoding": "gzip"}, b"7": {"Transfer_Encoding": "chunked"}}
    (found,) = read(tmp_path, response(1, body, **coding.get(body[:1], {"Content_Encoding": "br"})))
    assert isinstance(found, Document)
    assert BODY.decode().startswith(found.text)


ZEROS = bytes(1 << 20)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", packed(ZEROS * 40)),
        ("gzip, gzip", packed(packed(ZEROS * 40))),
        ("br", brotli.compress(ZEROS * 40, quality=5)),
        ("zstd", zstandard.compress(ZEROS * 40)),
    ],
)
def test_a_page_that_unpacks_to_too_much_is_dropped(tmp_path, coding, body):
    tracemalloc.start()
    found = read(tmp_path, response(1, body, Content_Encoding=coding))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert drops(found) == [("00000001", "page_too_large")]
    assert peak < 64 << 20


def test_a_huge_page_is_not_held_in_memory(tmp_path):
    huge = packed(response(1, ZEROS * 40)) + packed(response(2, ZEROS * 40, Content_Type="video/mp4"))
    tracemalloc.start()
    found = read(tmp_path, huge + gz([response(3)]), "a.warc.gz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert drops(found) == [("00000001", "page_too_large"), ("00000002", "media_type")]
    assert pages(found) == [3]
    assert peak < 16 << 20


@pytest.mark.parametrize("line", [b"x" * (1 << 20), b"WARC/1.0\r\n" + b"a: b\r\n" * (1 << 17), b"WARC/1.0\r\n"])
def test_a_head_without_end_costs_itself(tmp_path, line):
    found = read(tmp_path, line + b"\r\n" + response(1))
    assert pages(found) == [1]
    assert drops(found) == [("a.warc:0", "damaged_archive")]


def test_no_cut_is_silent(tmp_path):
    """At every byte: the pages before it are read, and what it costs is one drop."""
    whole = b"".join(crawl(3))
    ends = list(itertools.accumulate(map(len, crawl(3))))
    for cut in range(len(whole)):
        found = read(tmp_path, whole[:cut])
        complete = sum(end - 4 <= cut for end in ends)  # without the empty lines after a record nothing is missing
        between = any(end - 4 <= cut <= end for end in [0, *ends])
        assert pages(found) == list(range(max(0, complete - 1) // 2)), cut
        assert [reason for _, reason in drops(found)] == ([] if between else ["truncated_record"]), cut


@pytest.mark.parametrize(("name", "pack"), [("a.warc.gz", gz), ("a.warc.zst", zst)])
def test_no_cut_of_a_compressed_file_is_silent(tmp_path, name, pack):
    ends = list(itertools.accumulate(len(pack([one])) for one in crawl(3)))
    whole = pack(crawl(3))
    for cut in range(1, len(whole)):
        found = read(tmp_path, whole[:cut], name)
        complete = sum(end <= cut for end in ends)
        assert pages(found) == list(range(max(0, complete - 1) // 2)), cut
        assert len(drops(found)) == (cut not in ends), cut


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.data())
def test_a_flipped_bit_costs_its_member(tmp_path_factory, data):
    whole = gz(crawl(8))
    ends = list(itertools.accumulate(len(gz([one])) for one in crawl(8)))
    place = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    found = read(tmp_path_factory.mktemp("flip"), bytes(flipped), "a.warc.gz")
    hit = sum(end <= place for end in ends)  # the record
    lost = {(hit - 2) // 2} if hit >= 2 and hit % 2 == 0 else set()
    kept = set(pages(found))
    assert kept | lost == set(range(8))
    if kept != set(range(8)):
        assert drops(found)


def test_damages_are_counted_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_DAMAGES", 10)
    bad = b"WARC/1.0\r\nContent-Length: none\r\n\r\n"
    found = read(tmp_path, bad * 9 + response(1) + bad * 20 + response(2))
    assert pages(found) == [1]
    assert [reason for _, reason in drops(found)] == ["damaged_archive"] * 11


def test_a_file_of_nothing_but_beginnings_of_gzip_is_given_up(tmp_path):
    found = read(tmp_path, b"\x1f\x8b\x08\xff" * 100_000, "a.warc.gz")
    assert len(found) <= archive.MAX_DAMAGES + 1
    assert {item.reason for item in found} <= {"damaged_archive", "truncated_record"}


@pytest.mark.parametrize("more", [-5, 5, 100])
def test_a_wrong_length_costs_its_neighbours_at_most(tmp_path, more):
    length = len(http(PAGE.format(2).encode())) + more
    records = [response(1), response(2, warc={"Content_Length": length}), response(3), response(4)]
    for name, pack in PACKED.items():
        found = read(tmp_path, pack(records), name)
        kept = [item.id.lstrip("0") for item in found if isinstance(item, Document)]
        assert {"1", "4"} <= set(kept), name
        assert len(drops(found)) >= 1, name
    if more > 0:
        found = read(tmp_path, gz(records), "a.warc.gz")
        assert pages(found) == [1, 3, 4]  # another record's member does not make up for it
        assert drops(found) == [("00000002", "truncated_record")]


def test_rubbish_between_records_is_one_drop(tmp_path):
    rubbish = b"a line\n" * 100_000 + b"not WARC/1.0 at its beginning, and no end"
    for name, pack in PACKED.items():
        found = read(tmp_path, pack([response(1), rubbish + b"\n", response(2)]), name)
        assert (pages(found), len(drops(found))) == ([1, 2], 1), name
    found = read(tmp_path, gz([response(1), rubbish, response(2)]), "a.warc.gz")  # its end is that of its member
    assert (pages(found), len(drops(found))) == ([1, 2], 1)
    lines = b"http://a 127.0.0.1 20240518015810 text/html -1\n" * 1000 + b"more\n"
    found = read(tmp_path, gz([*arc(1), lines, *arc(2)[2:]]), "a.arc.gz")
    assert (pages(found), len(drops(found))) == ([0, 1], 1)


def test_empty_files_are_empty(tmp_path):
    for name in (*PACKED, "a.arc", "a.arc.gz"):
        assert read(tmp_path, b"", name) == []


# Documents and drops of real archives, whole and broken on purpose.
REAL = {
    "aut/badexample.arc.gz": (0, {"media_type": 2, "damaged_archive": 1, "truncated_record": 1}),
    "aut/example.arc.gz": (135, {"media_type": 159, "no_text": 5}),
    "aut/example.docs.warc.gz": (0, {"media_type": 9}),
    "aut/example.pdf.warc.gz": (3, {"media_type": 32}),
    "aut/example.txt.warc.gz": (0, {"media_type": 2}),
    "aut/example.warc.gz": (135, {"media_type": 159, "no_text": 5}),
    "aut/issue-493.warc": (5, {"media_type": 5}),
    "aut/issue-514.warc": (2, {"media_type": 2}),
    "commoncrawl/whirlwind.warc.gz": (1, {}),
    "commoncrawl/whirlwind.warc.wat.gz": (0, {}),
    "commoncrawl/whirlwind.warc.wet.gz": (1, {}),
    "jwarc/cc.warc.gz": (1, {}),
    "jwarc/gzip_extra_sl.warc.gz": (0, {}),
    "warcio/bad.arc": (0, {"damaged_archive": 2, "media_type": 1}),
    "warcio/example-bad-non-chunked.warc.gz": (1, {}),
    "warcio/example-bad.warc.gz.bad": (2, {}),
    "warcio/example-digest.warc": (0, {}),
    "warcio/example-iana.org-chunked.warc": (1, {}),
    "warcio/example-resource.warc.gz": (1, {}),
    "warcio/example-space-in-target-uri.warc.gz": (0, {"media_type": 1}),
    "warcio/example-space-in-url.arc": (0, {"truncated_record": 1}),
    "warcio/example-trunc.warc": (1, {}),
    "warcio/example-wget-bad-target-uri.warc.gz": (1, {"media_type": 2}),
    "warcio/example-wrong-chunks.warc.gz": (1, {}),
    "warcio/example.arc": (1, {}),
    "warcio/example.arc.gz": (1, {}),
    "warcio/example.warc": (1, {}),
    "warcio/example.warc.gz": (1, {}),
    "warcio/post-test.warc.gz": (0, {"media_type": 3}),
}


def test_real_archives_are_read_or_counted():
    folder = real("warc")
    found = {}
    for name in REAL:
        items = list(warc.read(folder / name, name))
        reasons = collections.Counter(item.reason for item in items if isinstance(item, Dropped))
        found[name] = (len(items) - reasons.total(), dict(reasons))
        assert all(item.text.encode() and "\0" not in item.text for item in items if isinstance(item, Document))
    assert found == REAL


def by_fastwarc(path):
    fastwarc = pytest.importorskip("fastwarc")
    with path.open("rb") as file:
        return [(str(one.record_type), one.reader.read()) for one in fastwarc.ArchiveIterator(file, parse_http=False)]


def by_warcio(path):
    archiveiterator = pytest.importorskip("warcio.archiveiterator")
    with path.open("rb") as file:
        return [
            (one.rec_type, one.raw_stream.read())
            for one in archiveiterator.ArchiveIterator(file, no_record_parse=True)
        ]


def by_us(path):
    everything = frozenset({"warcinfo", "response", "resource", "request", "metadata", "revisit", "conversion"})
    return [(item.headers.get("warc-type"), item.block) for item in archive.records(path, everything, 1 << 30)]


# What another reader does not do; where nothing is said, its records are ours.
UNLIKE = {
    by_fastwarc: {
        "warcio/example-trunc.warc",  # gives up at two stray zeros
    },
    by_warcio: {
        "aut/badexample.arc.gz",  # refuses
        "warcio/bad.arc",  # takes a length of -1 for 0
        "warcio/example-bad-non-chunked.warc.gz",  # refuses
        "warcio/example-bad.warc.gz.bad",  # refuses
        "warcio/example-space-in-url.arc",  # does not see that the file is cut off
        "warcio/example-wrong-chunks.warc.gz",  # refuses
    },
}


@pytest.mark.parametrize("other", UNLIKE, ids=["fastwarc", "warcio"])
def test_other_readers_find_the_same_records_in_real_archives(other):
    folder = real("warc")
    for name in REAL:
        if name in UNLIKE[other] or (other is by_fastwarc and ".arc" in name):
            continue
        theirs = other(folder / name)
        is_arc = theirs[0][0] == "arc_header"  # of which warcio takes a part of the block for its head
        assert by_us(folder / name)[is_arc:] == theirs[is_arc:], name
