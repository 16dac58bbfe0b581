"""A comparison as text: the table, in Markdown, and the verdict."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from scaling.verdict import Interval, Verdict, bootstrap_steps, holm, interval, p_less, shown_p, verdict


class Row(NamedTuple):
    """What the table says of one variant."""

    name: str
    share: float  # of the baseline's steps, that its whole runs take
    keys: str  # tuned
    trials: int  # that tuned it
    loss: Interval  # held-out bits per byte after its whole runs
    steps: Interval | None  # share of the baseline's steps to its final loss
    shortest: float  # length that was run: shares up to it are bounds
    reached: dict[float, float]  # by length: corrected p that the loss is below the baseline's over all steps
    step_seconds: float  # the median
    seconds: Interval  # of a run, compiling included, without evaluations
    slowness: float  # what a step takes, in parts of the baseline's
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


def final(by_length: Mapping[str, Mapping[float, list[float]]]) -> dict[str, list[float]]:
    """Of the whole runs of every variant."""
    return {name: own[max(own)] for name, own in by_length.items()}


def rows(found: Mapping[str, Any]) -> list[Row]:
    """One a variant, the lowest loss first."""
    by_length, base = losses(found), found["baseline"]
    theirs = final(by_length)[base]
    tests = {
        (name, length): p_less(values, theirs)
        for name, own in by_length.items()
        for length, values in own.items()
        if name != base
    }
    corrected = holm(tests)
    base_seconds = _step_seconds(found["variants"][base]["runs"]["1"])
    made = []
    for name, variant in found["variants"].items():
        own, share = by_length[name], max(by_length[name])
        whole = variant["runs"][f"{share:g}"]
        grid_LS = np.array([own[length] for length in sorted(own)])
        compared = name != base and np.isfinite(grid_LS).all() and np.isfinite(theirs).all()
        tuned = ", ".join(
            f"{key.rpartition('.')[2]} {value}" + (" (edge)" if key in variant["at_the_edge"] else "")
            for key, value in variant["tuned"].items()
        )
        made.append(
            Row(
                name,
                share,
                tuned,
                len(variant["tuning"]),
                interval(own[share]),
                bootstrap_steps(theirs, sorted(own), grid_LS) if compared else None,
                min(own),
                {length: corrected[name, length] for length in own if name != base},
                _step_seconds(whole),
                interval([one["seconds"] for one in whole]),
                _step_seconds(whole) / base_seconds,
                whole[0]["state_bytes"],
                sum(bool(one["failed"]) for runs in variant["runs"].values() for one in runs),
            )
        )
    return sorted(made, key=lambda row: row.loss.mean)


def _step_seconds(runs: list[Mapping[str, Any]]) -> float:
    return float(np.median([one["step_seconds"] for one in runs]))


def judge(found: Mapping[str, Any]) -> Verdict:
    """Of whole runs."""
    return verdict(final(losses(found)), found["significance"])


def table(found: Mapping[str, Any], own: list[Row]) -> str:
    """All of it in Markdown, so that it goes into notes as it stands."""
    head = heading(own, found["baseline"])
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(line) + " |" for line in cells(own)]
    seeds = len(losses(found)[found["baseline"]][1.0])
    lines += [
        "",
        f"{found['steps']:,} steps, {seeds} seeds; intervals are of 95%, p values of Welch's one-sided test against "
        f"{found['baseline']} over all steps, corrected for their number (Holm). Seconds are without evaluations.",
    ]
    if any("(edge)" in row.keys for row in own):
        lines.append(
            "(edge): the best of the values tried is the least or the greatest; beyond it may lie a better one."
        )
    return "\n".join([*lines, judge(found).said[:1].upper() + judge(found).said[1:] + ".", ""])


def heading(own: list[Row], base: str) -> list[str]:
    """Of the table's columns."""
    return [
        "",
        "held-out bits per byte",
        f"steps to {base}'s loss",
        "time to it",
        *(f"p at {length:g} of the steps" for length in _lengths(own)),
        "ms a step",
        "seconds a run",
        "state, MB",
        "tuned",
        "trials",
    ]


def cells(own: list[Row]) -> list[list[str]]:
    """A line of the table for each variant."""
    return [
        [
            named(row.name, row.share),
            _plus_minus(row.loss, 4) if math.isfinite(row.loss.high) else f"{row.failed} runs failed",
            shown_share(row.steps, row.shortest),
            shown_share(row.steps, row.shortest, row.slowness),
            *(shown_p(row.reached[length]) if length in row.reached else "" for length in _lengths(own)),
            f"{1000 * row.step_seconds:.1f}",
            _plus_minus(row.seconds, 1),
            f"{row.state_bytes / 1e6:.1f}",
            row.keys,
            str(row.trials or ""),
        ]
        for row in own
    ]


def named(name: str, share: float) -> str:
    """A variant, and its share of the steps where it has not all."""
    return ", ".join([name] * bool(name) + [f"{share:g} of the steps"] * (share != 1))


def _lengths(own: list[Row]) -> list[float]:
    return sorted({length for row in own for length in row.reached})


def _plus_minus(of: Interval, digits: int) -> str:
    return f"{of.mean:.{digits}f} ± {(of.high - of.low) / 2:.{digits}f}"


def shown_share(steps: Interval | None, shortest: float, times: float = 1.0) -> str:
    """Of the baseline's steps, or of its time; nothing shorter than `shortest` was run."""
    if steps is None or shortest == 1:  # then no run was shorter than the baseline's
        return ""
    if not math.isfinite(steps.mean):
        return "not reached"

    def end(share: float) -> str:
        if not math.isfinite(share):
            return "not reached"
        return f"{'at most ' * (share <= shortest)}{times * share:.2f}"

    if steps.high <= shortest:
        return end(steps.mean)
    return f"{end(steps.mean)} ({end(steps.low)} to {end(steps.high)})"
