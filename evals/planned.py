"""What was planned beside what was measured: step time, memory, tokens a second.

The plan is `plan/plan.json` of the workdir or, without one for the devices at hand, what shapes say of them, which
`launch.py` hands in from above.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from core.files import read_json
from core.page import Page, code
from evals.figures import column, quantity
from evals.found import Found

PLAN = Path("plan") / "plan.json"
Predict = Callable[[], Mapping[str, Any] | None]


def planned_and_measured(page: Page, found: Found, predict: Predict | None) -> None:
    """A table on the page, and what it is worth."""
    device, number = jax.devices()[0], jax.device_count()
    here = f"{number} x {device.device_kind}"
    plan, why_not = _plan_of(found, device.device_kind, number)
    computed = predict() if plan is None and predict is not None else None
    if why_not:
        page.text(why_not)
    if plan is None and computed is None:
        page.text(f"No peak is known of the devices of this report ({here}), so only what was measured is shown.")
    seconds = plan["time"]["total"] if plan else computed["seconds"] if computed else None
    memory = plan["memory"]["total"] if plan else computed["bytes"] if computed else None
    stage = found.stages[-1]
    tokens = stage["rows"] * stage["row_length"]
    rate, held = found.rate, column(found.rows, "memory_peak_bytes")[1]
    rows = [
        _row("seconds a step", seconds, tokens / rate if rate else None, lambda value: f"{value:.4g}"),
        _row("tokens a second", tokens / seconds if seconds else None, rate, lambda value: f"{value:,.0f}"),
        _row("memory of one device", memory, float(held.max()) if len(held) else None, quantity),
    ]
    page.table(["what", "planned", "measured", "measured / planned"], rows)
    if plan:
        of = plan["topology"]["name"]
        page.text("Planned by ", code("launch.py plan"), f" for {of}, {plan['source']}; measured is the median step.")
    elif computed:
        page.text(f"Planned from shapes alone for {here}; measured is the median step.")
    if not len(held):
        page.text("This kind of device does not say how much memory it holds.")


def _plan_of(found: Found, kind: str, number: int) -> tuple[dict[str, Any] | None, str]:
    """The plan of the workdir where it is of these devices and this batch, else why it is not used."""
    path = found.workdir / PLAN
    if not path.exists():
        return None, ""
    plan, stage = read_json(path), found.stages[-1]
    place, batch = plan["topology"], (plan["stage"]["rows"], plan["stage"]["row_length"])
    if (place["device_kind"], place["devices"]) != (kind, number):
        of = f"{place['devices']} x {place['device_kind']}"
        return None, f"The plan of this workdir is of {of}, this report was made on {number} x {kind}."
    if batch != (stage["rows"], stage["row_length"]):
        return (
            None,
            f"The plan of this workdir is of {batch[0]} rows of {batch[1]} tokens, which were not trained last.",
        )
    return plan, ""


def _row(what: str, planned: float | None, measured: float | None, shown: Callable[[float], str]) -> tuple[str, ...]:
    values = ["-" if value is None else shown(value) for value in (planned, measured)]
    ratio = f"{measured / planned:.2f}" if planned and measured else "-"
    return what, *values, ratio
