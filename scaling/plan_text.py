"""A plan as text: what one would send with a request for chips."""

import collections
from collections.abc import Iterator, Mapping
from typing import Any

from core.progress import count
from scaling.step_time import BY_FLOPS

GIB = 1 << 30


def gib(size: float) -> str:
    """Bytes as the makers of chips count them: 12.3 GiB."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def seconds(value: float) -> str:
    """1.234 s, 12.3 ms."""
    return f"{value:.3f} s" if value >= 0.1 else f"{value * 1e3:.2f} ms"


def text(plan: Mapping[str, Any], name: str) -> str:
    """All of it, in sections."""
    sections = [
        ("", _head(plan, name)),
        ("Step time", _time(plan)),
        ("Memory of one device", _memory(plan)),
        ("The run", _run(plan)),
        ("The result, served", _serving(plan)),
        ("Notes", [(f"- {line}", "") for line in (*plan["notes"], *plan["warnings"])]),
    ]
    blocks = []
    for title, rows in sections:
        rows = list(rows)
        if rows:
            width = max((len(key) for key, value in rows if value), default=0)
            lines = [f"  {key:<{width}}  {value}".rstrip() if value else key for key, value in rows]
            blocks.append("\n".join([title, *lines] if title else lines))
    return "\n\n".join(blocks) + "\n"


def _hosts(number: int) -> str:
    return f"{number:,} hosts" if number > 1 else "1 host"


def _head(plan: Mapping[str, Any], name: str) -> Iterator[tuple[str, str]]:
    place, stage, settings = plan["topology"], plan["stage"], plan["settings"]
    slices = f"{place['slices']} slices of " if place["slices"] > 1 else ""
    yield f"Plan of {name} on {slices}{place['name']}", ""
    how = (
        "the true train step, compiled by XLA for these chips"
        if plan["source"] == "compiled"
        else "computed from shapes"
    )
    yield f"{how}; nothing was run", ""
    yield "parameters", f"{plan['parameters']:,}"
    yield "chips", f"{place['chips']:,} x {place['chip']} on {_hosts(place['hosts'])}"
    yield "mesh", plan["mesh_shown"]
    which = (
        f"stage {stage['number'] + 1} of {stage['of']} (the most tokens unless --stage=N), "
        if stage["of"] > 1
        else ""
    )
    rows = f"{stage['rows']:,} rows of {stage['row_length']:,} tokens, {stage['rows'] * stage['row_length']:,} a step"
    yield "batch", which + rows
    parts = f"{settings['microbatches']} microbatches, " if settings["microbatches"] > 1 else ""
    offload = ", the optimiser in the memory of the host" if settings["offload_optimizer"] else ""
    yield "step", f"{parts}remat {settings['remat']}, {settings['dtype']}{offload}"


def _time(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    time, flops = plan["time"], plan["flops"]
    compiled = plan["source"] == "compiled" and "by_opcode" in time
    yield "step time outside attention", seconds(time["outside_attention"])
    yield "  compute", f"{seconds(time['compute'])}  ({_computed(plan, compiled)})"
    for name, spent in time["kernels"].items():
        by = "reference FLOPs at 80% of the peak" if name in BY_FLOPS else "bytes at HBM bandwidth"
        yield f"  {name}", f"{seconds(spent)}  (kernel: {by})"
    yield "  exposed collectives", f"{seconds(time['exposed'])}  (bytes at full link speed)"
    if time["offload"]:
        yield "  moments from the host and back", f"{seconds(time['offload'])}  (bytes at an assumed link speed)"
    yield "attention", f"{seconds(time['attention'])}  (reference FLOPs, causal half, at 50% of the peak)"
    yield "step time", seconds(time["total"])
    if time["hidden"]:
        yield "hidden collectives", f"{seconds(time['hidden'])} at full link speed, while the chip computes"
    if time.get("between_slices"):
        yield "  between slices", f"{seconds(time['between_slices'])} of it over DCN"
    yield "at the peak", f"{seconds(time['ideal'])}"
    yield "MFU", f"{time['mfu']:.1%}  of {flops['peak_per_device'] / 1e12:,.0f} TFLOP/s a device"
    yield "FLOPs", f"{flops['per_token']:.4g} a token (6 N + 12 L N_heads H S), {flops['per_step']:.4g} a step"
    if update := plan["update"]["flops"]:
        most = plan["update"]["busiest"] * plan["topology"]["devices"] / update
        yield (
            "  of the update",
            f"{update:.4g}, {update / flops['per_step']:.2%} of it; the busiest device {most:.1f} x the mean",
        )
    rate = f"{time['tokens_per_second']:,.0f} tokens/s, {time['tokens_per_second_per_chip']:,.0f} a chip"
    yield "throughput", rate


def _computed(plan: Mapping[str, Any], compiled: bool) -> str:
    """Where the seconds of computing come from."""
    if compiled:
        return "the compiler's cycles times loop trips"
    share = f"products at {plan['estimate']['time']['share']:.0%} of the peak"
    return (
        f"{share}, all else at HBM bandwidth" if plan["topology"]["chip"].startswith("TPU") else f"{share}, assumed"
    )


def _memory(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    memory = plan["memory"]
    yield "parameters", gib(memory["parameters"])
    yield "optimiser", gib(memory["optimizer"]) if memory["optimizer"] else "in the memory of the host"
    if memory["teacher"]:
        yield "teacher", gib(memory["teacher"])
    if memory["temporaries"] is not None:
        yield "temporaries", f"{gib(memory['temporaries'])}  (gradients {gib(memory['gradients'])} among them)"
    if memory["code"]:
        yield "program", gib(memory["code"])
    fits = "fits" if memory["fits"] else "DOES NOT FIT"
    yield "in all", f"{gib(memory['total'])} of {gib(memory['usable'])} that a program may use: {fits}"
    if memory["host"]:
        yield "in the host, a device", gib(memory["host"])
    guess = plan["estimate"]
    if plan["source"] == "compiled" and memory["temporaries"] is not None:
        real = memory["arguments"] + memory["temporaries"]
        yield (
            "from shapes alone",
            f"{gib(guess['total'])}, {guess['total'] / real - 1:+.1%} of what XLA counts without the program",
        )
    if not memory["fits"]:
        for name, size in guess["largest"][:4]:
            yield f"  {name}", gib(size)
        for (shape, made), number in _counted(memory["buffers"])[:4]:
            size = next(one["bytes"] for one in memory["buffers"] if one["shape"] == shape)
            yield f"  {number} x {shape}", f"{gib(size)} each, from {made_by(made)}"


def made_by(op_name: str) -> str:
    """What a buffer was made from, without the loops around it."""
    return op_name.rpartition("closed_call/")[2]


def _counted(buffers: list[Mapping[str, Any]]) -> list[tuple[tuple[str, str], int]]:
    """Buffers that are alike, with how many there are; the largest first."""
    return list(collections.Counter((one["shape"], one["op_name"]) for one in buffers).items())


def _run(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    run, saved, data = plan["run"], plan["checkpoint"], plan["data"]
    yield "steps", f"{run['steps']:,}, {count(run['tokens'])} tokens"
    yield (
        "time",
        f"{run['days']:,.1f} days without interruptions" if run["days"] >= 1 else f"{run['days'] * 24:,.2f} hours",
    )
    yield "chip-hours", f"{run['chip_hours']:,.0f}"
    writing = f"{_hosts(saved['hosts'])} at {saved['host_writes'] / 1e9:g} GB/s each, assumed"
    yield "checkpoint", f"{saved['bytes'] / 1e9:,.1f} GB, {saved['seconds']:,.1f} s to write ({writing})"
    if data:
        held = f"{count(data['tokens'])} tokens in the workdir"
        yield "shards", f"{held}, {data['epochs']:,.2f} epochs: {_enough(data)}"
    else:
        yield "shards", "none in the workdir yet"


def _enough(data: Mapping[str, Any]) -> str:
    """Whether the shards of the workdir will do."""
    if data["refused"]:
        return f"refused, {data['refused']}"
    if data["epochs"] <= 1:
        return "enough"
    # Muennighoff et al. 2023 (arXiv 2305.16264): up to four epochs are nearly as good as new tokens.
    return "each is read more than once" + (", more often than the four times that do no harm" * (data["epochs"] > 4))


def _serving(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    own, chip = plan["serving"], plan["topology"]["chip"]
    devices = f"{own['devices']} x {chip}"
    yield "weights", f"{own['weights'] / 1e9:.2f} GB in bfloat16, on {devices}"
    yield (
        "KV cache",
        f"{own['cache_per_token']:,} bytes a token, {gib(own['cache'])} at {own['context']:,} tokens",
    )
    yield "one sequence", f"{own['single']:,.0f} tokens/s at most, by memory bandwidth"
    yield f"{own['batch']:,} sequences", f"{own['batched']:,.0f} tokens/s at most, which fill the memory"


def search_text(search: Mapping[str, Any]) -> str:
    """The ways that were tried, a line each."""
    lines = [f"{search['tried']:,} ways to split the run, {search['fit']:,} fit by the estimate"]
    width = max(len(one["shown"]) for one in search["ways"])
    for one in search["ways"]:
        by = "compiled" if one["source"] == "compiled" else "estimated"
        figures = f"{seconds(one['seconds'])}, {gib(one['bytes'])}, {by}"
        lines.append(f"  {one['shown']:<{width}}  {figures}  {'BEST' if one['best'] else one['why']}")
    if search["more"]:
        lines.append(f"  and {search['more']:,} more")
    lines.append(f"best: {search['flags'] or 'the config as it is'}")
    return "\n".join(lines) + "\n"
