"""Figures of a run, one function each, from plain rows: for the report, for PNG files and for notebooks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from core.progress import count, quantity
from evals import draw

Rows = Sequence[Mapping[str, Any]]
SMOOTHED_FROM = 40  # rows; fewer show their own shape


@draw.styled
def loss(rows: Rows, width: int = draw.WIDE) -> Figure:
    """Training loss, and held-out bits per byte beside it, or below on a narrow page."""
    heldout = column(rows, "heldout_bits_per_byte")
    last = max((row["step"] for row in rows), default=1)
    if not len(heldout[0]):
        figure = draw.blank(width, 310)
        _training_loss(draw.panel(figure, draw.MARGIN, 46, width - 100, 230), rows, last)
    elif width >= 700:
        figure, first = draw.blank(width, 310), round((width - 200) * 0.62)
        _training_loss(draw.panel(figure, draw.MARGIN, 46, first, 230), rows, last)
        _heldout_loss(draw.panel(figure, first + 150, 46, width - first - 206, 230), *heldout, last)
    else:
        figure = draw.blank(width, 570)
        _training_loss(draw.panel(figure, draw.MARGIN, 306, width - 100, 230), rows, last)
        _heldout_loss(draw.panel(figure, draw.MARGIN, 46, width - 100, 180), *heldout, last)
    return figure


@draw.styled
def learning_rate(rows: Rows, width: int = draw.SMALL) -> Figure:
    """The schedule as it ran."""
    figure, axes = _single(rows, "Learning rate", width)
    steps, values = column(rows, "learning_rate")
    axes.plot(steps, values, color=draw.LIGHT["blue"])
    axes.set_ylim(0, _above(values))
    return figure


@draw.styled
def grad_norm(rows: Rows, clip: float | None = None, width: int = draw.SMALL) -> Figure:
    """Global gradient norm before clipping, with the norm above which it is clipped."""
    steps, values = column(rows, "grad_norm")
    log = len(values) > 1 and min(values) > 0 and max(values) > 20 * np.median(values)
    figure, axes = _single(rows, "Gradient norm before clipping" + (", log scale" if log else ""), width)
    _noisy(axes, steps, values)
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(draw.plain))
    else:
        axes.set_ylim(0, _above([*values, clip or 0]))
    if clip:
        level(axes, clip, f"clip {clip:g}")
    return figure


@draw.styled
def max_logit(rows: Rows, width: int = draw.SMALL) -> Figure:
    """The largest attention logit of any layer and head; growth without end foretells divergence."""
    figure, axes = _single(rows, "Largest attention logit", width)
    steps, values = column(rows, "max_logit")
    _noisy(axes, steps, values)
    axes.set_ylim(min(0, *values, 0), _above(values))
    return figure


@draw.styled
def tokens_per_second(rows: Rows, width: int = draw.SMALL) -> Figure:
    """Speed between logged steps; what lies far above the rest is marked at the edge, not left out unsaid."""
    figure, axes = _single(rows, "Tokens per second", width)
    steps, values = column(rows, "tokens_per_second")
    if not len(values):
        return figure
    median = float(np.median(values))
    top = min(_above(values), 1.6 * median)
    beyond = values > top
    colour = draw.LIGHT["soft" if len(values) >= SMOOTHED_FROM else "blue"]
    axes.plot(steps[~beyond], values[~beyond], color=colour, linewidth=1.2)
    edge = np.full(beyond.sum(), top * 0.985)
    axes.plot(steps[beyond], edge, "^", color=draw.LIGHT["orange"], markersize=5, clip_on=False)
    axes.set_ylim(0, top)
    level(axes, median, f"median\n{count(median)}", "blue")
    if beyond.any():
        place = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "right"}
        axes.annotate(f"▲ {beyond.sum():,} above the axis", (1, 1), (0, 16), color=draw.LIGHT["orange"], **place)
    return figure


@draw.styled
def sources(counts: Mapping[str, Mapping[str, int]], width: int = draw.SMALL) -> Figure:
    """Bytes kept of every source, to train on and held out; `counts` is the curation's summary by source."""
    kinds = [("to train on", "train", draw.SERIES[0]), ("held out", "heldout", draw.SERIES[1])]
    bars = []
    for name, own in counts.items():
        parts = [(own.get(f"{kind}_bytes", 0), colour) for _, kind, colour in kinds]
        bars.append((name, quantity(sum(value for value, _ in parts)), parts))
    legend = [(label, colour) for label, _, colour in kinds]
    return draw.bars("Kept, by source", bars, legend, width, "bytes of text", lambda value, _: quantity(value))


@draw.styled
def drops(counts: Mapping[str, Mapping[str, int]], width: int = draw.SMALL) -> Figure:
    """Documents dropped for every reason, coloured by source where that stays legible."""
    reasons: dict[str, dict[str, int]] = {}
    for source, own in counts.items():
        for key, number in own.items():
            if key.startswith("dropped:"):
                reasons.setdefault(key.removeprefix("dropped:"), {})[source] = number
    names = [source for source, own in counts.items() if any(key.startswith("dropped:") for key in own)]
    split = 1 < len(names) <= len(draw.SERIES)
    colours = dict(zip(names, draw.SERIES)) if split else dict.fromkeys(names, "blue")
    bars = []
    for reason, own in reasons.items():
        parts = [(number, colours[source]) for source, number in own.items()]
        bars.append((reason.replace("_", " "), f"{sum(own.values()):,}", parts))
    legend = list(colours.items()) if split else []
    return draw.bars("Dropped, by reason", bars, legend, width, "documents", draw.plain)


@draw.styled
def compressors(ours: float, name: str, others: Mapping[str, Mapping[str, float]], width: int = draw.WIDE) -> Figure:
    """Bits per byte of the model, highlighted, beside general compressors on the same bytes."""
    ways = {"each_document": "each document alone", "one_stream": "all documents as one stream"}
    bars = [(name, f"{ours:.3f}", [(ours, "blue")])]
    for compressor, figures in others.items():
        for way, value in figures.items():
            bars.append((f"{compressor}, {ways.get(way, way)}", f"{value:.3f}", [(value, "other")]))
    title = "Held-out bits per byte, lower is better"
    return draw.bars(title, bars, [], width, "bits per byte", draw.plain, highlight=name)


@draw.styled
def goodput(seconds: Mapping[str, float], width: int = draw.WIDE) -> Figure:
    """Where the wall-clock time of a run went, by kind (`train.goodput`)."""
    kinds = {"step": "in steps", "data": "waiting for data", "setup": "setting up", "rework": "done again"}
    colours = dict(
        zip(("step", "data", "checkpoint", "eval", "compile", "setup", "rework"), (*draw.SERIES, "other", "ink"))
    )
    parts = [(value, colours[kind]) for kind, value in seconds.items() if value]
    total = sum(seconds.values())
    bars = [("all processes of this run", f"{total:,.0f} s", parts)]
    legend = [(f"{kinds.get(k, k)} {v / total:.1%}", colours[k]) for k, v in seconds.items() if v]
    return draw.bars("Where the time went", bars, legend, width, "seconds", draw.plain)


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


def _training_loss(axes: Axes, rows: Rows, last: int) -> None:
    draw.title(axes, "Training loss, nats per token")
    steps, values = column(rows, "loss")
    draw.steps(axes, last)
    if not len(values):
        return
    shown = _noisy(axes, steps, values)
    _end_label(axes, steps[-1], shown[-1], f"{shown[-1]:.2f}")
    tokens = int(column(rows, "tokens")[1][-1])
    axes.set_xlabel(f"steps of {tokens // steps[-1]:,} tokens, {count(tokens)} in all", loc="left")


def _heldout_loss(axes: Axes, steps: np.ndarray, values: np.ndarray, last: int) -> None:
    draw.title(axes, "Held-out bits per byte")
    draw.steps(axes, last)
    axes.plot(steps, values, color=draw.LIGHT["orange"], marker="o", markersize=3.5, clip_on=False)
    _end_label(axes, steps[-1], values[-1], f"{values[-1]:.3f}", "orange")


def _noisy(axes: Axes, steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Every value in a light line, the smoothed one over it; returns what the strong line shows."""
    if len(values) < SMOOTHED_FROM:
        axes.plot(steps, values, color=draw.LIGHT["blue"])
        return values
    axes.plot(steps, values, color=draw.LIGHT["soft"], linewidth=1)
    axes.plot(steps, smooth(values), color=draw.LIGHT["blue"], linewidth=1.8)
    return smooth(values)


def _single(rows: Rows, title: str, width: int) -> tuple[Figure, Axes]:
    figure = draw.blank(width, 230)
    axes = draw.panel(figure, draw.MARGIN, 46, width - 104, 144)
    draw.title(axes, title)
    draw.steps(axes, max((row["step"] for row in rows), default=1))
    return figure, axes


def _end_label(axes: Axes, x: float, y: float, text: str, colour: str = "blue") -> None:
    style = {"color": draw.LIGHT[colour], "fontweight": "bold", "va": "center", "annotation_clip": False}
    axes.annotate(text, (x, y), (8, 0), textcoords="offset points", **style)


def level(axes: Axes, y: float, text: str, colour: str = "orange") -> None:
    """A horizontal line with its name at the right edge."""
    axes.axhline(y, color=draw.LIGHT[colour], linewidth=1.1, linestyle=(0, (5, 3)))
    style = {"color": draw.LIGHT[colour], "va": "center", "textcoords": "offset points", "annotation_clip": False}
    axes.annotate(text, (1, y), (6, 0), xycoords=axes.get_yaxis_transform(), **style)


def _above(values: Sequence[float]) -> float:
    return float(max(values, default=0)) * 1.08 or 1.0
