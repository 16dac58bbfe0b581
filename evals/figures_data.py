"""Figures of what a run reads, one function each, for inspect-data. P points along the run, S sources."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from core.progress import count
from evals import draw


@draw.styled
def mixture(
    edges: np.ndarray,
    names: Sequence[str],
    read_SP: np.ndarray,
    stages: Sequence[tuple[int, str, np.ndarray]],
    width: int = draw.WIDE,
) -> Figure:
    """Shares of the sources over the steps, stacked, with the weights asked as lines between them.

    `edges` are the steps between which each of the P points lies; `stages` are first step, label and shares asked.
    """
    colours = [*draw.SERIES, "other"][: len(names)]
    lines = draw.legend_lines(list(zip(names, colours)), width)
    figure = draw.blank(width, 316 + 20 * len(lines))
    draw.head(figure, "Share of each source in the rows read", lines)
    axes = draw.panel(figure, draw.MARGIN, 46, width - draw.MARGIN - 24, 220)
    draw.steps(axes, edges[-1])
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    tops_SP = np.concatenate([np.zeros((1, len(edges) - 1)), np.cumsum(read_SP, axis=0)])
    for low, top, colour in zip(tops_SP, tops_SP[1:], colours):
        axes.stairs(top, edges, baseline=low, fill=True, color=draw.LIGHT[colour], linewidth=0)
    ends = [*(first for first, *_ in stages[1:]), edges[-1]]
    free = -np.inf  # pixels from the left, from which on a label has room
    for (first, label, asked_S), end in zip(stages, ends):
        asked = [level for level in np.cumsum(asked_S) if level < 1 - 1e-9]
        axes.hlines(asked, first, end, color=draw.LIGHT["surface"], linewidth=3)
        axes.hlines(asked, first, end, color=draw.LIGHT["ink"], linewidth=1.2, linestyle=(0, (4, 3)))
        if first:
            axes.axvline(first, color=draw.LIGHT["surface"], linewidth=2)
        x, room = first / edges[-1] * (width - draw.MARGIN - 24), 7 * len(label) + 6
        right = x + room > width - draw.MARGIN
        if x - (room if right else 0) >= free:
            style = {"textcoords": "offset points", "color": draw.LIGHT["muted"], "annotation_clip": False}
            axes.annotate(label, (first, 1), (-2 if right else 2, 5), ha="right" if right else "left", **style)
            free = x if right else x + room
    return figure


@draw.styled
def autocorrelation(curve: np.ndarray, band: float, rows: int, title: str, width: int = draw.SMALL) -> Figure:
    """Mean autocorrelation of the sources over the lags 1, 2, ..., and the 95% band of independent rows."""
    figure = draw.blank(width, 230)
    axes = draw.panel(figure, draw.MARGIN + 16, 46, width - draw.MARGIN - 40, 144)
    draw.title(axes, title, draw.MARGIN + 16)
    lags = np.arange(1, len(curve) + 1)
    axes.axhspan(-band, band, color=draw.LIGHT["soft"], linewidth=0)
    axes.axhline(0, color=draw.LIGHT["other"], linewidth=0.8)
    axes.vlines(lags, 0, curve, color=draw.LIGHT["blue"], linewidth=max(0.7, min(3, 0.5 * width / len(lags))))
    axes.set_xlim(0, len(curve) + 1)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(draw.plain))
    axes.set_xlabel("rows apart", loc="left")
    reach = max(2 * band, 1.15 * float(np.abs(curve).max(initial=0)))
    axes.set_ylim(-reach, reach)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    if rows < len(curve):
        axes.axvline(rows, color=draw.LIGHT["orange"], linewidth=1.1, linestyle=(0, (5, 3)))
        style = {"textcoords": "offset points", "color": draw.LIGHT["orange"], "va": "top"}
        axes.annotate("a batch", (rows, reach), (4, -2), **style)
    return figure


@draw.styled
def packings(title: str, bars: Sequence[tuple[str, float, bool]], width: int = draw.SMALL) -> Figure:
    """A share under both packings of each stage: (label, share, whether the stage asks for this packing)."""
    drawn = [(label, f"{share:.2%}", [(100 * share, "blue" if own else "other")]) for label, share, own in bars]
    return draw.bars(title, drawn, [("asked", "blue"), ("the other", "other")], width, "%", draw.plain, ordered=True)


@draw.styled
def epochs(read: Mapping[str, float], limits: Mapping[str, int], width: int = draw.WIDE) -> Figure:
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
    return draw.bars("Epochs of each source", bars, legend, width, "epochs", draw.plain, ordered=True, marks=marks)


@draw.styled
def lengths(
    quantiles: Sequence[tuple[str, Sequence[float]]], row_lengths: Sequence[int], width: int = draw.WIDE
) -> Figure:
    """Tokens of the documents of each source: 10th, 50th and 90th percentile, beside the row lengths of the run."""
    pitch, height = 40, 60 + 40 * len(quantiles) + 46
    figure = draw.blank(width, height)
    axes = draw.panel(figure, 0, 46, width - 76, pitch * len(quantiles))
    draw.head(figure, "Tokens of a document: middle four fifths, and median", [])
    ends = [max(1, x) for _, own in quantiles for x in own] + list(row_lengths)
    axes.set_xscale("log")
    axes.set_xlim(min(ends, default=1) / 1.3, max(ends, default=10) * 1.3)
    axes.set_ylim(max(len(quantiles), 1), 0)
    for row, (name, (low, middle, high)) in enumerate(quantiles):
        ground = {"facecolor": draw.LIGHT["surface"], "linewidth": 0, "pad": 1}
        place = {"xycoords": axes.get_yaxis_transform(), "va": "center", "bbox": ground}
        axes.annotate(draw.short(name, width // 8), (0, row + 0.34), **place)
        axes.plot([max(low, 1), max(high, 1)], [row + 0.71] * 2, color=draw.LIGHT["soft"], linewidth=9)
        axes.plot([max(middle, 1)], [row + 0.71], "o", color=draw.LIGHT["blue"], markersize=7)
        style = {"textcoords": "offset points", "va": "center", "annotation_clip": False, "color": draw.LIGHT["blue"]}
        axes.annotate(count(middle), (max(high, 1), row + 0.71), (9, 0), **style)
    last, raised = -np.inf, False
    for index, length in enumerate(sorted(set(row_lengths))):
        axes.axvline(length, color=draw.LIGHT["orange"], linewidth=1.1, linestyle=(0, (5, 3)), zorder=0)
        style = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points", "color": draw.LIGHT["orange"]}
        x = axes.transData.transform((length, 0))[0]
        raised = not raised and x - last < (
            52 if index == 1 else 40
        )  # pixels; a label beside another stands above it
        axes.annotate(
            f"row {length:,}" if index == 0 else f"{length:,}", (length, 1), (2, 17 if raised else 4), **style
        )
        last = x
    axes.yaxis.set_visible(False)
    axes.grid(visible=False)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    axes.set_xlabel("tokens, log scale", loc="left")
    return figure


@draw.styled
def bytes_per_token(values: Mapping[str, float], width: int = draw.SMALL) -> Figure:
    """How much text a token carries, by source."""
    bars = [(name, f"{value:.2f}", [(value, "blue")]) for name, value in values.items()]
    return draw.bars("Bytes per token", bars, [], width, "bytes per token", draw.plain)


def times(number: float) -> str:
    """Epochs: 0.77, 12.34, 1.6M."""
    return f"{number:.2f}" if number < 1000 else count(number)
