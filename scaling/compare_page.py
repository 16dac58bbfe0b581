"""A comparison as a page: who ends where, how they got there, and what tuning found."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from core.page import Page, strong
from evals import draw
from scaling.compare_text import Row, cells, final, heading, judge, losses, named, table
from scaling.verdict import interval


def write_page(found: Mapping[str, Any], own: list[Row], command: str, path: Path) -> list[Path]:
    """Writes compare.html, and a PNG of each picture beside it."""
    said = judge(found)
    tuned = {name: variant["tuning"] for name, variant in found["variants"].items() if variant["tuning"]}
    page = Page(
        f"Comparison {found['name']}",
        strong(said.said[:1].upper() + said.said[1:] + ". "),
        f"{len(own)} variants of one run of {found['steps']:,} steps, "
        f"{'tuned as told below, then ' if tuned else ''}on the same seeds.",
        footer=f"jax {found['versions']['jax']}, {found['device']}",
    )
    sheet = draw.Sheet(page)
    page.section("Final loss")
    alt = ", ".join(f"{named(row.name, row.share)} {row.loss.mean:.4f}" for row in own)
    sheet.figure("final", functools.partial(_final, found), f"Held-out bits per byte at the end: {alt}")
    page.table(heading(own, found["baseline"]), cells(own))
    page.section("On the way")
    sheet.figure("curves", functools.partial(_curves, found), "Held-out bits per byte by step, means over seeds")
    if tuned:
        page.section("Tuning")
    for name, trials in tuned.items():
        page.heading(name)
        tried = [[*one["keys"].values(), one["failed"] or one["loss"]] for one in trials]
        page.table([*(key.rpartition(".")[2] for key in trials[0]["keys"]), "bits per byte"], tried)
    page.section("As Markdown")
    page.pre(table(found, own))
    page.section("Reproduce")
    page.pre(command)
    return sheet.write(path)


@draw.styled
def _final(found: Mapping[str, Any], width: int) -> Figure:
    """Every run a dot, means with their intervals; shorter runs fainter below."""
    by_length = losses(found)
    lines = [
        (name, length, length == max(by_length[name]), by_length[name][length])
        for name, _ in sorted(final(by_length).items(), key=lambda pair: np.mean(pair[1]))
        for length in sorted(by_length[name], reverse=True)
    ]
    left = 150 if width > 500 else 110
    figure = draw.blank(width, 60 + 26 * len(lines))
    axes = draw.panel(figure, left, 46, width - left - 30, 26 * len(lines))
    base = interval(by_length[found["baseline"]][1.0])
    axes.axvspan(base.low, base.high, color=draw.LIGHT["grid"], linewidth=0)
    for row, (_, _, whole, values) in enumerate(lines):
        colour = draw.LIGHT["blue" if whole else "other"]
        finite = [value for value in values if np.isfinite(value)]
        axes.plot(finite, [-row] * len(finite), "o", color=colour, markersize=4, alpha=0.6, markeredgewidth=0)
        if len(finite) == len(values):
            mean = interval(values)
            axes.plot([mean.low, mean.high], [-row, -row], color=colour)
            axes.plot([mean.mean], [-row], "|", color=colour, markersize=14, markeredgewidth=2)
    axes.set_yticks([-row for row in range(len(lines))])
    axes.set_yticklabels([named(name if whole else "", length) for name, length, whole, _ in lines])
    axes.set_ylim(-len(lines) + 0.4, 0.6)
    axes.grid(visible=False)
    axes.set_xlabel(f"held-out bits per byte; shaded: {found['baseline']}", loc="left")
    return figure


@draw.styled
def _curves(found: Mapping[str, Any], width: int) -> Figure:
    """Means over seeds of whole runs."""
    names, by_length = list(found["variants"]), losses(found)
    lines = draw.legend_lines(
        [(name if i < len(draw.SERIES) else f"{name}, dashed", _colour(i)) for i, name in enumerate(names)],
        width - 60,
    )
    figure = draw.blank(width, 350 + 20 * len(lines))
    axes = draw.panel(figure, draw.MARGIN, 46, width - 100, 260)
    draw.head(figure, "Held-out bits per byte", lines)
    ends = []
    for number, name in enumerate(names):
        runs = found["variants"][name]["runs"][f"{max(by_length[name]):g}"]
        curves = [dict(map(tuple, one["curve"])) for one in runs if not one["failed"]]
        if not curves:
            continue
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        means = [np.mean([curve[step] for curve in curves]) for step in steps]
        style = "-" if number < len(draw.SERIES) else "--"
        axes.plot(steps, means, style, color=draw.LIGHT[_colour(number)])
        ends.append(means[-1])
    if ends:
        axes.set_ylim(min(ends) - 0.05 * min(ends), 1.35 * max(ends))
    draw.steps(axes, found["steps"])
    return figure


def _colour(number: int) -> str:
    return draw.SERIES[number % len(draw.SERIES)]
