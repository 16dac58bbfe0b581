"""HTML files, and the visible text of a page. The extraction of main content belongs to the web recipe."""

import collections
import html
import re
from collections.abc import Iterator
from pathlib import Path

from data.document import Document, Dropped
from data.sources import page

packages = page.packages
HIDDEN = {"script", "style", "noscript", "template", "svg", "head"}
IN_HEAD = HIDDEN | {"base", "basefont", "bgsound", "html", "link", "meta", "noframes", "title"}
BLOCKS = {
    "address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "figcaption", "footer", "form",
    "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p", "pre", "section", "table",
    "td", "th", "title", "tr", "ul",
}  # fmt: skip

# Python's html.parser takes minutes for a hostile page, quadratic in what is left open. This follows the HTML
# standard instead: what is left open runs to the end of the page, and no pattern ever goes back (`++`, `*+`), so
# the work is linear.
TOKEN = re.compile(
    r"""(?P<text>(?:[^<]|<(?![A-Za-z/!?]))++)
    |<!--(?:-?>|.*?(?:--!?>|\Z))
    |<(?P<end>/?)(?P<tag>[A-Za-z][^\s/>]*+)
      (?:[^>=]*+(?:=\s*+(?:"[^"]*+"|'[^']*+')?+[^>=]*+)*+)(?:(?<=(?P<closed>/))>|>|\Z)
    |<[/!?][^>]*+>?""",
    re.DOTALL | re.VERBOSE,
)
RAW_END = {tag: re.compile(rf"</{tag}(?=[\s/>])|\Z", re.IGNORECASE) for tag in ("script", "style")}
# Python refuses to read a number of thousands of digits.
HUGE_REFERENCE = re.compile(r"&#[0-9]{20,}+;?")


def visible_text(markup: str) -> str:
    """Lines with single spaces, empty ones removed."""
    lines = (" ".join(line.split()) for line in "".join(_visible_parts(markup)).split("\n"))
    return "\n".join(line for line in lines if line) + "\n"


def _visible_parts(markup: str) -> Iterator[str]:
    """The text outside hidden elements, and a line break for every border of a block."""
    hidden, place = Hidden(), 0
    while token := TOKEN.match(markup, place):
        place = token.end()
        if token["text"]:
            hidden.end_head_at_text(token["text"])
            part = html.unescape(HUGE_REFERENCE.sub("\ufffd", token["text"]))
        elif token["tag"]:
            tag = token["tag"].lower()
            part = "\n" if tag in BLOCKS else ""
            if token["end"]:
                hidden.close(tag)
            else:
                hidden.open(tag)
            if token["closed"]:
                hidden.close(tag)
            elif tag in RAW_END and not token["end"]:
                place = RAW_END[tag].search(markup, place).start()
        else:
            continue
        if not hidden.stack:
            yield part


class Hidden:
    """The hidden elements that are open, the outermost first. Each tag costs the same, however many are open."""

    def __init__(self):
        self.stack: list[str] = []
        self.counts = collections.Counter()

    def open(self, tag: str) -> None:
        """Enters a hidden element. As in HTML5, `head` needs no end tag: what cannot stand in it ends it."""
        if tag == "body" or (tag not in IN_HEAD and self._in_head()):
            self.close("head")
        if tag in HIDDEN or (tag == "title" and self._in_head()):
            self.stack.append(tag)
            self.counts[tag] += 1

    def close(self, tag: str) -> None:
        """Leaves an element, and the hidden ones left open inside it."""
        while self.counts[tag]:
            last = self.stack.pop()
            self.counts[last] -= 1
            if last == tag:
                break

    def end_head_at_text(self, text: str) -> None:
        """Words that stand in `head` itself begin the body."""
        if self._in_head() and not text.isspace():
            self.close("head")

    def _in_head(self) -> bool:
        return bool(self.stack) and self.stack[-1] == "head"


def read(path: Path, name: str) -> Iterator[Document | Dropped]:
    """The page itself; extraction or, in a recipe without it, `visible_text` makes text of it."""
    size = path.stat().st_size
    if size > page.MAX_PAGE_BYTES:
        yield Dropped(name, "html", "page_too_large", size)
        return
    meta = {page.MEDIA_TYPE: page.HTML}
    yield page.to_document(path.read_bytes(), id=name, source="html", url=name, meta=meta)
