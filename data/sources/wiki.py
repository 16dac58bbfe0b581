"""Articles of MediaWiki dumps (`pages-articles.xml`, also .gz and .bz2) as plain text.

Templates, tables, references and files are left out. The XML is read by expat alone: a page at a time, in bounded
memory, and no document type, so that no entity can grow. The markup is mwparserfromhell's, which takes minutes for a
few KB of a hostile page: it works in a child.
"""

import bz2
import dataclasses
import html
import io
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.parsers import expat

from data.document import Document, Dropped
from data.parser import parser
from data.sources.compressed import Damaged, Whole
from data.sources.html import HUGE_REFERENCE

PARSER = "mwparserfromhell"
packages = (PARSER,)
READ_BYTES = 1 << 16
MAX_MARKUP = 2 << 20  # characters of an article; the longest of Wikipedia have a quarter of that
MAX_FIELD = 1 << 12  # of anything else
MAX_TAG_BYTES = 1 << 20
MAX_DEPTH = 50

LICENSE = re.compile(r"creativecommons\.org/licenses/([a-z-]+)/(\d\.\d)")
MEDIA = {"-2", "6", "14"}  # keys of the namespaces of media, files and categories

LINK = re.compile(r"\[\[|\]\]")
LANGUAGE = r"(?:simple|[a-z]{2,3}(?:-[a-z]+)*)"  # a link to the article in another one is shown in the margin
TAGS = (
    "ref|references|gallery|blockquote|br|div|span|p|small|big|sub|sup|center|font|nowiki|noinclude|onlyinclude|"
    "includeonly"
)
TABLE_LINE = re.compile(r"^[ \t:]*(?:\{\||\|\}|[|!]).*\n?", re.MULTILINE)
LEFTOVER = re.compile(rf"'{{2,}}|__[A-Z]+__|\{{\{{+|\}}\}}+|\[\[|\]\]|</?(?:{TAGS})\b[^<>]*>", re.IGNORECASE)
EMPTY_BRACKETS = re.compile(r" ?\([\s,;:]*\)")  # where templates stood
EMPTY_LINES = re.compile(r"\n\s*\n")


class NoDump(Exception):
    """XML of another kind."""


@dataclasses.dataclass
class Site:
    """What a dump says of itself."""

    name: str
    language: str = ""
    base: str = ""  # the address of its first article
    license: str = ""
    media: list[str] = dataclasses.field(default_factory=lambda: ["Media", "File", "Image", "Category"])


def read(path: Path, name: str) -> Iterator[Document | Dropped]:
    """The articles of one dump, and no redirects, talks or templates."""
    with path.open("rb") as raw:
        dump = Dump(name)
        try:
            stream = bz2.BZ2File(raw) if path.name.lower().endswith(".bz2") else Whole(raw, path.name)
            for page in dump.pages(stream):
                if page.get("ns") == "0" and "redirect" not in page:
                    yield _document(page, dump.site)
        except (expat.ExpatError, NoDump) as error:
            if isinstance(error, expat.ExpatError) and dump.has_begun:
                yield _damaged(path, name, error)
            else:
                yield Dropped(name, "wiki", "no_mediawiki_dump", path.stat().st_size)
        except (Damaged, EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk, while bz2's have none
                raise
            yield _damaged(path, name, error)


def _damaged(path: Path, name: str, error: Exception) -> Dropped:
    return Dropped(name, "wiki", "damaged_file", path.stat().st_size, detail=str(error))


class Dump:
    """Gathers pages from the elements that expat comes upon."""

    def __init__(self, name: str):
        self.site = Site(name)
        self.has_begun = False
        self.open: list[str] = []  # elements, the root first
        self.key = ""  # of the namespace that is open
        self.parts: list[str] = []  # of the text of the innermost
        self.size = 0
        self.page: dict[str, Any] = {}
        self.found: list[dict[str, Any]] = []

    def pages(self, stream: io.IOBase) -> Iterator[dict[str, Any]]:
        """Each page with its fields, of several revisions the last."""
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.CharacterDataHandler = self._text
        size = 0
        while data := stream.read(READ_BYTES):
            try:
                parser.Parse(data)
            except expat.ExpatError:
                yield from self.found  # of what came before
                raise
            size += len(data)
            if size - parser.CurrentByteIndex > MAX_TAG_BYTES:  # which expat holds until it is complete
                raise NoDump
            yield from self.found
            self.found.clear()
        parser.Parse(b"", True)
        yield from self.found

    def _refuse(self, *_: object) -> None:
        raise NoDump

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if len(self.open) > MAX_DEPTH or not (self.open or tag == "mediawiki"):
            raise NoDump
        self.open.append(tag)
        self.parts, self.size = [], 0
        match self.open[1:]:
            case []:
                self.has_begun = True
                self.site.language = attributes.get("xml:lang", "")
            case ["siteinfo", *_]:
                self.key = attributes.get("key", "")
                self._look_for_license(" ".join(attributes.values()))
            case ["page"]:
                self.page = {}
            case ["page", "redirect"]:
                self.page["redirect"] = ""

    def _text(self, data: str) -> None:
        self.size += len(data)
        if self.size <= (MAX_MARKUP if self.open[-1] == "text" else MAX_FIELD):
            self.parts.append(data)

    def _end(self, _: str) -> None:
        value = "".join(self.parts)
        match self.open[1:]:
            case ["siteinfo", "namespaces", "namespace"]:
                if self.key in MEDIA and value:
                    self.site.media.append(value)
            case ["siteinfo", "dbname"]:
                self.site.name = value
            case ["siteinfo", "base"]:
                self.site.base = value
            case ["siteinfo", *_]:
                self._look_for_license(value)
            case ["page"]:
                self.found.append(self.page)
            case ["page", "revision", "text"]:
                self.page |= {"markup": value, "size": self.size}
            case ["page", *rest]:
                self.page["/".join(rest)] = value
        self.open.pop()
        self.parts, self.size = [], 0

    def _look_for_license(self, text: str) -> None:
        if found := LICENSE.search(text):
            self.site.license = f"CC-{found[1].upper()}-{found[2]}"


def _document(page: dict[str, Any], site: Site) -> Document | Dropped:
    identifier, size = f"{site.name}/{page.get('id', '')}", page.get("size", 0)
    if page.get("revision/model", "wikitext") != "wikitext":
        return Dropped(identifier, "wiki", "not_wikitext", size)
    if size > MAX_MARKUP:
        return Dropped(identifier, "wiki", "page_too_large", size)
    text, reason = plain_text(page.get("markup", ""), site.media)
    if reason:
        return Dropped(identifier, "wiki", reason, size)
    title, date = page.get("title", ""), page.get("revision/timestamp", "")
    place = urllib.parse.quote(title.replace(" ", "_"), safe="/:@!$&'()*+,;=")
    return Document(
        id=identifier,
        text=text,
        source="wiki",
        url=f"{site.base.rpartition('/')[0]}/{place}" if site.base else "",
        language=site.language,
        license=site.license,
        meta={"title": title, "date": date},
    )


def plain_text(markup: str, media: list[str]) -> tuple[str, str | None]:
    """What a reader sees of an article, or why there is nothing; `media` are the names of such namespaces."""
    text, reason = parser(PARSER).text(_without_media(markup, media))
    if reason:
        return "", reason
    text = html.unescape(HUGE_REFERENCE.sub("\ufffd", LEFTOVER.sub("", TABLE_LINE.sub("", text))))
    text = EMPTY_BRACKETS.sub("", text)
    text = EMPTY_LINES.sub("\n\n", "\n".join(line.strip() for line in text.split("\n"))).strip()
    return (f"{text}\n", None) if text else ("", "extract_empty")


def _without_media(markup: str, media: list[str]) -> str:
    """Without links to files, to categories and to the article in other languages, and what is inside of them."""
    names = "|".join(map(re.escape, media))
    target = re.compile(rf"\[\[\s*(?:(?i:{names})|{LANGUAGE})\s*:")
    opened: list[int] = []
    spans: list[tuple[int, int]] = []
    for found in LINK.finditer(markup):
        if found[0] == "[[":
            opened.append(found.start())
        elif opened and target.match(markup, start := opened.pop()):
            while spans and spans[-1][0] > start:
                spans.pop()
            spans.append((start, found.end()))
    borders = [0, *(border for span in spans for border in span), len(markup)]
    return "".join(markup[start:end] for start, end in zip(borders[::2], borders[1::2]))
