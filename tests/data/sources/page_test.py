"""Pages from bytes of any charset, or of none."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from data.config import DataConfig
from data.curate.engine import curate
from data.document import Document, Dropped, read_documents
from data.sources import folder, page

resiliparse = pytest.importorskip("resiliparse.parse.encoding")
SENTENCES = {
    "windows-1251": "Широкая электрификация южных губерний даст мощный толчок подъёму сельского хозяйства.",
    "koi8-r": "Широкая электрификация южных губерний даст мощный толчок подъёму сельского хозяйства.",
    "shift_jis": "親譲りの無鉄砲で小供の時から損ばかりしている。",
    "euc-jp": "親譲りの無鉄砲で小供の時から損ばかりしている。",
    "gb2312": "少年辛苦终身事莫向光阴惰寸功。",
    "big5": "少年辛苦終身事莫向光陰惰寸功。",
    "windows-1252": "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich: “schön”.",
    "iso-8859-2": "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "iso-2022-jp": "親譲りの無鉄砲で小供の時から損ばかりしている。",
}


@pytest.mark.parametrize("charset", SENTENCES)
@pytest.mark.parametrize("where", ["head", "meta", "http-equiv", "xml"])
def test_a_declared_charset_is_believed(charset, where):
    declared = {
        "head": "",
        "meta": f"<META name=a><meta content='' Charset={charset}>",
        "http-equiv": f'<meta http-equiv="Content-Type" content="text/html; charset={charset}">',
        "xml": f'<?xml version="1.0" encoding="{charset}"?>',
    }[where]
    text = f"{declared}<p>{SENTENCES[charset]}</p>"
    assert page.decode(text.encode(charset), charset if where == "head" else "") == text


@pytest.mark.parametrize("charset", ["windows-1251", "koi8-r", "shift_jis", "euc-jp", "big5", "utf-16"])
def test_a_charset_is_found_where_none_is_declared(charset):
    text = "<html><body>" + SENTENCES.get(charset, "plain words") * 3
    assert page.decode(text.encode(charset)) == text


@pytest.mark.parametrize(
    ("payload", "charset", "text"),
    [
        ("é".encode(), "windows-1252", "é"),  # UTF-8 it is, whatever is said
        (b"\xef\xbb\xbfa", "", "a"),
        (b"\xfe\xff\0a", "utf-8", "a"),
        (b"\xe9", "utf-7", "é"),  # which Python would read, and browsers refuse
        (b"\xe9", "unicode_escape", "é"),
        (b"\xe9", "none of these", "é"),
        (b"caf\xe9", "iso-8859-1", "café"),
        (b"\x93a\x94", "iso-8859-1", "“a”"),  # as browsers have it
        ("é".encode() * 100 + b"\xc3", "utf-8", "é" * 100 + "\ufffd"),  # cut off by the crawler
        (b"a" * 200 + b"\0", "", "a" * 200 + "\ufffd"),
        (b"", "", ""),
    ],
)
def test_what_a_charset_does_not_know_is_replaced(payload, charset, text):
    assert page.decode(payload, charset) == text


@pytest.mark.parametrize("payload", [bytes(range(256)), b"\0" * 100, b"\x89PNG\r\n\x1a\n" + bytes(50) + b"\xff" * 9])
@pytest.mark.parametrize("charset", ["", "utf-8", "iso-8859-1", "shift_jis"])
def test_what_is_no_text_is_undecodable(payload, charset):
    found = page.to_document(payload, charset, id="a", source="html")
    assert found == Dropped("a", "html", "undecodable", len(payload))


def test_every_name_that_browsers_know_can_be_read():
    names = ["ascii", "big5-hkscs", "iso-8859-8-i", "macintosh", "tis-620", "ks_c_5601-1987", "x-sjis", "unicode"]
    names += [f"iso-8859-{number}" for number in range(1, 17)] + [f"windows-{number}" for number in range(874, 1259)]
    for name in names:
        assert page.decode(b"abcd\xe9\xe9 abcd", name) is not None


@settings(deadline=None, max_examples=300, derandomize=True)
@given(
    st.binary(max_size=400), st.sampled_from(["", "utf-8", "shift_jis", "utf-16", "gb18030", "iso-2022-jp", "big5"])
)
def test_any_bytes_are_text_that_can_be_written_or_none(payload, charset):
    text = page.decode(payload, charset)
    assert text is None or ("\0" not in text and text.encode().decode() == text)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffd")))
def test_utf_8_is_kept(text):
    assert page.decode(text.encode()) == text.removeprefix("\ufeff")


def test_only_other_charsets_need_a_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "resiliparse.parse.encoding", None)
    assert page.decode("é".encode()) == "é"
    with pytest.raises(UserError, match=r"needs the package resiliparse.*pip install -e"):
        page.decode(b"\xe9")


def test_html_files_are_pages(tmp_path):
    (tmp_path / "a.html").write_bytes(b"<p>caf\xe9")
    (tmp_path / "b.htm").write_bytes(b"a" * 1000)
    (tmp_path / "c.html").write_bytes(bytes(1000))
    found = [item for group in folder.partitions(tmp_path) for item in folder.read(tmp_path, group)]
    assert found == [
        Document("a.html", "<p>café", "html", "a.html", meta={"media_type": "text/html"}),
        Document("b.htm", "a" * 1000, "html", "b.htm", meta={"media_type": "text/html"}),
        Dropped("c.html", "html", "undecodable", 1000),
    ]


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MAX_PAGE_BYTES", 1000)
    (tmp_path / "a.html").write_bytes(b"a" * 1001)
    assert list(folder.read(tmp_path, ["a.html"])) == [Dropped("a.html", "html", "page_too_large", 1001)]


@pytest.mark.parametrize("recipe", [(), ({"step": "extract", "method": "visible"},)])
def test_a_recipe_without_extraction_takes_visible_text(tmp_path, recipe):
    inputs = tmp_path / "in"
    inputs.mkdir()
    for number in range(8):
        (inputs / f"{number}.html").write_text(f"<head><title>no</title><body><p>words {number}<script>no</script>")
    config = DataConfig(path=str(inputs), recipe=recipe, shards=1, heldout_fraction=0.3, workers=1)
    curate(config, tmp_path / "w")
    found = [one for path in sorted((tmp_path / "w/curated").glob("*.parquet")) for one in read_documents(path)]
    assert sorted((one.text, one.meta) for one in found) == [(f"words {number}\n", {}) for number in range(8)]


def test_versions_of_what_reads_pages_are_known(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    assert "packages" not in folder.inputs(tmp_path)
    (tmp_path / "b.html").write_text("text")
    assert list(folder.inputs(tmp_path)["packages"]) == ["resiliparse"]
