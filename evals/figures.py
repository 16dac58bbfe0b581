"""Figures of a run, one function each, from plain rows: for the report, for PNG files and for notebooks.

A figure is drawn in CSS pixels (one is one point of Matplotlib) at the width of where it will stand, so that
its text comes out at the size of the page's small print on a desktop and on a phone alike.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from core.page import COLOURS, Html, escape, printable
from core.progress import count

Rows = Sequence[Mapping[str, Any]]
WIDE, SMALL, NARROW = 984, 420, 360  # pixels: the page's column, half of it, a phone
SERIES = ("blue", "orange", "green", "pink", "amber")  # at most so many in one figure
LIGHT = {name: light for name, (light, _) in COLOURS.items()}
TEXT, TITLE = 11.5, 13  # pixels
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
SMOOTHED_FROM = 40  # rows; fewer show their own shape
styled = matplotlib.rc_context(STYLE)  # decorates what draws


@styled
def loss(rows: Rows, width: int = WIDE) -> Figure:
    """Training loss, and held-out bits per byte beside it, or below on a narrow page."""
    heldout = column(rows, "heldout_bits_per_byte")
    last = max((row["step"] for row in rows), default=1)
    if not len(heldout[0]):
        figure = _figure(width, 310)
        _training_loss(_panel(figure, MARGIN, 46, width - 100, 230), rows, last)
    elif width >= 700:
        figure, first = _figure(width, 310), round((width - 200) * 0.62)
        _training_loss(_panel(figure, MARGIN, 46, first, 230), rows, last)
        _heldout_loss(_panel(figure, first + 150, 46, width - first - 206, 230), *heldout, last)
    else:
        figure = _figure(width, 570)
        _training_loss(_panel(figure, MARGIN, 306, width - 100, 230), rows, last)
        _heldout_loss(_panel(figure, MARGIN, 46, width - 100, 180), *heldout, last)
    return figure


@styled
def learning_rate(rows: Rows, width: int = SMALL) -> Figure:
    """The schedule as it ran."""
    figure, axes = _single(rows, "Learning rate", width)
    steps, values = column(rows, "learning_rate")
    axes.plot(steps, values, color=LIGHT["blue"])
    axes.set_ylim(0, _above(values))
    return figure


@styled
def grad_norm(rows: Rows, clip: float | None = None, width: int = SMALL) -> Figure:
    """Global gradient norm before clipping, with the norm above which it is clipped."""
    steps, values = column(rows, "grad_norm")
    log = len(values) > 1 and min(values) > 0 and max(values) > 20 * np.median(values)
    figure, axes = _single(rows, "Gradient norm before clipping" + (", log scale" if log else ""), width)
    _noisy(axes, steps, values)
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    else:
        axes.set_ylim(0, _above([*values, clip or 0]))
    if clip:
        _level(axes, clip, f"clip {clip:g}")
    return figure


@styled
def max_logit(rows: Rows, width: int = SMALL) -> Figure:
    """The largest attention logit of any layer and head; growth without end foretells divergence."""
    figure, axes = _single(rows, "Largest attention logit", width)
    steps, values = column(rows, "max_logit")
    _noisy(axes, steps, values)
    axes.set_ylim(min(0, *values, 0), _above(values))
    return figure


@styled
def tokens_per_second(rows: Rows, width: int = SMALL) -> Figure:
    """Speed between logged steps; what lies far above the rest is marked at the edge, not left out unsaid."""
    figure, axes = _single(rows, "Tokens per second", width)
    steps, values = column(rows, "tokens_per_second")
    if not len(values):
        return figure
    median = float(np.median(values))
    top = min(_above(values), 1.6 * median)
    beyond = values > top
    colour = LIGHT["soft" if len(values) >= SMOOTHED_FROM else "blue"]
    axes.plot(steps[~beyond], values[~beyond], color=colour, linewidth=1.2)
    edge = np.full(beyond.sum(), top * 0.985)
    axes.plot(steps[beyond], edge, "^", color=LIGHT["orange"], markersize=5, clip_on=False)
    axes.set_ylim(0, top)
    _level(axes, median, f"median\n{count(median)}", "blue")
    if beyond.any():
        place = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "right"}
        axes.annotate(f"▲ {beyond.sum():,} above the axis", (1, 1), (0, 16), color=LIGHT["orange"], **place)
    return figure


@styled
def sources(counts: Mapping[str, Mapping[str, int]], width: int = SMALL) -> Figure:
    """Bytes kept of every source, to train on and held out; `counts` is the curation's summary by source."""
    kinds = [("to train on", "train", SERIES[0]), ("held out", "heldout", SERIES[1])]
    bars = []
    for name, own in counts.items():
        parts = [(own.get(f"{kind}_bytes", 0), colour) for _, kind, colour in kinds]
        bars.append((name, quantity(sum(value for value, _ in parts)), parts))
    legend = [(label, colour) for label, _, colour in kinds]
    return _bars("Kept, by source", bars, legend, width, "bytes of text", lambda value, _: quantity(value))


@styled
def drops(counts: Mapping[str, Mapping[str, int]], width: int = SMALL) -> Figure:
    """Documents dropped for every reason, coloured by source where that stays legible."""
    reasons: dict[str, dict[str, int]] = {}
    for source, own in counts.items():
        for key, number in own.items():
            if key.startswith("dropped:"):
                reasons.setdefault(key.removeprefix("dropped:"), {})[source] = number
    names = [source for source, own in counts.items() if any(key.startswith("dropped:") for key in own)]
    split = 1 < len(names) <= len(SERIES)
    colours = dict(zip(names, SERIES)) if split else dict.fromkeys(names, "blue")
    bars = []
    for reason, own in reasons.items():
        parts = [(number, colours[source]) for source, number in own.items()]
        bars.append((reason.replace("_", " "), f"{sum(own.values()):,}", parts))
    legend = list(colours.items()) if split else []
    return _bars("Dropped, by reason", bars, legend, width, "documents", _plain)


@styled
def compressors(ours: float, name: str, others: Mapping[str, Mapping[str, float]], width: int = WIDE) -> Figure:
    """Bits per byte of the model, highlighted, beside general compressors on the same bytes."""
    ways = {"each_document": "each document alone", "one_stream": "all documents as one stream"}
    bars = [(name, f"{ours:.3f}", [(ours, "blue")])]
    for compressor, figures in others.items():
        for way, value in figures.items():
            bars.append((f"{compressor}, {ways.get(way, way)}", f"{value:.3f}", [(value, "other")]))
    title = "Held-out bits per byte, lower is better"
    return _bars(title, bars, [], width, "bits per byte", _plain, highlight=name)


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


def column(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the rows that hold a finite `key`."""
    own = [row for row in rows if np.isfinite(row.get(key, np.nan))]
    return np.array([row["step"] for row in own], np.int64), np.array([row[key] for row in own], np.float64)


def smooth(values: np.ndarray) -> np.ndarray:
    """A mean over about a thirtieth of the rows to either side, twice, for a soft window.

    Towards the first row the window shrinks from both sides: there the loss falls too fast to average.
    """
    index = np.arange(len(values))
    reach = np.minimum(index, max(len(values) // 60, 1))
    begin, end = index - reach, np.minimum(index + reach + 1, len(values))
    for _ in range(2):
        sums = np.concatenate([[0.0], np.cumsum(values)])
        values = (sums[end] - sums[begin]) / (end - begin)
    return values


def quantity(number: float, unit: str = "B") -> str:
    """10,400,000 bytes as 10.4 MB; with the unit FLOP as 10.4 MFLOP."""
    for power, prefix in zip(range(21, 0, -3), "ZEPTGMk"):
        if number >= 10**power:
            return f"{number / 10**power:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}" if number else "0"


def _training_loss(axes: Axes, rows: Rows, last: int) -> None:
    _title(axes, "Training loss, nats per token")
    steps, values = column(rows, "loss")
    _steps(axes, last)
    if not len(values):
        return
    shown = _noisy(axes, steps, values)
    _end_label(axes, steps[-1], shown[-1], f"{shown[-1]:.2f}")
    tokens = int(column(rows, "tokens")[1][-1])
    axes.set_xlabel(f"steps of {tokens // steps[-1]:,} tokens, {count(tokens)} in all", loc="left")


def _heldout_loss(axes: Axes, steps: np.ndarray, values: np.ndarray, last: int) -> None:
    _title(axes, "Held-out bits per byte")
    _steps(axes, last)
    axes.plot(steps, values, color=LIGHT["orange"], marker="o", markersize=3.5, clip_on=False)
    _end_label(axes, steps[-1], values[-1], f"{values[-1]:.3f}", "orange")


def _noisy(axes: Axes, steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Every value in a light line, the smoothed one over it; returns what the strong line shows."""
    if len(values) < SMOOTHED_FROM:
        axes.plot(steps, values, color=LIGHT["blue"])
        return values
    axes.plot(steps, values, color=LIGHT["soft"], linewidth=1)
    axes.plot(steps, smooth(values), color=LIGHT["blue"], linewidth=1.8)
    return smooth(values)


def _single(rows: Rows, title: str, width: int) -> tuple[Figure, Axes]:
    figure = _figure(width, 230)
    axes = _panel(figure, MARGIN, 46, width - 104, 144)
    _title(axes, title)
    _steps(axes, max((row["step"] for row in rows), default=1))
    return figure, axes


def _bars(
    title: str,
    bars: list[tuple[str, str, list[tuple[float, str]]]],
    legend: list[tuple[str, str]],
    width: int,
    unit: str,
    formatter: Callable[[float, Any], str],
    highlight: str | None = None,
) -> Figure:
    """Horizontal bars from zero under their names, so that long names fit on a phone, longest first.

    With one to `highlight`, the shortest is first.
    """
    bars = sorted(bars, key=lambda bar: sum(value for value, _ in bar[2]), reverse=highlight is None)
    bars = _few(bars, formatter)
    lines = _legend_lines(legend, width)
    pitch, height = 40, 40 + 20 * len(lines) + 40 * len(bars) + 46
    figure = _figure(width, height)
    room = 16 + 8 * max((len(value) for _, value, _ in bars), default=0)
    axes = _panel(figure, 0, 46, width - room, pitch * len(bars))
    figure.text(0, 1 - 14 / height, title, fontsize=TITLE, fontweight="bold", va="center")
    for index, line in enumerate(lines):
        y = 1 - (40 + 20 * index) / height
        for x, label, colour in line:
            figure.text(x / width, y, f"■ {label}", color=LIGHT[colour], va="center")
    longest = max((sum(value for value, _ in parts) for _, _, parts in bars), default=0) or 1
    axes.set_xlim(0, longest)
    axes.set_ylim(len(bars), 0)
    for row, (name, value, parts) in enumerate(bars):
        ours = {"color": LIGHT["blue"], "fontweight": "bold"} if name == highlight else {}
        axes.text(0, row + 0.34, _short(name, width // 8), va="center", **ours)
        start = 0.0
        for amount, colour in parts:
            axes.add_patch(Rectangle((start, row + 0.56), amount, 0.3, color=LIGHT[colour], lw=0, zorder=2))
            start += amount
        axes.annotate(value, (start, row + 0.71), (7, 0), textcoords="offset points", va="center", **ours)
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


def _legend_lines(legend: list[tuple[str, str]], width: int) -> list[list[tuple[float, str, str]]]:
    lines, x = [], 0.0
    for label, colour in legend:
        label = _short(label, 40)
        length = 34 + 7 * len(label)
        if not lines or x + length > width:
            lines.append([])
            x = 0.0
        lines[-1].append((x, label, colour))
        x += length
    return lines


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor=LIGHT["surface"])
    FigureCanvasAgg(figure)
    return figure


def _panel(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
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
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    return axes


def _steps(axes: Axes, last: int) -> None:
    axes.set_xlim(0, max(last, 1))
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.set_xlabel("steps", loc="left")


def _title(axes: Axes, text: str) -> None:
    style = {"fontsize": TITLE, "fontweight": "bold", "textcoords": "offset points"}
    axes.annotate(text, (0, 1), (-MARGIN, 16), xycoords="axes fraction", annotation_clip=False, **style)


def _end_label(axes: Axes, x: float, y: float, text: str, colour: str = "blue") -> None:
    style = {"color": LIGHT[colour], "fontweight": "bold", "va": "center", "annotation_clip": False}
    axes.annotate(text, (x, y), (8, 0), textcoords="offset points", **style)


def _level(axes: Axes, y: float, text: str, colour: str = "orange") -> None:
    """A horizontal line with its name at the right edge."""
    axes.axhline(y, color=LIGHT[colour], linewidth=1.1, linestyle=(0, (5, 3)))
    style = {"color": LIGHT[colour], "va": "center", "textcoords": "offset points", "annotation_clip": False}
    axes.annotate(text, (1, y), (6, 0), xycoords=axes.get_yaxis_transform(), **style)


def _above(values: Sequence[float]) -> float:
    return float(max(values, default=0)) * 1.08 or 1.0


def _plain(value: float, _: Any = None) -> str:
    return count(value) if abs(value) >= 1e6 else f"{value:,.10g}"


def _short(name: str, most: int) -> str:
    name = printable(name).replace("\n", " ")
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most // 2) + 1 :]}"


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


_VARIABLES = {light: f"var(--{name}, {light})" for name, light in LIGHT.items()}
