"""Pages: no text becomes markup, nothing is fetched, every link arrives, every colour can be read."""

import base64
import hashlib
import html.parser
import re

import pytest

from core.page import COLOURS, Page, code, link, printable, tag

HOSTILE = "<script>alert(1)</script> \"'& </pre></style> \x00 \x1b[0m \ud800 \r\n\tend \u202e"
EXTERNAL = re.compile(r"https?:|//[a-z]|@import|url\((?!#)|(?:src|srcset|action)=", re.IGNORECASE)


class Reader(html.parser.HTMLParser):
    """Tags, attributes and text as a browser would see them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data

    def values(self, name):
        return [value for key, value in self.attributes if key == name]


def page_of_everything(text: str) -> Page:
    page = Page(text, text, footer=text)
    page.section(text, text)
    page.heading(text)
    page.text(text, code(text), link(text, text))
    page.notice(text)
    page.tiles([(text, text, text)])
    page.table([text, "number"], [(text, 1234), (code(text), 5)])
    page.figure(tag("svg", text), text, narrow=tag("svg", text))
    page.figures([(tag("svg", text), text)])
    page.pre(text)
    with page.details(text):
        page.tree({text: text, "list": [{text: text}], "group": {text: [text]}})
    return page


def test_hostile_text_stays_text():
    harmless, hostile = (Reader(page_of_everything(text).render()) for text in ("plain", HOSTILE))
    assert hostile.tags == harmless.tags
    assert hostile.text.count(printable(HOSTILE)) == harmless.text.count("plain") - 3  # values in the tree
    assert {"\x00", "\x1b", "\ud800", "\r"}.isdisjoint(hostile.text)


def test_attributes_cannot_be_left():
    reader = Reader(tag("a", "text", href='"><script>', class_="'x' onclick='y'"))
    assert reader.attributes == [("href", '"><script>'), ("class", "'x' onclick='y'")]
    assert reader.tags == ["a"]


def test_nothing_is_fetched():
    text = page_of_everything("plain").render()
    assert not EXTERNAL.search(text)
    assert "default-src 'none'" in text
    assert "script" not in Reader(text).tags


def test_a_pages_own_script_is_allowed_by_its_hash():
    script = "document.title = '<b>';"
    page = Page("title", style=".own { color: red; }", script=script)
    page.put("<i>", tag("div", "as it is"))
    text = page.render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\"" in text
    assert f"<script>{script}</script>" in text
    assert "&lt;i&gt;<div>as it is</div>" in text
    assert ".own { color: red; }" in text


def test_links_arrive():
    page = Page("title")
    page.section("First things")
    page.text(link("on", "Über & Last!"))
    page.section("Über & Last!")
    reader = Reader(page.render())
    targets = [value.removeprefix("#") for value in reader.values("href") if value.startswith("#")]
    assert len(targets) == 3
    assert set(targets) == set(reader.values("id"))


def test_preformatted_text_keeps_its_first_newline():
    page = Page("title")
    page.pre("\n    indented\n")
    assert "<pre>\n\n    indented\n</pre>" in page.render()


def test_columns_of_numbers_are_aligned():
    page = Page("title")
    page.table(["name", "count", "ratio", "mixed"], [("a", 12345, 0.5, 1), ("b", 1, 2.0, "none")])
    text = page.render()
    assert '<td class="number">12,345</td><td class="number">0.500</td><td>1</td>' in text


def test_a_page_is_written_whole(tmp_path):
    page = page_of_everything(HOSTILE)
    page.write(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page.render()
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def luminance(colour: str) -> float:
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("ground", ["surface", "raised"])
@pytest.mark.parametrize("name", ["ink", "muted", "blue", "orange", "green", "pink", "amber"])
def test_text_can_be_read(name, ground, theme):
    """WCAG 2 asks for a contrast of 4.5."""
    lighter, darker = sorted((luminance(COLOURS[key][theme]) for key in (name, ground)), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5
