"""The plan of a run on accelerators that are not here: does it fit, how long is a step, what does all of it cost.

    plan = make_plan(run, parse_topology("v5e:16x16"), workdir)
    text(plan)          # scaling/plan_text.py

For TPUs the true train step is compiled; beside it stands, and for GPUs alone, what follows from shapes
(`scaling/estimate.py`).
"""

import dataclasses
import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from core.errors import UserError
from core.files import MANIFEST, fingerprint, read_json, read_manifest, write_json
from core.progress import say
from data.config import Stage
from data.history import ask
from data.plan import Plan
from data.tokenize import TOKENS
from optim.cost import update_cost
from scaling import compiled
from scaling.chips import Topology
from scaling.estimate import Estimate, estimate
from scaling.serving import serving
from scaling.step_time import StepTime, slowest, step_time
from scaling.topology import lower_step
from scaling.warnings import unexpected
from train import step
from train.run import Program, Run, make_program, open_corpus
from train.sharding import abstract_mesh, batch_parts, shown

VERSION = 2
FOLDER, CACHE = "plan", "compiled"
HOST_WRITES = 0.5e9  # bytes a second of one host into object storage, which nobody promises
LIBTPU = "the TPU compiler is not installed (`pip install libtpu`, Linux x86-64): all is computed from shapes"
GPU = "for GPUs nothing is compiled here: all is computed from shapes"


class Subject(NamedTuple):
    """What is planned: a stage of a run on a topology."""

    run: Run
    topology: Topology
    stages: tuple[Stage, ...]
    number: int  # of the stage
    mesh: Any  # abstract
    program: Program

    @property
    def stage(self) -> Stage:
        """The one that is planned."""
        return self.stages[self.number]

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.stage.rows * self.stage.row_length


def make_plan(
    run: Run, topology: Topology, workdir: Path, stage: int | None = None, *, compiles: bool = True
) -> dict[str, Any]:
    """Everything that the page and the text show, as plain JSON."""
    stages = run.batch.plan(run.train.steps)
    mesh = abstract_mesh(run.mesh, topology.devices, topology.slices)
    program = make_program(run, mesh)  # refuses what cannot be split
    own = Subject(run, topology, stages, chosen(stages, stage), mesh, program)
    guess = estimate(run, topology, own.stage, program.abstract, mesh)
    compiles = compiles and has_compiler(topology)
    result = compile_cached(run, topology, own.number, workdir) if compiles else None
    times = read_times(result, run, topology, own.stage) if result else None
    flops = run.flops_per_token(own.stage.row_length)
    seconds = times.total if times else guess.seconds
    return {
        **_subject(own),
        "source": "compiled" if result else "computed",
        "compiled_seconds": result["seconds"] if result else None,
        "memory": _memory(topology, result, guess),
        "flops": {"per_token": flops, "per_step": flops * own.tokens, "peak_per_device": topology.chip.flops},
        "update": update_cost(program.abstract.params, run.optim, dict(mesh.shape))._asdict(),
        "time": _times(times, guess, flops * own.tokens, topology, own.tokens),
        "estimate": guess.as_dict(),
        "run": _run(stages, run, own.number, seconds, topology),
        "checkpoint": _checkpoint(program, topology, mesh),
        "data": _data(run, stages, workdir),
        "serving": serving(run.model, topology.chip, stages[-1].row_length)._asdict(),
        "notes": _notes(own, result, times),
        "warnings": _warnings(own, times) if times else [],
    }


def has_compiler(topology: Topology) -> bool:
    """Whether steps for it are compiled here."""
    return topology.chip.is_tpu and importlib.util.find_spec("libtpu") is not None


def chosen(stages: tuple[Stage, ...], asked: int | None) -> int:
    """The number of the stage to plan: the one asked for, else the one of the most tokens."""
    if asked is None:
        return max(range(len(stages)), key=lambda i: stages[i].steps * stages[i].rows * stages[i].row_length)
    if not 1 <= asked <= len(stages):
        raise UserError(f"--stage={asked} is not a stage of this config; it has 1 to {len(stages)}")
    return asked - 1


def compile_cached(run: Run, topology: Topology, stage: int, workdir: Path) -> dict[str, Any]:
    """What the compiler says of a step; from the workdir, where the same program has been compiled before."""
    with compiled.elapsed(f"plan: tracing the step for {topology.name}"):
        lowered = lower_step(run, topology.name, topology.slices, stage)
    key = compiled.program_key(lowered, topology.name, topology.slices, step.OVERLAP | step.SAFE)
    folder = workdir / FOLDER / CACHE
    path, program = folder / f"{key}.json", folder / f"{key}.hlo.txt.gz"
    if path.exists() and program.exists():
        say(f"plan: {topology.name} is compiled already")
        return {**read_json(path), "text": compiled.read_text(program)}
    found = compiled.compile_lowered(lowered, f"plan: compiling for {topology.name}")
    record = {
        "seconds": found.seconds,
        "memory": found.memory._asdict() if found.memory else None,
        "needs": found.needs,
        "buffers": [buffer._asdict() for buffer in found.buffers],
    }
    compiled.write_text(program, found.text)
    write_json(path, record)
    return {**record, "text": found.text}


def read_times(result: Mapping[str, Any], run: Run, topology: Topology, stage: Stage) -> StepTime | None:
    """Of a program that fits; None where the compiler gave no cycles."""
    if not (result["memory"] and result["text"] and topology.chip.clock):
        return None
    size = stage.rows * stage.row_length, stage.row_length, run.mesh.context
    host_bytes = result["memory"]["host_arguments"]
    times = step_time(result["text"], topology, run.model, *size, host_bytes, run.learns)
    return times if times.compute else None


def _subject(own: Subject) -> dict[str, Any]:
    """What is planned, on what, and how it is split."""
    topology, run, chip = own.topology, own.run, own.topology.chip
    place = {"name": topology.name, "slices": topology.slices, "devices": topology.devices, "chips": topology.chips}
    settings = {"remat": run.model.remat, "dtype": run.model.dtype, "microbatches": run.train.microbatches}
    return {
        "version": VERSION,
        "topology": place | {"hosts": topology.hosts, "chip": chip.name, "device_kind": chip.kind},
        "stage": {"number": own.number, "of": len(own.stages), **own.stage._asdict()},
        "mesh": {name: size for name, size in own.mesh.shape.items() if size > 1},
        "mesh_shown": shown(own.mesh) or "1 device",
        "settings": settings | {"offload_optimizer": run.train.offload_optimizer},
        "parameters": run.model.num_parameters,
        "trains": fingerprint({name: dataclasses.asdict(getattr(run, name)) for name in ("model", "optim")}),
    }


def _notes(own: Subject, result: Any, times: StepTime | None) -> list[str]:
    """What one should know of how the figures came about."""
    chip, context, notes = own.topology.chip, own.run.mesh.context, []
    if not chip.is_tpu:
        notes.append(GPU)
    elif not has_compiler(own.topology):
        notes.append(LIBTPU)
    elif result and result["memory"] is None:
        notes.append("it does not fit, so the step time is computed from shapes")
    elif result and times is None:
        notes.append(f"the compiler counts no cycles for {chip.name}: the step time is computed from shapes")
    if context > 1:
        notes.append(f"attention is the last stretch's of a row, {slowest(context):.2f} times the mean")
    if own.run.train.offload_optimizer:
        link = f"{chip.host_link / 1e9:g} GB/s a device each way"
        notes.append(
            f"moments of the optimiser come from the host and go back at {link}, and nothing hides it: assumed"
        )
    return notes


def _warnings(own: Subject, times: StepTime) -> list[str]:
    """What a compiled step should not do."""
    model, axes = own.run.model, own.mesh.shape
    split = batch_parts(own.mesh) * own.run.train.microbatches, axes["context"], axes["tensor"]
    lines = unexpected(times.collectives + times.hidden_collectives, model, own.stage, *split)
    if times.between_slices >= times.total - times.exposed - times.offload:
        took = f"{times.between_slices:.3f} s, longer than all else of a step"
        lines.append(f"what travels between slices takes {took}")
    known = "is charged what it reads and writes: nothing else is known of it"
    return lines + [f"the kernel {name} {known}" for name in times.unknown]


def _memory(topology: Topology, result: Any, guess: Estimate) -> dict[str, Any]:
    """Bytes of one device by kind; the compiler's where there are any."""
    own = {"parameters": guess.parameters, "optimizer": guess.optimizer, "gradients": guess.gradients}
    own |= {"teacher": guess.teacher, "hbm": topology.chip.hbm, "usable": topology.chip.usable, "host": guess.host}
    if not result:
        own |= {"arguments": guess.arguments, "temporaries": guess.temporaries, "total": guess.total, "buffers": []}
        return own | {"code": 0, "fits": guess.total <= topology.chip.usable}
    own["buffers"] = result["buffers"]
    if result["memory"] is None:
        own |= {"arguments": guess.arguments, "temporaries": None, "code": 0}
        return own | {"total": max(result["needs"], guess.arguments), "fits": False}
    parts = result["memory"]
    total = parts["arguments"] + parts["temporaries"] + parts["code"]
    own |= {name: parts[name] for name in ("arguments", "temporaries", "code")}
    return own | {"host": parts["host_arguments"], "total": total, "fits": total <= topology.chip.usable}


def _times(times: StepTime | None, guess: Estimate, flops: float, topology: Topology, tokens: int) -> dict[str, Any]:
    """Seconds of a step, and what follows from them."""
    found = times or guess.time
    own = found._asdict() | {"outside_attention": found.outside_attention, "total": found.total}
    if times:
        own["between_slices"] = times.between_slices
        for name in ("collectives", "hidden_collectives"):
            told = [one for one in getattr(times, name) if one.seconds > 1e-4][:12]
            own[name] = [one._asdict() | {"shown": one.shown} for one in told]
    peak = topology.devices * topology.chip.flops
    own |= {"ideal": flops / peak, "mfu": flops / peak / own["total"], "tokens_per_second": tokens / own["total"]}
    return own | {"tokens_per_second_per_chip": tokens / own["total"] / topology.chips}


def _run(stages: tuple[Stage, ...], run: Run, number: int, seconds: float, topology: Topology) -> dict[str, Any]:
    """All stages: each at the share of the peak that the planned one has."""
    own = stages[number]
    rate = run.flops_per_token(own.row_length) * own.rows * own.row_length / seconds
    spent, tokens = 0.0, 0
    for stage in stages:
        in_stage = stage.steps * stage.rows * stage.row_length
        tokens += in_stage
        spent += in_stage * run.flops_per_token(stage.row_length) / rate
    hours = spent / 3600
    return {
        "steps": run.steps,
        "tokens": tokens,
        "seconds": spent,
        "days": hours / 24,
        "chip_hours": hours * topology.chips,
    }


def _checkpoint(program: Program, topology: Topology, mesh: Any) -> dict[str, Any]:
    """Size of the whole state, and the time to write it: each host its share, on TPUs also of what others hold too.

    So Orbax does by default (`use_replica_parallel`); on GPUs one copy of several is written whole.
    """
    size = sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(program.abstract))
    hosts = topology.hosts if topology.chip.is_tpu else max(1, topology.hosts // mesh.shape["replica"])
    return {"bytes": size, "hosts": hosts, "host_writes": HOST_WRITES, "seconds": size / hosts / HOST_WRITES}


def _data(run: Run, stages: tuple[Stage, ...], workdir: Path) -> dict[str, Any] | None:
    """Tokens that the shards of the workdir hold, where it has any, and whether the run can be made of them."""
    path = workdir / TOKENS / MANIFEST
    if not path.exists() or not (manifest := read_manifest(path))["complete"]:
        return None
    held = manifest["summary"]["train"]["tokens"]
    wanted = sum(stage.steps * stage.rows * stage.row_length for stage in stages)
    refused = ""
    try:
        corpus = open_corpus(run, workdir)
        Plan((ask(run.batch, run.train.steps, corpus.generations),), corpus, run.seed)
    except UserError as error:
        refused = str(error)
    return {"tokens": held, "epochs": wanted / max(held, 1), "refused": refused}
