"""Dumps of MediaWiki: which pages are documents, what is left of markup, and what strangers may write."""

import bz2
import functools
import gzip
import tracemalloc
from xml.sax.saxutils import escape

import pytest

from data.document import Document, Dropped
from data.parser import parser
from data.sources import folder, wiki
from lab import real

pytest.importorskip("mwparserfromhell")

SITE = """<siteinfo><sitename>W</sitename><dbname>dewiki</dbname><base>https://de.example.org/wiki/Haupt:Seite</base>
<namespaces><namespace key="0"/><namespace key="6">Datei</namespace><namespace key="14">Kategorie</namespace>
<namespace key="1">Diskussion</namespace></namespaces>{}</siteinfo>"""


def page(number, text, title="A page", namespace=0, more="", model="wikitext"):
    revision = f"<id>9</id><timestamp>2026-01-0{number % 9 + 1}T00:00:00Z</timestamp><model>{model}</model>"
    return (
        f"<page><title>{title}</title><ns>{namespace}</ns><id>{number}</id>{more}"
        f"<revision>{revision}<text>{escape(text)}</text></revision></page>"
    )


def dump(*pages, more=""):
    root = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="de">'
    return f"{root}\n{SITE.format(more)}\n{''.join(pages)}</mediawiki>"


def read(tmp_path, text, name="a.xml"):
    payload = text.encode() if isinstance(text, str) else text
    (tmp_path / name).write_bytes(payload)
    return list(folder.read(tmp_path, [name]))


def test_articles_are_documents(tmp_path):
    found = read(
        tmp_path,
        dump(
            page(1, "'''Öl''' is [[liquid|a liquid]].", "Öl & Fett/Arten"),
            page(2, "talk", namespace=1),
            page(3, "#REDIRECT [[Öl]]", more='<redirect title="Öl"/>'),
            page(4, "{{only}}"),
            page(5, "{}", model="json"),
        ).replace("Öl & Fett", "Öl &amp; Fett"),
    )
    assert found == [
        Document(
            id="dewiki/1",
            text="Öl is a liquid.\n",
            source="wiki",
            url="https://de.example.org/wiki/%C3%96l_&_Fett/Arten",
            language="de",
            meta={"title": "Öl & Fett/Arten", "date": "2026-01-02T00:00:00Z"},
        ),
        Dropped("dewiki/4", "wiki", "extract_empty", 8),
        Dropped("dewiki/5", "wiki", "not_wikitext", 2),
    ]


@pytest.mark.parametrize(
    ("ending", "pack"),
    [
        ("xml.gz", lambda payload: gzip.compress(payload[:900]) + gzip.compress(payload[900:])),
        ("xml.bz2", lambda payload: bz2.compress(payload[:900]) + bz2.compress(payload[900:])),
    ],
)
def test_dumps_may_be_compressed_and_of_a_damaged_one_the_articles_before_are_kept(tmp_path, ending, pack):
    text = dump(*(page(number, f"Text number {number}.") for number in range(30)))
    packed = pack(text.encode())
    assert read(tmp_path, packed, f"a.{ending}") == read(tmp_path, text)
    for payload in (packed[:-20], packed[:-3], packed[: len(packed) // 2], pack(text[:-30].encode())):
        *before, last = read(tmp_path, payload, f"a.{ending}")
        assert (last.id, last.reason, last.size) == (f"a.{ending}", "damaged_file", len(payload))
        assert last.detail
        assert before == read(tmp_path, text)[: len(before)]
    assert len(before) == 29


def test_articles_before_the_damage_are_kept_however_near(tmp_path):
    text = dump(*(page(number, f"Text number {number}.") for number in range(30)))
    at = text.index("Text number 20.")
    *before, last = read(tmp_path, f"{text[:at]}<{text[at:]}")
    assert before == read(tmp_path, text)[:20]
    assert last.reason == "damaged_file"


@pytest.mark.parametrize(
    ("said", "license"),
    [
        ("", ""),
        ("<rights>https://creativecommons.org/licenses/by-sa/4.0/</rights>", "CC-BY-SA-4.0"),
        ('<rights href="http://creativecommons.org/licenses/by-sa/3.0/deed.de"/>', "CC-BY-SA-3.0"),
    ],
)
def test_the_license_is_what_the_dump_says(tmp_path, said, license):
    (found,) = read(tmp_path, dump(page(1, "text"), more=said))
    assert found.license == license


def test_of_several_revisions_the_last_counts(tmp_path):
    text = dump(page(1, "old").replace("</page>", "<revision><text>new</text></revision></page>"))
    assert [one.text for one in read(tmp_path, text)] == ["new\n"]


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("a [[Datei:x.jpg|thumb|with [[links]] and [[File:y.png]]]] b", "a  b"),
        ("a\n[[Kategorie:Öl]]\n[[ category : X]]\n[[en:Oil]]\n[[zh-min-nan:Iû]]\n[[simple:Oil]]", "a"),
        ("[[:Kategorie:Öl|see]] [[Re:Zero]] [[plain]]", "see Re:Zero plain"),
        ("a{{cite|b={{c}}}}<ref>no</ref><ref name=x/> b", "a b"),
        ("a ({{IPA|x}}; {{lang|y}}) b", "a b"),
        ("a\n{| class=x\n! head\n|-\n| cell [[b]]\n|}\nc", "a\n\nc"),
        ("== Title ==\n* one\n# '''two''' ''three''\n: four", "Title\none\ntwo three\nfour"),
        ("a <!-- no --> b<br/>&nbsp;&amp;<span style='x'>c</span> __NOTOC__", "a  b\xa0&c"),
        ("[http://x.org name] <math>x^2</math><gallery>a.jpg</gallery>x<sup>2</sup>", "name x2"),
        ("{{open\n[[ left ''open\n|- cell\n</div>text", "open\nleft open\ntext"),
        ("[[Datei:unfinished.jpg|thumb| text", "Datei:unfinished.jpg|thumb| text"),
    ],
)
def test_markup_becomes_text(markup, text):
    site = ["Datei", "Kategorie", "File", "Category"]
    assert wiki.plain_text(markup, site) == (text + "\n", None)


BOMB = """<!DOCTYPE mediawiki [<!ENTITY a "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa">
{}]>{}"""


def test_entities_do_not_grow(tmp_path):
    entities = "\n".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghijk", "bcdefghijkl"))
    laughs = dump(page(1, "ENTITY")).replace("ENTITY", "&l;")
    file = dump(page(1, "ENTITY")).replace("ENTITY", "&f;")
    tracemalloc.start()
    for text in (
        BOMB.format(entities, laughs),
        BOMB.format('<!ENTITY f SYSTEM "file:///etc/passwd">', file),
        BOMB.format("", dump()),
    ):
        assert [item.reason for item in read(tmp_path, text)] == ["no_mediawiki_dump"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no XML",
        "<html><p>text</p></html>",
        "<mediawiki>" + "<a>" * 1000 + "</a>" * 1000 + "</mediawiki>",
        f'<mediawiki a="{"x" * (3 << 20)}"></mediawiki>',
        f"<mediawiki><{'x' * (3 << 20)}/></mediawiki>",
    ],
    ids=["empty", "text", "html", "deep", "attribute", "name"],
)
def test_other_xml_is_counted(tmp_path, text):
    (found,) = read(tmp_path, text)
    assert found == Dropped("a.xml", "wiki", "no_mediawiki_dump", len(text))


def test_a_huge_page_is_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(wiki, "MAX_MARKUP", 10_000)
    pages = (page(1, "word " * 4_000_000), page(2, "text"), page(3, "x", "y" * 3_000_000), page(4, "z"))
    packed = gzip.compress(dump(*pages).encode())
    tracemalloc.start()
    found = read(tmp_path, packed, "a.xml.gz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found[0] == Dropped("dewiki/1", "wiki", "page_too_large", 20_000_000)
    assert [item.text for item in found[1:]] == ["text\n", "x\n", "z\n"]
    assert len(found[2].meta["title"]) <= wiki.MAX_FIELD
    assert peak < 16 << 20


@pytest.mark.parametrize("markup", ["<a b='" * 4000, "[http://a " * 8000, "{{a|" * 8000])
def test_markup_that_takes_the_parser_minutes_costs_that_page_only(tmp_path, monkeypatch, markup):
    monkeypatch.setattr(wiki, "parser", functools.partial(parser, seconds=1.0))
    first, second = read(tmp_path, dump(page(1, markup), page(2, "text")))
    assert first == Dropped("dewiki/1", "wiki", "extract_timeout", len(markup))
    assert second.text == "text\n"


def test_real_dumps_are_read_as_mwxml_reads_them():
    mwxml = pytest.importorskip("mwxml")
    path = real("wiki") / "ltgwiki_smallwiki-pages-articles.xml.gz"
    with gzip.open(path) as file:
        pages = [one for one in mwxml.Dump.from_file(file) if one.namespace == 0 and not one.redirect]
    found = list(wiki.read(path, path.name))
    assert [item.id for item in found] == [f"ltgwiki/{one.id}" for one in pages]
    assert len(found) == 903
    texts = [item.text for item in found if isinstance(item, Document)]
    assert len(texts) == 896
    for mark in ("[[", "]]", "{{", "}}", "{|", "|}", "''", "<ref", "__", "Kategoreja:", "Fails:"):
        assert sum(mark in text for text in texts) <= 2, mark
