"""A comparison as text: the table, in Markdown, and the verdict."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from core.progress import duration
from scaling.verdict import Interval, Verdict, bootstrap_steps, holm, interval, p_less, shown_p, verdict


class Row(NamedTuple):
    """What the table says of one variant."""

    name: str
    keys: str  # tuned
    trials: int  # that tuned it
    loss: Interval  # held-out bits per byte after all steps
    steps: Interval | None  # share of the baseline's steps to its final loss
    reached: dict[float, float]  # by length: corrected p that the loss is below the baseline's over all steps
    step_seconds: float
    seconds: float  # of a run
    state_bytes: int
    failed: int


def losses(found: Mapping[str, Any]) -> dict[str, dict[float, list[float]]]:
    """Final losses by variant and length, one a seed; infinite where a run failed."""
    return {
        name: {
            float(length): [math.inf if own["loss"] is None else own["loss"] for own in runs]
            for length, runs in variant["runs"].items()
        }
        for name, variant in found["variants"].items()
    }


def rows(found: Mapping[str, Any]) -> list[Row]:
    """One a variant, the lowest loss first."""
    by_length, base = losses(found), found["baseline"]
    theirs = by_length[base][1.0]
    tests = {
        (name, length): p_less(values, theirs)
        for name, own in by_length.items()
        for length, values in own.items()
        if name != base
    }
    corrected = holm(tests)
    made = []
    for name, variant in found["variants"].items():
        own, whole = by_length[name], variant["runs"]["1"]
        grid_LS = np.array([own[length] for length in sorted(own)])
        compared = name != base and np.isfinite(grid_LS).all() and np.isfinite(theirs).all()
        tuned = ", ".join(
            f"{key.rpartition('.')[2]} {value}" + (" (edge)" if key in variant["at_the_edge"] else "")
            for key, value in variant["tuned"].items()
        )
        made.append(
            Row(
                name,
                tuned,
                len(variant["tuning"]),
                interval(own[1.0]),
                bootstrap_steps(theirs, sorted(own), grid_LS) if compared else None,
                {length: corrected[name, length] for length in own if name != base},
                float(np.median([one["step_seconds"] for one in whole])),
                float(np.mean([one["seconds"] for one in whole])),
                whole[0]["state_bytes"],
                sum(bool(one["failed"]) for runs in variant["runs"].values() for one in runs),
            )
        )
    return sorted(made, key=lambda row: row.loss.mean)


def judge(found: Mapping[str, Any]) -> Verdict:
    """At equal steps."""
    return verdict({name: own[1.0] for name, own in losses(found).items()}, found["significance"])


def table(found: Mapping[str, Any]) -> str:
    """All of it in Markdown, so that it goes into notes as it stands."""
    own, base = rows(found), found["baseline"]
    lengths = sorted({length for row in own for length in row.reached})
    head = ["", "held-out bits per byte", f"steps to {base}'s loss"]
    head += [f"p at {length:g} of the steps" for length in lengths]
    head += ["ms a step", "a run", "state, MB", "tuned", "trials"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cells(row, lengths)) + " |" for row in own]
    seeds = len(next(iter(losses(found).values()))[1.0])
    lines += [
        "",
        f"{found['steps']:,} steps, {seeds} seeds; intervals are of 95%, p values of Welch's one-sided test",
    ]
    lines[-1] += f" against {base} over all steps, corrected for their number (Holm)."
    if any("(edge)" in row.keys for row in own):
        lines.append(
            "(edge): the best of the values tried is the least or the greatest; beyond it may lie a better one."
        )
    return "\n".join([*lines, judge(found).said[:1].upper() + judge(found).said[1:] + ".", ""])


def cells(row: Row, lengths: list[float]) -> list[str]:
    """A line of the table."""
    half = (row.loss.high - row.loss.low) / 2
    shown = [
        row.name,
        f"{row.loss.mean:.4f} ± {half:.4f}" if math.isfinite(half) else f"{row.failed} runs failed",
        shown_steps(row.steps),
        *(shown_p(row.reached[length]) if length in row.reached else "" for length in lengths),
        f"{1000 * row.step_seconds:.1f}",
        duration(row.seconds),
        f"{row.state_bytes / 1e6:.1f}",
        row.keys,
        str(row.trials or ""),
    ]
    return shown


def shown_steps(steps: Interval | None) -> str:
    """A share of the baseline's steps; an end that is infinite was not reached."""
    if steps is None:
        return ""
    if steps.mean == steps.high:  # no run was short enough to end above it
        return f"at most {steps.mean:.2f}"
    ends = [f"{end:.2f}" if math.isfinite(end) else "not" for end in steps]
    return f"{ends[0]} ({ends[1]} to {ends[2]})"
