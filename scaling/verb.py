"""The verb `plan`: checks what was asked, plans, writes the page and prints the text."""

import sys
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import write_json
from core.progress import say, say_log
from scaling.chips import Topology, parse_topology
from scaling.plan import FOLDER, chosen, make_plan
from scaling.plan_page import write_page
from scaling.plan_text import gib, search_text, text
from scaling.search import flags_for, nearest
from scaling.search_run import search_run
from train.run import Run


def plan(
    run: Run,
    workdir: Path,
    name: str,
    topology: str | None,
    *,
    slices: int = 1,
    stage: int | None = None,
    search: bool = False,
    command: str = "",
) -> None:
    """Writes `workdir/plan/plan.json` and `plan.html`, and prints the same as text to standard output."""
    say_log("mesh")
    place = parse_topology(topology, slices)
    make = search_run if search else make_plan
    found = {"name": name, **make(run, place, workdir, stage)}
    refusal = None if found["memory"]["fits"] else _refusal(found, run, place)
    if refusal:
        found["nearest"] = refusal
    folder = workdir / FOLDER
    write_json(folder / "plan.json", found)
    pages = write_page(found, command, folder / "plan.html")
    if search:
        sys.stdout.write(search_text(found["search"]) + "\n")
    sys.stdout.write(text(found, name))
    sys.stdout.flush()
    say(f"plan: {pages[0]}, and plan.json beside it")
    if refusal:
        raise UserError(f"{name} does not fit {place.name}: {refusal}")


def _refusal(found: dict[str, Any], run: Run, topology: Topology) -> str:
    """What is largest, and the nearest setting that would fit."""
    memory, stages = found["memory"], run.batch.plan(run.train.steps)
    largest = ", ".join(f"{what} {gib(size)}" for what, size in found["estimate"]["largest"][:3])
    stage = stages[chosen(stages, found["stage"]["number"] + 1)]
    needs = f"{gib(memory['total'])} of {gib(memory['usable'])} a device, most of it {largest}"
    if (near := nearest(run, topology, stage)) is not None:
        would = f"{flags_for(near.way, run, topology)} would fit ({gib(near.estimate.total)} by the estimate)"
        return f"{needs}; {would}"
    for times in (2, 4, 8, 16, 32, 64):
        more = topology._replace(devices_per_slice=topology.devices_per_slice * times)
        if more.chips <= topology.chip.most * topology.slices and nearest(run, more, stage) is not None:
            return f"{needs}; nothing fits on {topology.chips:,} chips, by the estimate {more.chips:,} would do"
    return f"{needs}; nothing fits on {topology.chips:,} chips: a smaller model or shorter rows"
