"""Figures of a vocabulary before and after it grew."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from evals import draw

PITCH = 58  # pixels of a row: its name and two bars
COLOURS = ("other", "blue")  # before, after


@draw.styled
def before_after(
    title: str,
    rows: Sequence[tuple[str, float, float]],
    unit: str,
    formatter: Callable[[float, Any], str] = draw.plain,
    width: int = draw.WIDE,
) -> Figure:
    """Two bars under every name, (name, before, after), in the order given."""
    figure = draw.blank(width, 60 + PITCH * len(rows) + 46)
    room = 16 + 8 * max(len(formatter(value, None)) for _, *pair in rows for value in pair)
    axes = draw.panel(figure, 0, 46, width - room, PITCH * len(rows))
    draw.head(figure, title, draw.legend_lines([("before", "other"), ("after", "blue")], width))
    longest = max(value for _, *pair in rows for value in pair) or 1
    axes.set_xlim(0, longest)
    axes.set_ylim(len(rows), 0)
    for row, (name, *pair) in enumerate(rows):
        axes.text(0, row + 0.24, draw.short(name, width // 8), va="center")
        for value, colour, top in zip(pair, COLOURS, (0.42, 0.68)):
            axes.add_patch(Rectangle((0, row + top), value, 0.22, color=draw.LIGHT[colour], lw=0, zorder=2))
            strong = {"color": draw.LIGHT["blue"], "fontweight": "bold"} if colour == "blue" else {}
            place = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
            axes.annotate(formatter(value, None), (value, row + top + 0.11), (7, 0), **place, **strong)
    axes.yaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=draw.LIGHT["grid"], linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(max(3, width // 110), steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(draw.plain))
    axes.set_xlabel(unit, loc="left")
    return figure
