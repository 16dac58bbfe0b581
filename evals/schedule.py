"""The schedule of a run as a picture, drawn before anything is trained: the rate of every group, tokens of a step."""

import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from core.progress import count
from evals import draw
from optim.config import OptimConfig
from optim.groups import GROUPS, groups
from optim.schedule import Steps, batch_factors, make_schedule

POINTS = 1000  # of a curve at most, beside those where something changes


def schedule_section(sheet: draw.Sheet, config: OptimConfig, batches: Sequence[Steps]) -> None:
    """What the config asks for, as a picture and a table of its stages; refuses a schedule that does not fit."""
    edges = np.cumsum([0, *(stage.steps for stage in batches)])
    steps, rates = rates_of(config, batches)
    multipliers = multipliers_of(config)
    tokens = [stage.tokens for stage in batches]
    named = ", ".join(f"{name} x {multiplier:g}" for name, multiplier in multipliers.items() if name != "all")
    alt = f"Learning rate over {edges[-1]:,} steps, at most {rates.max():.3g}" + (f"; {named}" if named else "")
    make = functools.partial(figure, steps, rates, multipliers, edges, tokens)
    sheet.figure("schedule", make, alt, _caption(config))
    factors = batch_factors(config, tuple(batches))
    rows = [
        (str(number + 1), int(first) + 1, int(end), batch.tokens, f"{factor:.4g}", *_ends(steps, rates, first, end))
        for number, (first, end, batch, factor) in enumerate(zip(edges, edges[1:], batches, factors))
    ]
    head = ["stage", "first step", "last step", "tokens a step", "rate times", "first rate", "highest", "last rate"]
    sheet.table("Every stage", head, rows)


def rates_of(config: OptimConfig, batches: Sequence[Steps]) -> tuple[np.ndarray, np.ndarray]:
    """Steps, counted from 1 as in the metrics, and their rates: of a long run where it turns and some between."""
    total = sum(stage.steps for stage in batches)
    ends = np.cumsum([stage.steps for stage in batches])
    done = np.union1d(np.linspace(0, total - 1, min(total, POINTS)).astype(int), [*ends[:-1], *(ends - 1)])
    decay = config.schedule.decay_steps or round(config.decay_fraction * total)
    corners = np.array([config.warmup_steps - 1, config.warmup_steps, total - decay - 1, total - decay])
    done = np.union1d(done, corners[(corners >= 0) & (corners < total)])
    return done + 1, np.asarray(make_schedule(config, total, tuple(batches))(done), np.float64)


def multipliers_of(config: OptimConfig) -> dict[str, float]:
    """Of the groups that do not take the rate as it is, and of `all` others."""
    own = {name: group.multiplier for name, group in groups(config).items() if name in GROUPS}
    own |= {name: group.multiplier for name, group in config.groups.items() if name not in GROUPS and group.pattern}
    return {"all": 1.0} | {name: multiplier for name, multiplier in own.items() if multiplier not in (None, 1.0)}


@draw.styled
def figure(
    steps: np.ndarray,
    rates: np.ndarray,
    multipliers: Mapping[str, float],
    edges: np.ndarray,
    tokens: Sequence[int],
    width: int = draw.WIDE,
) -> Figure:
    """Rates over the steps, a line for each multiplier, above the tokens of a step."""
    others = "all others" if len(multipliers) > 1 else "all parameters"
    legend = [
        (others if name == "all" else f"{name} x {multiplier:g}", colour)
        for (name, multiplier), colour in zip(multipliers.items(), itertools.cycle(draw.SERIES))
    ]
    lines = draw.legend_lines(legend, width)
    top = 34 + 20 * len(lines)
    drawn = draw.blank(width, 46 + 90 + 66 + 200 + top)
    draw.head(drawn, "Learning rate", lines)
    wide = width - draw.MARGIN - 44
    axes = draw.panel(drawn, draw.MARGIN + 20, 46 + 90 + 66, wide, 200)
    for multiplier, colour in zip(multipliers.values(), itertools.cycle(draw.SERIES)):
        axes.plot(steps, rates * multiplier, color=draw.LIGHT[colour], clip_on=False)
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(0, 1.08 * float(rates.max()) * max(1, *multipliers.values()) or 1.0)
    axes.tick_params(labelbottom=False)
    below = draw.panel(drawn, draw.MARGIN + 20, 46, wide, 90)
    draw.title(below, "Tokens of a step", draw.MARGIN + 20)
    below.stairs(tokens, edges, color=draw.LIGHT["soft"], fill=True, linewidth=0)
    draw.steps(below, int(edges[-1]))
    below.set_ylim(0, 1.12 * max(tokens))
    below.yaxis.set_major_locator(draw.MaxNLocator(3, steps=[1, 2, 5, 10]))
    below.yaxis.set_major_formatter(draw.FuncFormatter(lambda value, _: count(value)))
    for first in edges[1:-1]:
        for panel in (axes, below):
            panel.axvline(first, color=draw.LIGHT["other"], linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    return drawn


def _ends(steps: np.ndarray, rates: np.ndarray, first: int, end: int) -> tuple[str, ...]:
    own = rates[(steps > first) & (steps <= end)]
    return tuple(f"{rate:.3g}" for rate in (own[0], own.max(), own[-1]))


def _caption(config: OptimConfig) -> str:
    own = config.schedule
    shape = f"{own.decay} decay" if own.kind == "warmup_stable_decay" else f"{own.kind} decay after the warm-up"
    asked = list(own.batch) if isinstance(own.batch, tuple) else own.batch
    ramp = "" if own.batch == "none" else f"; the rate follows the tokens of a step ({asked})"
    return f"{config.warmup_steps:,} steps of warm-up, {shape} to {own.final:g} of the rate{ramp}."
