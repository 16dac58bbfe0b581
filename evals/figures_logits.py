"""The largest attention logit of every head, where a run kept it. L layers, N heads, S rows of the metrics."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from evals import draw
from evals.figures import Rows, level

NAME = "max_logit_LN"
SHADES = 10  # of the colour, each one path of all its cells: a page holds thousands


def kept(rows: Rows) -> Rows:
    """The rows that say it."""
    return [row for row in rows if NAME in row]


@draw.styled
def max_logits(rows: Rows, threshold: float = 0.0, width: int = draw.WIDE) -> Figure:
    """Largest and median head over the steps; beside it, or below on a narrow page, all heads at the last of them."""
    rows = kept(rows)
    logits_SLN = np.nan_to_num(np.array([row[NAME] for row in rows], np.float64))
    if width >= 700:
        figure, first = draw.blank(width, 310), round((width - 200) * 0.62)
        over_steps = draw.panel(figure, draw.MARGIN, 46, first, 230)
        heads = draw.panel(figure, first + 150, 46, width - first - 206, 230)
    else:
        figure = draw.blank(width, 570)
        over_steps = draw.panel(figure, draw.MARGIN, 306, width - 100, 230)
        heads = draw.panel(figure, draw.MARGIN, 46, width - 100, 180)
    _over_steps(over_steps, np.array([row["step"] for row in rows]), logits_SLN, threshold)
    _of_heads(heads, logits_SLN[-1], threshold, rows[-1]["step"])
    return figure


def _over_steps(axes: Axes, steps_S: np.ndarray, logits_SLN: np.ndarray, threshold: float) -> None:
    draw.title(axes, "Attention logits: largest and median head")
    draw.steps(axes, int(steps_S[-1]))
    logits_SH = logits_SLN.reshape(len(steps_S), -1)
    axes.plot(steps_S, np.median(logits_SH, 1), color=draw.LIGHT["soft"])
    axes.plot(steps_S, logits_SH.max(1), color=draw.LIGHT["blue"])
    axes.set_ylim(min(0.0, logits_SH.min()), 1.08 * max(logits_SH.max(), threshold) or 1.0)
    if threshold:
        level(axes, threshold, f"clip {threshold:g}")


def _of_heads(axes: Axes, logits_LN: np.ndarray, threshold: float, step: int) -> None:
    top = threshold or logits_LN.max() or 1.0
    draw.title(axes, f"Every head at step {step:,}; full blue is {draw.plain(float(f'{top:.3g}'))}")
    shades_LN = np.ceil(SHADES * np.clip(logits_LN / top, 0, 1)).astype(int)
    for shade in range(1, SHADES + 1):
        cells = [Path.unit_rectangle().deepcopy() for _ in range((shades_LN == shade).sum())]
        for cell, (layer, head) in zip(cells, np.argwhere(shades_LN == shade)):
            cell.vertices += head + 0.5, layer + 0.5  # numbered from 1
        if cells:
            path = Path.make_compound_path(*cells)
            axes.add_patch(PathPatch(path, facecolor=draw.LIGHT["blue"], alpha=shade / SHADES, linewidth=0))
    L, N = logits_LN.shape
    axes.set_xlim(0.5, N + 0.5)
    axes.set_ylim(L + 0.5, 0.5)
    axes.grid(visible=False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    axes.set_xlabel("heads, by layer from the top", loc="left")
