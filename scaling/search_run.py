"""`plan --search`: every way to split a run by the estimate, the best few compiled, the best of those planned."""

import importlib.util
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.progress import say
from scaling.chips import Topology
from scaling.plan import chosen, make_plan
from scaling.search import ESTIMATE_MAY_ERR, Ranked, candidates, fitting, flags_for, rank
from train.run import Run

COMPILED, SHOWN, LARGE = 4, 16, 6  # ways: that are compiled, told, told although they do not fit


def search_run(run: Run, topology: Topology, workdir: Path, stage: int | None = None) -> dict[str, Any]:
    """The plan of the quickest way that fits, with all others under `search`."""
    stages = run.batch.plan(run.train.steps)
    number = chosen(stages, stage)
    ranked = rank(run, topology, stages[number], candidates(run, topology, stages[number]))
    if not ranked:
        own = stages[number]
        raise UserError(
            f"no mesh of {topology.devices:,} devices splits {own.rows:,} rows of {own.row_length:,} tokens"
        )
    usable = topology.chip.usable
    likely = [one for one in ranked if one.estimate.total <= (1 + ESTIMATE_MAY_ERR / 2) * usable]
    say(f"plan: {len(ranked):,} ways to split the run, {len(likely):,} of them may fit")
    compiles = topology.chip.is_tpu and importlib.util.find_spec("libtpu") is not None
    plans: dict[Any, dict[str, Any]] = {}
    tries = diverse(likely, COMPILED) if compiles else fitting(ranked, topology)[:1]
    tries = tries or [min(ranked, key=lambda one: one.estimate.total)]  # what comes nearest
    for count, one in enumerate(tries):
        if compiles:
            say(f"plan: {count + 1} of {len(tries)}: {one.shown}")
        plans[one.way] = make_plan(one.way.of(run), topology, workdir, number + 1)
    best = min(plans, key=lambda way: (not plans[way]["memory"]["fits"], plans[way]["time"]["total"]))
    return {**plans[best], "search": _told(ranked, plans, best, usable) | {"flags": flags_for(best, run, topology)}}


def diverse(ranked: list[Ranked], most: int) -> list[Ranked]:
    """The best, at most two of those that differ only in how copies and parts of parameters share the devices."""
    taken: list[Ranked] = []
    for one in ranked:
        alike = [other for other in taken if other.way[2:] == one.way[2:]]
        if len(alike) < 2 and len(taken) < most:
            taken.append(one)
    return taken


def _told(ranked: list[Ranked], plans: dict, best: Any, usable: float) -> dict[str, Any]:
    """Every way that was compiled, then the next by the estimate, each with what speaks against it."""
    told = []
    for one in ranked:
        own = plans.get(one.way)
        seconds = own["time"]["total"] if own else one.estimate.seconds
        size = own["memory"]["total"] if own else one.estimate.total
        told.append(
            {
                "shown": one.shown,
                "seconds": seconds,
                "bytes": size,
                "source": own["source"] if own else "estimate",
                "best": one.way == best,
                "why": _why(one, own, plans[best], usable) if one.way != best else "",
            }
        )
    told.sort(key=lambda one: (not one["best"], one["source"] == "estimate", one["seconds"]))
    large = [one for one in told if one["bytes"] > usable and one["source"] == "estimate"]
    others = [one for one in told if one not in large]
    shown = others[: SHOWN - min(len(large), LARGE)] + large[:LARGE]
    return {"tried": len(ranked), "fit": len(ranked) - len(large), "ways": shown, "more": len(told) - len(shown)}


def _why(one: Ranked, own: dict[str, Any] | None, best: dict[str, Any], usable: float) -> str:
    """What speaks against a way."""
    fits = own["memory"]["fits"] if own else one.estimate.total <= usable
    if not fits:
        largest, size = one.estimate.largest()[0]
        return f"does not fit: {largest} {size / 2**30:.1f} GiB"
    slower = (
        own["time"]["total"] / best["time"]["total"] if own else one.estimate.seconds / best["estimate"]["seconds"]
    ) - 1
    if slower < 0.0005:
        return (
            "not compiled: as quick by the estimate" if not own else "as quick, with more memory or later in the list"
        )
    return f"{slower:.1%} slower"
