"""`plan --search`: every way to split a run by the estimate; of the best few and the config's, compiled, the best."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.progress import say
from scaling.chips import Topology
from scaling.plan import chosen, has_compiler, make_plan
from scaling.search import ESTIMATE_MAY_ERR, Ranked, Way, asked, candidates, fitting, flags_for, rank
from train.run import Run

Plans = Mapping[Way, Mapping[str, Any]]

COMPILED, MOST_COMPILED = 5, 12  # ways that are compiled, and at most where none of them fits
SHOWN, LARGE = 16, 6  # ways that are told: at most, and of those not compiled because they do not fit


def search_run(run: Run, topology: Topology, workdir: Path, stage: int | None = None) -> dict[str, Any]:
    """The plan of the quickest way that fits, with all others under `search`."""
    stages = run.batch.plan(run.train.steps)
    number = chosen(stages, stage)
    own = stages[number]
    now = asked(run, topology)  # which the candidates may lack: a number of microbatches that is no power of two
    ways = dict.fromkeys([*([now] if now else []), *candidates(run, topology, own)])
    ranked = rank(run, topology, own, ways)
    if not ranked:
        raise UserError(
            f"no mesh of {topology.devices:,} devices splits {own.rows:,} rows of {own.row_length:,} tokens"
        )
    say(f"plan: {len(ranked):,} ways to split the run, {len(fitting(ranked, topology)):,} fit by the estimate")
    plans = dict(_planned(run, topology, workdir, number, ranked))
    best = min(plans, key=lambda way: (not plans[way]["memory"]["fits"], plans[way]["time"]["total"]))
    told = _told(ranked, plans, best, topology) | {"flags": flags_for(best, run, topology)}
    return {**plans[best], "search": told}


def _planned(
    run: Run, topology: Topology, workdir: Path, number: int, ranked: list[Ranked]
) -> Iterator[tuple[Way, dict[str, Any]]]:
    """The config's way and the quickest that may fit, each with its plan: a few, and on until one of them fits."""
    if not has_compiler(topology):
        first = fitting(ranked, topology)[:1] or [_smallest(ranked)]
        yield first[0].way, make_plan(first[0].way.of(run), topology, workdir, number + 1)
        return
    likely = fitting(ranked, topology, margin=-ESTIMATE_MAY_ERR / 2)
    now = [one for one in likely if one.way == asked(run, topology)]
    tries, fits = diverse(now + likely, MOST_COMPILED) or [_smallest(ranked)], False
    for count, one in enumerate(tries, 1):
        if fits and count > COMPILED:
            return
        if count == COMPILED + 1:
            say(f"plan: none of {COMPILED} fits; on until one does, {len(tries)} at most")
        say(f"plan: {count} of {min(COMPILED, len(tries)) if count <= COMPILED else len(tries)}: {one.shown}")
        plan = make_plan(one.way.of(run), topology, workdir, number + 1)
        fits = fits or plan["memory"]["fits"]
        yield one.way, plan
    if not fits:
        say(f"plan: none of the {len(tries)} ways that were compiled fits")


def _smallest(ranked: list[Ranked]) -> Ranked:
    return min(ranked, key=lambda one: one.estimate.total)


def diverse(ranked: list[Ranked], most: int) -> list[Ranked]:
    """The best, at most two of those that differ only in how copies and parts of parameters share the devices."""
    taken: list[Ranked] = []
    for one in ranked:
        alike = [other for other in taken if other.way[2:] == one.way[2:]]
        if len(alike) < 2 and len(taken) < most and one not in taken:
            taken.append(one)
    return taken


def _told(ranked: list[Ranked], plans: Plans, best: Way, topology: Topology) -> dict[str, Any]:
    """Every way that was compiled, then the next by the estimate, each with what speaks against it."""
    usable, told = topology.chip.usable, []
    for one in ranked:
        own = plans.get(one.way)
        told.append(
            {
                "shown": one.shown,
                "seconds": own["time"]["total"] if own else one.estimate.seconds,
                "bytes": own["memory"]["total"] if own else one.estimate.total,
                "source": own["source"] if own else "estimate",
                "best": one.way == best,
                "why": _why(one, own, plans[best], usable) if one.way != best else "",
            }
        )
    told.sort(key=lambda one: (not one["best"], one["source"] == "estimate", one["seconds"]))
    large = [one for one in told if one["bytes"] > usable and one["source"] == "estimate"]
    others = [one for one in told if one not in large]
    shown = others[: SHOWN - min(len(large), LARGE)] + large[:LARGE]
    fit = len(fitting(ranked, topology))
    return {"tried": len(ranked), "fit": fit, "ways": shown, "more": len(told) - len(shown)}


def _why(one: Ranked, own: Mapping[str, Any] | None, best: Mapping[str, Any], usable: float) -> str:
    """What speaks against a way."""
    fits = own["memory"]["fits"] if own else one.estimate.total <= usable
    if not fits:
        largest, size = one.estimate.largest()[0]
        return f"does not fit: {largest} {size / 2**30:.1f} GiB"
    if own:
        slower = own["time"]["total"] / best["time"]["total"] - 1
        return f"{slower:.1%} slower" if slower >= 0.0005 else "as quick, with more memory or later in the list"
    slower = one.estimate.seconds / best["estimate"]["seconds"] - 1
    return f"{slower:.1%} slower" if slower >= 0.0005 else "not compiled: no slower by the estimate"
