"""HTML files as their visible text. The extraction of main content belongs to the web recipe."""

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from data.document import Document, Dropped

MAX_FILE_BYTES = 16 << 20
HIDDEN = {"script", "style", "noscript", "template", "svg", "head"}
BLOCKS = {
    "address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "figcaption", "footer", "form",
    "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p", "pre", "section", "table",
    "td", "th", "title", "tr", "ul",
}  # fmt: skip


class VisibleText(HTMLParser):
    """Collects the text outside hidden elements, a line per block."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.hidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:  # noqa: ARG002
        """Opens a hidden element or breaks the line."""
        if tag in HIDDEN:
            self.hidden.append(tag)
        elif tag in BLOCKS and not self.hidden:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        """Closes a hidden element, and those left open inside it, or breaks the line."""
        if tag in self.hidden:
            del self.hidden[self.hidden.index(tag) :]
        elif tag in BLOCKS and not self.hidden:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        """Keeps visible text."""
        if not self.hidden:
            self.parts.append(data)

    def text(self) -> str:
        """Lines with single spaces, empty ones removed."""
        lines = (" ".join(line.split()) for line in "".join(self.parts).split("\n"))
        return "\n".join(line for line in lines if line) + "\n"


def read(path: Path, name: str) -> Iterator[Document | Dropped]:
    """The document of one page."""
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        yield Dropped(name, "html", "file_too_large", size)
        return
    try:
        page = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        yield Dropped(name, "html", "undecodable", size)
        return
    parser = VisibleText()
    parser.feed(page)
    parser.close()
    yield Document(id=name, text=parser.text(), source="html", url=name)
