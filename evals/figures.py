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
from types import MappingProxyType
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


@styled
def goodput(seconds: Mapping[str, float], width: int = WIDE) -> Figure:
    """Where the wall-clock time of a run went, by kind (`train.goodput`)."""
    kinds = {"step": "in steps", "data": "waiting for data", "setup": "setting up", "rework": "done again"}
    colours = dict(
        zip(("step", "data", "checkpoint", "eval", "compile", "setup", "rework"), (*SERIES, "other", "ink"))
    )
    parts = [(value, colours[kind]) for kind, value in seconds.items() if value]
    total = sum(seconds.values())
    bars = [("all processes of this run", f"{total:,.0f} s", parts)]
    legend = [(f"{kinds.get(k, k)} {v / total:.1%}", colours[k]) for k, v in seconds.items() if v]
    return _bars("Where the time went", bars, legend, width, "seconds", _plain)


@styled
def mixture(
    edges: np.ndarray,
    names: Sequence[str],
    read_SP: np.ndarray,
    stages: Sequence[tuple[int, str, np.ndarray]],
    width: int = WIDE,
) -> Figure:
    """Shares of the sources over the steps, stacked, with the weights asked as lines between them.

    `edges` are the steps between which each of the P points lies; `stages` are first step, label and shares asked.
    """
    colours = [*SERIES, "other"][: len(names)]
    lines = _legend_lines(list(zip(names, colours)), width)
    figure = _figure(width, 316 + 20 * len(lines))
    _head(figure, "Share of each source in the rows read", lines)
    axes = _panel(figure, MARGIN, 46, width - MARGIN - 24, 220)
    _steps(axes, edges[-1])
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    tops_SP = np.concatenate([np.zeros((1, len(edges) - 1)), np.cumsum(read_SP, axis=0)])
    for low, top, colour in zip(tops_SP, tops_SP[1:], colours):
        axes.stairs(top, edges, baseline=low, fill=True, color=LIGHT[colour], linewidth=0)
    ends = [*(first for first, *_ in stages[1:]), edges[-1]]
    labelled = -np.inf
    for (first, label, asked_S), end in zip(stages, ends):
        asked = [level for level in np.cumsum(asked_S) if level < 1 - 1e-9]
        axes.hlines(asked, first, end, color=LIGHT["surface"], linewidth=3)
        axes.hlines(asked, first, end, color=LIGHT["ink"], linewidth=1.2, linestyle=(0, (4, 3)))
        if first:
            axes.axvline(first, color=LIGHT["surface"], linewidth=2)
        x = first / edges[-1] * (width - MARGIN - 24)
        if x - labelled > 8 * len(label) + 14:
            style = {"textcoords": "offset points", "color": LIGHT["muted"], "annotation_clip": False}
            right = x + 7 * len(label) > width - MARGIN
            axes.annotate(label, (first, 1), (-2 if right else 2, 5), ha="right" if right else "left", **style)
            labelled = x
    return figure


@styled
def autocorrelation(curve: np.ndarray, band: float, rows: int, title: str, width: int = SMALL) -> Figure:
    """Mean autocorrelation of the sources over the lags 1, 2, ..., and the 95% band of independent rows."""
    figure = _figure(width, 230)
    axes = _panel(figure, MARGIN + 16, 46, width - MARGIN - 40, 144)
    axes.annotate(
        title, (0, 1), (-MARGIN - 16, 16), xycoords="axes fraction", textcoords="offset points", fontsize=TITLE,
        fontweight="bold", annotation_clip=False,
    )  # fmt: skip
    lags = np.arange(1, len(curve) + 1)
    axes.axhspan(-band, band, color=LIGHT["soft"], linewidth=0)
    axes.axhline(0, color=LIGHT["other"], linewidth=0.8)
    axes.vlines(lags, 0, curve, color=LIGHT["blue"], linewidth=max(0.7, min(3, 0.5 * width / len(lags))))
    axes.set_xlim(0, len(curve) + 1)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.set_xlabel("rows apart", loc="left")
    reach = max(2 * band, 1.15 * float(np.abs(curve).max(initial=0)))
    axes.set_ylim(-reach, reach)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    if rows < len(curve):
        axes.axvline(rows, color=LIGHT["orange"], linewidth=1.1, linestyle=(0, (5, 3)))
        style = {"textcoords": "offset points", "color": LIGHT["orange"], "va": "top"}
        axes.annotate("a batch", (rows, reach), (4, -2), **style)
    return figure


@styled
def packings(title: str, bars: Sequence[tuple[str, float, bool]], width: int = SMALL) -> Figure:
    """A share under both packings of each stage: (label, share, whether the stage asks for this packing)."""
    drawn = [(label, f"{share:.2%}", [(100 * share, "blue" if own else "other")]) for label, share, own in bars]
    return _bars(title, drawn, [("asked", "blue"), ("the other", "other")], width, "%", _plain, ordered=True)


@styled
def epochs(read: Mapping[str, float], limits: Mapping[str, int], width: int = WIDE) -> Figure:
    """How often a run reads each source, and how often it may."""
    names = sorted(read, key=read.get, reverse=True)
    shown, others = (names, []) if len(names) <= 12 else (names[:11], names[11:])
    of = {name: f" of {limit}" for name, limit in limits.items()}
    bars = [(name, f"{times(read[name])}{of.get(name, '')}", [(read[name], "blue")]) for name in shown]
    if others:
        most = read[others[0]]
        bars.append((f"{len(others)} others, each at most", times(most), [(most, "other")]))
    marks = {name: float(limits[name]) for name in shown if name in limits}
    legend = [("read", "blue"), ("may be read", "ink")] if marks else []
    return _bars("Epochs of each source", bars, legend, width, "epochs", _plain, ordered=True, marks=marks)


@styled
def lengths(
    quantiles: Sequence[tuple[str, Sequence[float]]], row_lengths: Sequence[int], width: int = WIDE
) -> Figure:
    """Tokens of the documents of each source: 10th, 50th and 90th percentile, beside the row lengths of the run."""
    pitch, height = 40, 60 + 40 * len(quantiles) + 46
    figure = _figure(width, height)
    axes = _panel(figure, 0, 46, width - 76, pitch * len(quantiles))
    _head(figure, "Tokens of a document: middle four fifths, and median", [])
    ends = [max(1, x) for _, own in quantiles for x in own] + list(row_lengths)
    axes.set_xscale("log")
    axes.set_xlim(min(ends, default=1) / 1.3, max(ends, default=10) * 1.3)
    axes.set_ylim(max(len(quantiles), 1), 0)
    for row, (name, (low, middle, high)) in enumerate(quantiles):
        ground = {"facecolor": LIGHT["surface"], "linewidth": 0, "pad": 1}
        place = {"xycoords": axes.get_yaxis_transform(), "va": "center", "bbox": ground}
        axes.annotate(_short(name, width // 8), (0, row + 0.34), **place)
        axes.plot([max(low, 1), max(high, 1)], [row + 0.71] * 2, color=LIGHT["soft"], linewidth=9)
        axes.plot([max(middle, 1)], [row + 0.71], "o", color=LIGHT["blue"], markersize=7)
        style = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
        axes.annotate(count(middle), (max(high, 1), row + 0.71), (9, 0), **style)
    for index, length in enumerate(sorted(set(row_lengths))):
        axes.axvline(length, color=LIGHT["orange"], linewidth=1.1, linestyle=(0, (5, 3)), zorder=0)
        style = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points", "color": LIGHT["orange"]}
        axes.annotate(f"row {length:,}" if index == 0 else f"{length:,}", (length, 1), (2, 4), **style)
    axes.yaxis.set_visible(False)
    axes.grid(visible=False)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    axes.set_xlabel("tokens, log scale", loc="left")
    return figure


@styled
def bytes_per_token(values: Mapping[str, float], width: int = SMALL) -> Figure:
    """How much text a token carries, by source."""
    bars = [(name, f"{value:.2f}", [(value, "blue")]) for name, value in values.items()]
    return _bars("Bytes per token", bars, [], width, "bytes per token", _plain)


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


def times(number: float) -> str:
    """Epochs: 0.77, 12.34, 1.6M."""
    return f"{number:.2f}" if number < 1000 else count(number)


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
    ordered: bool = False,
    marks: Mapping[str, float] = MappingProxyType({}),
) -> Figure:
    """Horizontal bars from zero under their names, so that long names fit on a phone, longest first.

    With one to `highlight`, the shortest is first; `ordered` bars stay as they come. `marks` are limits by name.
    """
    if not ordered:
        bars = sorted(bars, key=lambda bar: sum(value for value, _ in bar[2]), reverse=highlight is None)
        bars = _few(bars, formatter)
    lines = _legend_lines(legend, width)
    pitch, height = 40, 40 + 20 * len(lines) + 40 * len(bars) + 46
    figure = _figure(width, height)
    room = 16 + 8 * max((len(value) for _, value, _ in bars), default=0)
    axes = _panel(figure, 0, 46, width - room, pitch * len(bars))
    _head(figure, title, lines)
    longest = max((*(sum(value for value, _ in parts) for _, _, parts in bars), *marks.values()), default=0) or 1
    axes.set_xlim(0, longest)
    axes.set_ylim(len(bars), 0)
    for row, (name, value, parts) in enumerate(bars):
        ours = {"color": LIGHT["blue"], "fontweight": "bold"} if name == highlight else {}
        axes.text(0, row + 0.34, _short(name, width // 8), va="center", **ours)
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


def _head(figure: Figure, title: str, lines: list[list[tuple[float, str, str]]]) -> None:
    """Title and legend at the top left; each line of the legend takes 20 pixels."""
    width, height = figure.get_size_inches() * 72
    figure.text(0, 1 - 14 / height, title, fontsize=TITLE, fontweight="bold", va="center")
    for index, line in enumerate(lines):
        y = 1 - (40 + 20 * index) / height
        for x, label, colour in line:
            figure.text(x / width, y, f"■ {label}", color=LIGHT[colour], va="center")


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
