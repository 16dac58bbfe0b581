"""Self-contained HTML pages for all reports: no network, light and dark, on a phone and on paper.

All text is escaped unless it is `Html`, which only this module's functions and trusted makers of SVG return.
A content security policy in the page forbids what a mistake might let in: nothing is fetched, and no script runs but
the page's own, known by its hash.
"""

import base64
import contextlib
import hashlib
import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.files import atomic_write

# Name of a colour: (in light, in dark). CSS knows each as var(--name). The five hues keep apart for
# colour-blind readers (after Okabe and Ito) and each has the contrast to be read as text on the surface.
COLOURS = {
    "surface": ("#ffffff", "#14171b"),
    "raised": ("#f5f7f9", "#1c2026"),
    "ink": ("#1a1d21", "#e6e9ed"),
    "muted": ("#5c6570", "#9ba5b1"),
    "grid": ("#dde2e7", "#2f353d"),
    "blue": ("#0069a8", "#5ab4f0"),
    "soft": ("#a8cbe4", "#2d546f"),
    "orange": ("#b94e00", "#f2935c"),
    "green": ("#00795a", "#3cc79b"),
    "pink": ("#ad4f88", "#e394c4"),
    "amber": ("#876400", "#dfb54a"),
    "other": ("#8a939d", "#6f7985"),
}

# Control characters and lone surrogates, which HTML or UTF-8 cannot carry.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Html(str):
    """Text that is HTML already and is not escaped again."""


def escape(value: Any) -> Html:
    """Text as HTML; a control character shows as its picture (U+2400 on), a lone surrogate as U+FFFD."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(printable(str(value))))


def printable(text: str) -> str:
    """The text with every character that a page cannot carry replaced by a visible sign."""
    return _UNPRINTABLE.sub(lambda match: _picture(ord(match[0])), text)


def short(name: str, most: int) -> str:
    """A name of at most so many characters, the middle left out."""
    name = printable(name).replace("\n", " ")
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most // 2) + 1 :]}"


def _picture(code: int) -> str:
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


def tag(name: str, *parts: Any, **attributes: Any) -> Html:
    """An element with escaped parts; `class_` stands for class."""
    names = (key.rstrip("_").replace("_", "-") for key in attributes)
    given = "".join(f' {key}="{escape(value)}"' for key, value in zip(names, attributes.values()))
    return Html(f"<{name}{given}>{''.join(map(escape, parts))}</{name}>")


def code(text: Any) -> Html:
    """Monospaced text within a line."""
    return tag("code", text)


def strong(text: Any) -> Html:
    """Emphasised text within a line."""
    return tag("strong", text)


def link(text: Any, section: str) -> Html:
    """A link to a section of the same page, by the section's title."""
    return tag("a", text, href=f"#{anchor(section)}")


def anchor(title: str) -> str:
    """The id of a section."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"


class Page:
    """A page built from top to bottom: `section` begins a section, all other methods add to the current one.

    Text may be a str, which is escaped, `Html`, or several of both. A page has no script unless it is given one, and
    must say everything without it.
    """

    def __init__(self, title: str, *lead: Any, footer: str = "", style: str = "", script: str = ""):
        self.title, self.lead, self.footer, self.style, self.script = title, lead, footer, style, script
        self.sections: list[str] = []
        self.parts: list[Html] = []

    def section(self, title: str, *lead: Any) -> None:
        """Begins a section, which the contents line at the top links to."""
        assert title not in self.sections, f"two sections are called {title}"
        self.sections.append(title)
        self.parts.append(tag("h2", title, id=anchor(title)))
        if lead:
            self.text(*lead)

    def heading(self, title: str) -> None:
        """A heading within a section."""
        self.parts.append(tag("h3", title))

    def text(self, *parts: Any) -> None:
        """A paragraph."""
        self.parts.append(tag("p", *parts))

    def notice(self, *parts: Any) -> None:
        """A paragraph that must not be overlooked, such as what is missing and how to make it."""
        self.parts.append(tag("p", *parts, class_="notice"))

    def tiles(self, tiles: Iterable[tuple[str, str, str]]) -> None:
        """Numbers that sum up the page: (label, value, note) each."""
        cells = [
            tag("div", tag("dt", label), tag("dd", value), tag("dd", note, class_="note"))
            for label, value, note in tiles
        ]
        self.parts.append(tag("dl", *cells, class_="tiles"))

    def table(self, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """A table; a column of numbers is aligned right, floats with three decimals."""
        rows = [list(row) for row in rows]
        numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(head))]
        cells = [tag("th", name, **_right(number)) for name, number in zip(head, numeric)]
        body = [tag("tr", *(tag("td", _cell(v), **_right(n)) for v, n in zip(row, numeric))) for row in rows]
        self._scrolling(tag("table", tag("thead", tag("tr", *cells)), tag("tbody", *body)))

    def figure(self, svg: Html, caption: Any = "", *, narrow: Html | None = None) -> None:
        """An inline SVG; `narrow` is the same drawn for a phone, shown there instead."""
        self.parts.append(_figure(svg, caption, narrow))

    def figures(self, figures: Iterable[tuple[Html, Any]]) -> None:
        """Small (SVG, caption) pairs side by side, as many as fit."""
        drawn = (_figure(svg, caption, None) for svg, caption in figures)
        self.parts.append(tag("div", *drawn, class_="grid"))

    def put(self, *parts: Any) -> None:
        """What needs nothing around it, such as a table with bars."""
        self.parts += map(escape, parts)

    def pre(self, *parts: Any) -> None:
        """Preformatted text: whitespace stays, long lines wrap."""
        # HTML drops a newline that follows <pre>, so one is given away.
        self.parts.append(tag("pre", Html("\n"), *parts))

    def tree(self, value: Mapping[str, Any]) -> None:
        """Nested mappings, such as a config, as indented lines."""
        self.pre("\n".join(_tree(value)))

    @contextlib.contextmanager
    def details(self, summary: str, *, opened: bool = False) -> Iterator[None]:
        """What is added inside the `with` is folded away until asked for."""
        self.parts.append(Html(f"<details{' open' if opened else ''}>{tag('summary', summary)}"))
        yield
        self.parts.append(Html("</details>"))

    def _scrolling(self, inner: Html) -> None:
        self.parts.append(tag("div", inner, class_="scroll", tabindex="0"))

    def render(self) -> str:
        """The whole page."""
        contents = tag("nav", *(link(title, title) for title in self.sections), aria_label="Contents")
        head = [
            Html('<meta charset="utf-8">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{_policy(self.script)}">'),
            Html('<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'),
            tag("title", self.title),
            Html(f"<style>{_STYLE}{self.style}</style>"),
        ]
        lead = [tag("p", *self.lead, class_="lead")] if self.lead else []
        header = tag("header", tag("h1", self.title), *lead)
        footer = [tag("footer", self.footer)] if self.footer else []
        script = [Html(f"<script>{self.script}</script>")] if self.script else []
        body = [header, *([contents] if self.sections else []), tag("main", *self.parts), *footer, *script]
        pieces = "\n".join([*head, "</head><body>", *body])
        return f'<!doctype html>\n<html lang="en"><head>{pieces}\n</body></html>\n'

    def write(self, path: Path) -> None:
        """Writes the page, whole or not at all."""
        with atomic_write(path, "w") as file:
            file.write(self.render())


def _tree(value: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for key, item in sorted(value.items(), key=lambda pair: isinstance(pair[1], Mapping)):
        if isinstance(item, Mapping):
            yield f"{indent}{key}"
            yield from _tree(item, indent + "    ")
        elif isinstance(item, list | tuple) and any(isinstance(part, Mapping) for part in item):
            yield f"{indent}{key}"
            for part in item:
                yield f"{indent}    - " + ", ".join(f"{name}={given!r}" for name, given in part.items())
        else:
            yield f"{indent}{key} = {item!r}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> Any:
    if not _is_number(value):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"


def _right(number: bool) -> dict[str, str]:
    return {"class_": "number"} if number else {}


def _figure(svg: Html, caption: Any, narrow: Html | None) -> Html:
    drawn = [svg] if narrow is None else [tag("div", svg, class_="wide"), tag("div", narrow, class_="narrow")]
    return tag("figure", *drawn, *([tag("figcaption", caption)] if caption else []))


def _policy(script: str) -> str:
    """What a browser allows the page: its own styles, and its own script by its hash."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _POLICY + (f"; script-src 'sha256-{digest}'" if script else "")


def _variables(index: int) -> str:
    return "".join(f"--{name}:{pair[index]};" for name, pair in COLOURS.items())


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_STYLE = f"""
:root {{ {_variables(0)} color-scheme: light dark;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_variables(1)} }} }}
* {{ box-sizing: border-box; }}
html {{ -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }}
body {{ margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 64rem; background: var(--surface);
  color: var(--ink); font: 1rem/1.6 var(--sans); overflow-wrap: break-word; }}
h1 {{ font-size: 2rem; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 .75rem; }}
h2 {{ font-size: 1.35rem; line-height: 1.3; letter-spacing: -.01em; margin: 3.25rem 0 .75rem;
  padding-top: 1.5rem; border-top: 1px solid var(--grid); }}
h3 {{ font-size: 1rem; margin: 2rem 0 .5rem; }}
p {{ max-width: 46rem; margin: .6rem 0 1rem; text-wrap: pretty; }}
.lead {{ font-size: 1.1rem; }}
a {{ color: var(--blue); text-underline-offset: .15em; }}
nav {{ display: flex; flex-wrap: wrap; gap: .15rem 1.25rem; margin: 1.25rem 0 1.5rem; font-size: .92rem; }}
.notice {{ border-left: 3px solid var(--orange); background: var(--raised); padding: .6rem .9rem; }}
.tiles {{ display: grid; grid-template-columns: repeat(3, 1fr); gap: 1px; margin: 2rem 0;
  background: var(--grid); border: 1px solid var(--grid); border-radius: .5rem; overflow: hidden; }}
.tiles > div {{ background: var(--surface); padding: .85rem .9rem; }}
dt {{ color: var(--muted); font-size: .82rem; }}
dd {{ margin: 0; font-size: 1.55rem; font-weight: 600; line-height: 1.35; letter-spacing: -.01em;
  font-variant-numeric: tabular-nums; }}
dd.note {{ color: var(--muted); font-size: .8rem; font-weight: 400; letter-spacing: 0; }}
.scroll {{ overflow-x: auto; margin: 1rem 0 1.5rem; }}
table {{ border-collapse: collapse; font-size: .9rem; line-height: 1.45; min-width: 50%; }}
th, td {{ padding: .35rem 1.5rem .35rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--grid); }}
th {{ color: var(--muted); font-weight: 500; }}
th, td:first-child {{ white-space: nowrap; }}
td:last-child, th:last-child {{ padding-right: 0; }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
figure {{ margin: 1.25rem 0 1.75rem; min-width: 0; }}
figcaption {{ color: var(--muted); font-size: .85rem; line-height: 1.5; max-width: 46rem;
  margin-top: .35rem; }}
svg {{ display: block; width: 100%; height: auto; }}
svg text {{ font-family: var(--sans) !important; font-variant-numeric: tabular-nums; }}
.narrow {{ display: none; }}
.grid {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr));
  gap: 0 2.5rem; }}
.grid figure {{ margin: .75rem 0; }}
code, pre {{ font-family: var(--mono); font-size: .84em; }}
td code {{ white-space: nowrap; }}
pre {{ background: var(--raised); border: 1px solid var(--grid); border-radius: .4rem; padding: .8rem 1rem;
  margin: .5rem 0 1.25rem; line-height: 1.5; tab-size: 4; white-space: pre-wrap; overflow-wrap: anywhere; }}
pre span {{ unicode-bidi: isolate; }}
.given {{ color: var(--muted); }}
.made {{ background: color-mix(in srgb, var(--blue) 13%, transparent);
  -webkit-box-decoration-break: clone; box-decoration-break: clone; print-color-adjust: exact; }}
details {{ margin: .75rem 0; }}
summary {{ cursor: pointer; color: var(--blue); }}
footer {{ margin-top: 4rem; color: var(--muted); font-size: .85rem; }}
@media (max-width: 44rem) {{
  body {{ padding: 1.5rem 1rem 3rem; }}
  h1 {{ font-size: 1.6rem; }}
  .lead {{ font-size: 1rem; }}
  .wide {{ display: none; }}
  .narrow {{ display: block; }}
  .tiles {{ grid-template-columns: 1fr 1fr; }}
  dd {{ font-size: 1.3rem; }}
  th, td {{ padding-right: 1rem; }}
}}
@media print {{
  body {{ max-width: none; padding: 0; font-size: 10pt; }}
  nav {{ display: none; }}
  .wide {{ display: block; }}
  .narrow {{ display: none; }}
  figure, .tiles, tr {{ break-inside: avoid; }}
  h2, h3 {{ break-after: avoid; }}
  a {{ color: inherit; text-decoration: none; }}
}}
"""
