"""A plan as a page with two pictures: what fills the memory of a device, and what a step waits for."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from core.page import Page, code, strong
from core.progress import count
from evals import draw
from scaling.plan_text import GIB, gib, made_by, seconds, text

Parts = list[tuple[str, float, str]]  # name, size, colour


def write_page(plan: Mapping[str, Any], command: str, path: Path) -> list[Path]:
    """Writes plan.html, and a PNG of each picture beside it."""
    place, time, memory = plan["topology"], plan["time"], plan["memory"]
    where = f"{place['slices']} slices of {place['name']}" if place["slices"] > 1 else place["name"]
    page = Page(f"Plan of {plan['name']} on {where}", *_lead(plan), footer=f"Quintet plan {plan['version']}")
    sheet = draw.Sheet(page)
    if not memory["fits"]:
        page.notice(strong("It does not fit. "), plan.get("nearest", ""))
    page.tiles(_tiles(plan))
    page.section("Step time")
    parts = time_parts(time)
    alt = f"A step of {seconds(time['total'])}: " + ", ".join(f"{name} {seconds(own)}" for name, own, _ in parts)
    sheet.figure("step", functools.partial(_step, parts), alt)
    page.table(
        ["part", "time", "share"], [(name, seconds(own), f"{own / time['total']:.1%}") for name, own, _ in parts]
    )
    _collectives(page, time)
    page.section("Memory")
    parts = memory_parts(memory)
    alt = f"{gib(memory['total'])} of {gib(memory['usable'])}: " + ", ".join(f"{n} {gib(own)}" for n, own, _ in parts)
    sheet.figure("memory", functools.partial(_memory, parts, memory["usable"]), alt)
    _buffers(page, plan)
    if plan.get("search"):
        page.section("Other settings")
        _search(page, plan["search"])
    page.section("All of it")
    page.pre(text(plan, plan["name"]))
    page.section("Reproduce")
    page.pre(command)
    return sheet.write(path)


def _lead(plan: Mapping[str, Any]) -> list[Any]:
    place, run, time = plan["topology"], plan["run"], plan["time"]
    how = "compiled by XLA for these chips" if plan["source"] == "compiled" else "computed from shapes"
    return [
        f"{count(plan['parameters'])} parameters on {place['chips']:,} {place['chip']}: ",
        f"{count(run['tokens'])} tokens in ",
        strong(f"{run['days']:,.1f} days, {run['chip_hours']:,.0f} chip-hours"),
        f", at {seconds(time['total'])} a step and {time['mfu']:.1%} of the peak. ",
        f"The step is {how}; nothing was run.",
    ]


def _tiles(plan: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    time, memory, run = (plan[name] for name in ("time", "memory", "run"))
    own = plan["serving"]
    return [
        ("Chip-hours", f"{run['chip_hours']:,.0f}", f"{run['days']:,.1f} days"),
        ("Step time", seconds(time["total"]), f"{seconds(time['outside_attention'])} outside attention"),
        ("MFU", f"{time['mfu']:.1%}", "6 N + 12 L N_heads H S FLOPs a token"),
        (
            "Tokens per second",
            count(time["tokens_per_second"]),
            f"{count(time['tokens_per_second_per_chip'])} a chip",
        ),
        ("Memory of a device", gib(memory["total"]), f"of {gib(memory['usable'])}"),
        ("Decoding", f"{own['single']:,.0f} tokens/s", f"one sequence on {own['devices']}, by bandwidth"),
    ]


def time_parts(time: Mapping[str, Any]) -> Parts:
    """Of a step."""
    kernels = sum(time["kernels"].values())
    named = [
        ("what XLA computes", time["compute"], "blue"),
        ("kernels but attention", kernels, "green"),
        ("attention", time["attention"], "pink"),
        ("collectives that it waits for", time["exposed"], "orange"),
        ("moments from the host and back", time["offload"], "amber"),
    ]
    return [part for part in named if part[1]]


def memory_parts(memory: Mapping[str, Any]) -> Parts:
    """Of one device."""
    temporaries = memory["temporaries"]
    if temporaries is None:  # XLA says only what all of it would need
        temporaries = max(0.0, memory["total"] - memory["parameters"] - memory["optimizer"] - memory["teacher"])
    gradients = min(memory["gradients"], temporaries)
    named = [
        ("parameters", memory["parameters"], "blue"),
        ("moments of the optimiser", memory["optimizer"], "green"),
        ("the teacher", memory["teacher"], "pink"),
        ("gradients", gradients, "amber"),
        ("other temporaries", temporaries - gradients, "orange"),
        ("program", memory["code"], "other"),
    ]
    return [part for part in named if part[1]]


@draw.styled
def _step(parts: Parts, width: int = draw.WIDE) -> Figure:
    total = sum(own for _, own, _ in parts)
    legend = [(f"{name} {seconds(own)}", colour) for name, own, colour in parts]
    bar = [("one step", seconds(total), [(own, colour) for _, own, colour in parts])]
    return draw.bars("Where a step's time goes", bar, legend, width, "seconds", draw.plain)


@draw.styled
def _memory(parts: Parts, usable: float, width: int = draw.WIDE) -> Figure:
    total = sum(own for _, own, _ in parts)
    legend = [(f"{name} {gib(own)}", colour) for name, own, colour in parts]
    label = f"{total / GIB:.2f} of {gib(usable)}"  # behind the mark of the limit, so it says both
    bar = [("one device", label, [(own / GIB, colour) for _, own, colour in parts])]
    marks = {"one device": usable / GIB}
    title = f"Memory, of {gib(usable)} that a program may use"
    return draw.bars(title, bar, legend, width, "GiB", draw.plain, marks=marks)


def _collectives(page: Page, time: Mapping[str, Any]) -> None:
    rows = [
        (
            code(one["opcode"]),
            one["shown"],
            one["devices"],
            one["times"],
            f"{one['bytes'] / 1e9:.2f} GB",
            seconds(one["seconds"]),
            how,
        )
        for how, name in (("waits", "collectives"), ("hidden", "hidden_collectives"))
        for one in time.get(name, ())
    ]
    if rows:
        page.heading("Exchanges between chips")
        with page.details(f"The longest {len(rows)}"):
            page.table(["what", "shape", "devices", "times", "bytes", "at link speed", "the chip"], rows)


def _buffers(page: Page, plan: Mapping[str, Any]) -> None:
    named = plan["memory"]["buffers"]
    if named:
        page.heading("The largest temporaries")
        page.table(
            ["size", "shape", "made by"],
            [(gib(one["bytes"]), code(one["shape"]), made_by(one["op_name"])) for one in named],
        )
    page.heading("By the shapes alone")
    page.table(["what", "size"], [(name, gib(size)) for name, size in plan["estimate"]["largest"]])


def _search(page: Page, search: Mapping[str, Any]) -> None:
    page.text(f"{search['tried']:,} ways to split the run were estimated, {search['fit']:,} of them fit.")
    rows = [
        (
            one["shown"],
            seconds(one["seconds"]),
            gib(one["bytes"]),
            one["source"],
            "best" if one["best"] else one["why"],
        )
        for one in search["ways"]
    ]
    page.table(["settings", "a step", "memory", "by", "why not"], rows)
