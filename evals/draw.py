"""How figures are drawn: the house style, horizontal bars, and the way onto a page or into a PNG file.

A figure is drawn in CSS pixels (one is one point of Matplotlib) at the width of where it will stand, so that
its text comes out at the size of the page's small print on a desktop and on a phone alike.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from core.files import atomic_write
from core.page import COLOURS, Html, Page, escape, short
from core.progress import count

WIDE, SMALL, NARROW = 984, 420, 360  # pixels: the page's column, half of it, a phone
SERIES = ("blue", "orange", "green", "pink", "amber")  # at most so many in one figure
LIGHT = {name: light for name, (light, _) in COLOURS.items()}
TEXT, TITLE = 11.5, 13  # pixels
FOLDED = 24  # rows of a table from which on it is folded away
MARGIN = 44  # pixels to the left of a panel, for the numbers of its axis
STYLE = {
    "font.family": "DejaVu Sans",  # comes with Matplotlib; in SVG the page's own font takes its place
    "font.size": TEXT,
    "text.color": LIGHT["ink"],
    "text.parse_math": False,  # names of sources may hold dollar signs
    "svg.fonttype": "none",
    "svg.hashsalt": "quintet",  # the same figure gives the same bytes
    "path.simplify_threshold": 0.25,
    "lines.linewidth": 1.6,
}
_VARIABLES = {light: f"var(--{name}, {light})" for name, light in LIGHT.items()}
styled = matplotlib.rc_context(STYLE)  # decorates what draws


def svg(figure: Figure, name: str, alt: str) -> Html:
    """The figure as inline SVG: text stays text, colours follow the page's theme, ids begin with `name`."""
    text = io.StringIO()
    with _saving():
        figure.savefig(text, format="svg", metadata={"Date": None})
    drawing = re.sub(r"<metadata>.*?</metadata>", "", text.getvalue(), flags=re.DOTALL)
    drawing = drawing[drawing.index("<svg") :].partition(">")[2]
    drawing = re.sub(r"<[^>]+>", lambda match: _own(match[0], name), drawing)
    width, height = figure.get_size_inches() * 72
    view = f'viewBox="0 0 {width:.0f} {height:.0f}" style="max-width: {width * 1.12:.0f}px; overflow: visible"'
    return Html(f'<svg {view} role="img" aria-label="{escape(alt)}">{drawing}')


def png(figure: Figure, file: Path | IO[bytes]) -> None:
    """The figure as PNG at 180 dots per inch, on the light surface."""
    with _saving():
        figure.savefig(file, format="png", dpi=180, bbox_inches="tight", pad_inches=0.2)


class Sheet:
    """A page and the pictures on it."""

    def __init__(self, page: Page):
        self.page, self.drawn = page, {}

    def figure(self, name: str, make: Callable[[int], Figure], alt: str, caption: str = "") -> None:
        """A picture over the whole width, drawn for a desktop and for a phone."""
        self.drawn[name], narrow = make(WIDE), make(NARROW)
        wide = svg(self.drawn[name], name, alt)
        self.page.figure(wide, caption, narrow=svg(narrow, f"{name}-narrow", alt))

    def small(self, drawn: dict[str, tuple[Figure, str]]) -> None:
        """Small pictures side by side, with what they say."""
        self.drawn |= {name: figure for name, (figure, _) in drawn.items()}
        self.page.figures((svg(figure, name, alt), "") for name, (figure, alt) in drawn.items())

    def write(self, path: Path) -> list[Path]:
        """Writes the page, and beside it a PNG of each picture; returns all of them."""
        self.page.write(path)
        for old in path.parent.glob("*.png"):
            old.unlink()
        images = {path.with_name(f"{name}.png"): figure for name, figure in self.drawn.items()}
        for image, figure in images.items():
            with atomic_write(image) as file:
                png(figure, file)
        return [path, *images]

    def table(self, what: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table, folded away where it is long."""
        if len(rows) <= FOLDED:
            self.page.table(head, rows)
            return
        with self.page.details(f"{what}, {len(rows):,} rows"):
            self.page.table(head, rows)


def blank(width: float, height: float) -> Figure:
    """An empty figure, in pixels."""
    empty = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor=LIGHT["surface"])
    FigureCanvasAgg(empty)
    return empty


def panel(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in pixels, in the house style."""
    across, up = figure.get_size_inches() * 72
    axes = figure.add_axes((left / across, bottom / up, width / across, height / up), facecolor="none")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set(color=LIGHT["other"], linewidth=0.8)
    axes.tick_params(length=0, pad=6, labelsize=TEXT, labelcolor=LIGHT["muted"], which="both")
    axes.grid(visible=True, axis="y", color=LIGHT["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.label.set(color=LIGHT["muted"], fontsize=TEXT)
    axes.xaxis.labelpad = 6
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(plain))
    return axes


def steps(axes: Axes, last: int) -> None:
    """The horizontal axis counts steps from 0 to the last."""
    axes.set_xlim(0, max(last, 1))
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(plain))
    axes.set_xlabel("steps", loc="left")


def title(axes: Axes, text: str, margin: int = MARGIN) -> None:
    """A title above a panel, flush with the numbers of its axis."""
    style = {"fontsize": TITLE, "fontweight": "bold", "textcoords": "offset points"}
    axes.annotate(text, (0, 1), (-margin, 16), xycoords="axes fraction", annotation_clip=False, **style)


def head(figure: Figure, title: str, lines: list[list[tuple[float, str, str]]]) -> None:
    """Title and legend at the top left; each line of the legend takes 20 pixels."""
    width, height = figure.get_size_inches() * 72
    figure.text(0, 1 - 14 / height, title, fontsize=TITLE, fontweight="bold", va="center")
    for index, line in enumerate(lines):
        y = 1 - (40 + 20 * index) / height
        for x, label, colour in line:
            figure.text(x / width, y, f"■ {label}", color=LIGHT[colour], va="center")


def legend_lines(legend: list[tuple[str, str]], width: int) -> list[list[tuple[float, str, str]]]:
    """Lines of (pixels from the left, label, colour) that fit the width."""
    lines, x = [], 0.0
    for label, colour in legend:
        label = short(label, 40)
        length = 34 + 7 * len(label)
        if not lines or x + length > width:
            lines.append([])
            x = 0.0
        lines[-1].append((x, label, colour))
        x += length
    return lines


def bars(
    title: str,
    bars: list[tuple[str, str, list[tuple[float, str]]]],
    legend: list[tuple[str, str]],
    width: int,
    unit: str,
    formatter: Callable[[float, Any], str],
    highlight: str | None = None,
    ordered: bool = False,
    marks: Mapping[str, float] = MappingProxyType({}),
) -> Figure:
    """Horizontal bars from zero under their names, so that long names fit on a phone, longest first.

    With one to `highlight`, the shortest is first; `ordered` bars stay as they come. `marks` are limits by name.
    """
    if not ordered:
        bars = sorted(bars, key=lambda bar: sum(value for value, _ in bar[2]), reverse=highlight is None)
        bars = _few(bars, formatter)
    lines = legend_lines(legend, width)
    pitch, height = 40, 40 + 20 * len(lines) + 40 * len(bars) + 46
    figure = blank(width, height)
    room = 16 + 8 * max((len(value) for _, value, _ in bars), default=0)
    axes = panel(figure, 0, 46, width - room, pitch * len(bars))
    head(figure, title, lines)
    longest = max((*(sum(value for value, _ in parts) for _, _, parts in bars), *marks.values()), default=0) or 1
    axes.set_xlim(0, longest)
    axes.set_ylim(len(bars), 0)
    for row, (name, value, parts) in enumerate(bars):
        ours = {"color": LIGHT["blue"], "fontweight": "bold"} if name == highlight else {}
        axes.text(0, row + 0.34, short(name, width // 8), va="center", **ours)
        start = 0.0
        for amount, colour in parts:
            axes.add_patch(Rectangle((start, row + 0.56), amount, 0.3, color=LIGHT[colour], lw=0, zorder=2))
            start += amount
        end = max(start, marks.get(name, 0))
        axes.annotate(value, (end, row + 0.71), (7, 0), textcoords="offset points", va="center", **ours)
        if name in marks:
            axes.plot([marks[name]] * 2, [row + 0.5, row + 0.92], color=LIGHT["ink"], lw=2, clip_on=False, zorder=3)
    axes.yaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=LIGHT["grid"], linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(max(3, width // 110), steps=[1, 2, 5, 10], integer=longest > 5))
    axes.xaxis.set_major_formatter(FuncFormatter(formatter))
    axes.set_xlabel(unit, loc="left")
    return figure


def _few(bars: list, formatter: Callable[[float, Any], str], most: int = 12) -> list:
    """A corpus may have hundreds of sources; the smallest are shown together."""
    if len(bars) <= most:
        return bars
    sums: dict[str, float] = {}
    for _, _, parts in bars[most - 1 :]:
        for amount, colour in parts:
            sums[colour] = sums.get(colour, 0) + amount
    total = formatter(sum(sums.values()), None)
    return [*bars[: most - 1], (f"{len(bars) - most + 1} others", total, [(v, c) for c, v in sums.items()])]


def plain(value: float, _: Any = None) -> str:
    """A number on an axis: 0.001, 12,000, 1.5M."""
    return count(value) if abs(value) >= 1e6 else f"{value:,.10g}"


@contextlib.contextmanager
def _saving() -> Iterator[None]:
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # names in any script: the browser has fonts for them
        yield


def _own(text: str, name: str) -> str:
    """One tag of Matplotlib's SVG with its own ids, and its colours as variables that fall back to light."""
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'\b(?:xlink:)?href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    return re.sub(r"(fill|stroke): (#[0-9a-f]{6})", lambda m: f"{m[1]}: {_VARIABLES.get(m[2], m[2])}", text)
