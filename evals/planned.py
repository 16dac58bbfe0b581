"""What was planned beside what was measured: step time, memory, tokens a second.

The plan is `plan/plan.json` of the workdir or, without one for what the run was trained on, what shapes say of that,
which `launch.py` hands in from above. A report may be made elsewhere, so the run says what its devices were.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.files import fingerprint, read_json
from core.page import Page, code
from core.progress import quantity
from evals.figures import column
from evals.found import Found

PLAN = Path("plan") / "plan.json"
TRAINS = ("model", "optim")  # parts of the config that a plan has a fingerprint of
Predict = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]  # of the devices that a run was trained on


def planned_and_measured(page: Page, found: Found, predict: Predict | None) -> None:
    """A table on the page, and what it is worth."""
    on = found.devices
    if on is None:
        page.text("The run does not say what devices it was trained on, so only what was measured is shown.")
    there = f"{on['devices']} x {on['device_kind']}" if on else ""
    plan, why_not = _plan_of(found, on) if on else (None, "")
    computed = predict(on) if on and plan is None and predict is not None else None
    if why_not:
        page.text(why_not)
    if on and plan is None and computed is None:
        page.text(f"No peak is known of the devices of this run ({there}), so only what was measured is shown.")
    seconds = plan["time"]["total"] if plan else computed["seconds"] if computed else None
    memory = plan["memory"]["total"] if plan else computed["bytes"] if computed else None
    number = plan["stage"]["number"] if plan else most_tokens(found.stages)
    tokens = found.stages[number]["rows"] * found.stages[number]["row_length"]
    rate, held = found.rate_of(number), column(found.rows, "memory_peak_bytes")[1]
    rows = [
        _row("seconds a step", seconds, tokens / rate if rate else None, lambda value: f"{value:.4g}"),
        _row("tokens a second", tokens / seconds if seconds else None, rate, lambda value: f"{value:,.0f}"),
        _row("memory of one device", memory, float(held.max()) if len(held) else None, quantity),
    ]
    page.table(["what", "planned", "measured", "measured / planned"], rows)
    if len(found.stages) > 1:
        page.text(f"Of stage {number + 1} of {len(found.stages)}; memory is the most of all.")
    if plan:
        of = plan["topology"]["name"]
        page.text("Planned by ", code("launch.py plan"), f" for {of}, {plan['source']}; measured is the median step.")
    elif computed:
        page.text(f"Planned from shapes alone for {there}; measured is the median step.")
    if not len(held):
        page.text("This kind of device does not say how much memory it holds.")


def _plan_of(found: Found, on: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The plan of the workdir where it is of the run's devices, mesh, batch and settings, else why it is not used."""
    path = found.workdir / PLAN
    if not path.exists():
        return None, ""
    plan, config = read_json(path), found.config
    place, number = plan["topology"], plan["stage"]["number"]
    if number >= len(found.stages):
        return None, f"The plan of this workdir is of stage {number + 1}, the run has {len(found.stages)}."
    stage = found.stages[number]
    batch = f"{plan['stage']['rows']} rows of {plan['stage']['row_length']} tokens"
    planned, ran = f"{place['devices']} x {place['device_kind']}", f"{on['devices']} x {on['device_kind']}"
    mesh = {name: size for name, size in on["mesh"].items() if size > 1}
    settings = {name: config["model"].get(name) for name in ("remat", "dtype")}
    settings |= {name: config["train"].get(name) for name in ("microbatches", "offload_optimizer")}
    differences = (
        (planned, ran),
        (batch, f"{stage['rows']} rows of {stage['row_length']} tokens"),
        (f"mesh {plan['mesh']}", f"mesh {mesh}"),
        (f"settings {plan['settings']}", f"settings {settings}"),
    )
    for theirs, ours in differences:
        if theirs != ours:
            return None, f"The plan of this workdir is of {theirs}, the run was of {ours}."
    if plan.get("trains") != fingerprint({name: config[name] for name in TRAINS}):
        return None, "The plan of this workdir is of another model or optimiser."
    return plan, ""


def most_tokens(stages: Sequence[Mapping[str, Any]]) -> int:
    """The number of the stage that is planned where none is asked for."""
    return max(range(len(stages)), key=lambda i: stages[i]["steps"] * stages[i]["rows"] * stages[i]["row_length"])


def _row(what: str, planned: float | None, measured: float | None, shown: Callable[[float], str]) -> tuple[str, ...]:
    values = ["-" if value is None else shown(value) for value in (planned, measured)]
    ratio = f"{measured / planned:.2f}" if planned and measured else "-"
    return what, *values, ratio
