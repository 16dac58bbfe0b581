"""The verb `plan`: checks what was asked, plans, writes the page and prints the text."""

import sys
from pathlib import Path

from core.errors import UserError
from core.files import write_json
from core.progress import say, say_log
from scaling.chips import parse_topology
from scaling.plan import FOLDER, make_plan
from scaling.plan_text import text
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
) -> None:
    """Writes `workdir/plan/plan.json` and `plan.html`, and prints the same as text to standard output."""
    say_log("mesh")
    place = parse_topology(topology, slices)
    found = make_plan(run, place, workdir, stage)
    write_json(workdir / FOLDER / "plan.json", {"name": name, **found})
    sys.stdout.write(text(found, name))
    say(f"plan: {workdir / FOLDER / 'plan.json'}")
    if not found["memory"]["fits"]:
        raise UserError(f"{name} does not fit {place.chip.name}")
