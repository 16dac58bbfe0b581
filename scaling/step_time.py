"""How long a step takes, from a compiled program: cycles by the compiler, kernels by FLOPs, collectives by bytes.

Cycles are XLA's own estimates times the trips of the loops around them. A Pallas kernel has none: it is charged the
FLOPs of its reference at 80% of the peak (of Muon's symmetric products all, though their kernel leaves out nearly
half), attention at 50% and on a line of its own; the rotation, which is bound by
memory, and kernels of which nothing is known what they read from HBM and write there, at its bandwidth. Collectives
that the compiler has not made asynchronous take their bytes at full link speed, an all-reduce twice (it is a
reduce-scatter and an all-gather). Nothing is known of stragglers, input, and latency.

Between S slices, of b bytes that all devices of a group hold together in each slice (w of them in a slice):

    all-reduce      first a reduce-scatter within each slice, so a device has b / w of the sum; over DCN it sends
                    2 (S - 1) / S of that, as each of two rounds, scatter and gather, sends all but its own part;
                    then an all-gather within the slice. The two within are charged 2 b to the links of the slice.
    reduce-scatter, all-gather    one of the two rounds: (S - 1) / S of b / w over DCN, b over the links
    all-to-all      (S - 1) / S of a device's own b leave its slice, whatever the others of the slice send
    permute         all b

XLA:TPU writes the part over DCN as messages to the host, one a device, whose bytes are b / w (for an all-gather
b / w / S). They run in loops over layers and microbatches as often as these turn, and while the chip computes.
"""

import collections
import math
import re
from typing import Any, NamedTuple

from model.config import ModelConfig
from objectives.build import Total
from scaling.chips import Topology
from scaling.hlo import Executed, Instruction, Program, executed, parse
from scaling.remat import AGAIN, attention_flops

TRIPS = {"all-gather": 1, "all-reduce": 2, "reduce-scatter": 1, "all-to-all": 1, "collective-permute": 1}
KERNEL_SHARE, ATTENTION_SHARE = 0.8, 0.5  # of the peak
NEWTON_SCHULZ = "newton_schulz_product"
LOSS = ("cross_entropy_forward", "cross_entropy_backward")
UPDATE_PRODUCTS = "products of the update"  # in an estimate, for not every optimiser has kernels for them
BY_FLOPS = (*LOSS, NEWTON_SCHULZ, UPDATE_PRODUCTS)
BY_BYTES = "rope"  # how the names of kernels begin that are bound by memory


class Collective(NamedTuple):
    """One exchange between chips, over all its repetitions in a step."""

    opcode: str
    shapes: tuple[tuple[int, ...], ...]  # of its results
    devices: int  # that take part
    times: int
    bytes: float  # through the links of one device
    crosses: bool  # from slice to slice
    seconds: float
    op_name: str

    @property
    def shown(self) -> str:
        """Its shapes, for messages."""
        shapes = ["x".join(map(str, shape)) or "a scalar" for shape in self.shapes[:3]]
        return " + ".join(shapes) + (" + ..." if len(self.shapes) > 3 else "")


class StepTime(NamedTuple):
    """Seconds of one step."""

    compute: float  # what XLA compiled itself
    kernels: dict[str, float]  # Pallas kernels but attention
    exposed: float  # collectives that the chip waits for, and of what crosses slices what takes longer than all else
    offload: float  # the optimiser's moments from the memory of the host and back
    hidden: float  # collectives at link speed while it computes: no part of the sum
    attention: float
    collectives: tuple[Collective, ...]  # exposed, longest first
    hidden_collectives: tuple[Collective, ...]
    by_opcode: dict[str, float]  # compute
    unknown: tuple[str, ...]  # kernels that nothing is known of but their bytes

    @property
    def outside_attention(self) -> float:
        """All but attention's kernels."""
        return self.compute + sum(self.kernels.values()) + self.exposed + self.offload

    @property
    def total(self) -> float:
        """Of a step."""
        return self.outside_attention + self.attention

    @property
    def between_slices(self) -> float:
        """What crosses slices while the chip computes, or when it is done."""
        return sum(one.seconds for one in self.hidden_collectives if one.crosses)


def step_time(
    text: str,
    topology: Topology,
    model: ModelConfig,
    tokens: int,
    row_length: int,
    context: int = 1,
    host_bytes: int = 0,
    objective: Total | None = None,
) -> StepTime:
    """Of a compiled step over `tokens` in rows of `row_length`, each split over `context` devices.

    The loss is that of the next token, or of an `objective`.
    `host_bytes` of the state lie in the memory of a device's host, and come and go once a step.
    """
    program, chip = parse(text), topology.chip
    compute, kernels = _on_the_chip(program)
    exposed, hidden = _exchanges(program, topology)
    charged, attention, unknown = _charge(kernels, topology, model, tokens, row_length, text, objective)
    by_opcode = {opcode: cycles / chip.clock for opcode, cycles in compute.most_common()}
    attention *= slowest(context)
    # What travels between slices hides behind what the chip computes, and no further.
    between = sum(one.seconds for one in hidden if one.crosses)
    waits = max(0.0, between - sum(by_opcode.values()) - sum(charged.values()) - attention)
    return StepTime(
        compute=sum(by_opcode.values()),
        kernels=charged,
        exposed=sum(one.seconds for one in exposed) + waits,
        offload=2 * host_bytes / chip.host_link,
        hidden=sum(one.seconds for one in hidden) - waits,
        attention=attention,
        collectives=_longest(exposed),
        hidden_collectives=_longest(hidden),
        by_opcode=by_opcode,
        unknown=unknown,
    )


def _on_the_chip(program: Program) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """Cycles by opcode; of kernels, by name, bytes from and to HBM, or FLOPs of Muon's."""
    results = {own.name: own for body in program.computations.values() for own in body}
    compute: collections.Counter[str] = collections.Counter()
    kernels: collections.Counter[str] = collections.Counter()
    for run in executed(program):
        own = run.instruction
        if own.cycles:
            compute[own.opcode] += own.cycles * run.times
        elif own.target == "tpu_custom_call":
            if (name := kernel_name(own)) == NEWTON_SCHULZ:
                kernels[name] += run.times * _symmetric_product(results[own.operands[-1]])
                continue
            operands = (results[operand].hbm for operand in set(own.operands) if operand in results)
            kernels[name] += run.times * (own.hbm + sum(operands))
    return compute, kernels


def _exchanges(program: Program, topology: Topology) -> tuple[list[Collective], list[Collective]]:
    """Collectives that the chip waits for, and those that run while it computes."""
    exposed: list[Collective] = []
    hidden: dict[Any, Collective] = {}
    for run in executed(program):
        if run.instruction.opcode == "send" and topology.slices > 1:
            hidden["send", run.instruction.channel] = _sent(run.instruction, run.times, topology)
        for own, way in _collectives(run, program):
            found = _collective(own, run.times, way, topology)
            if way == "hidden":  # its start, its pieces and its end share a channel
                hidden[own.channel, own.opcode, found.bytes] = found
            elif found.bytes:
                exposed.append(found)
    return exposed, list(hidden.values())


def _longest(collectives: Any) -> tuple[Collective, ...]:
    return tuple(sorted(collectives, key=lambda one: -one.seconds))


def kernel_name(instruction: Instruction) -> str:
    """The name that a Pallas kernel was given."""
    path = [part for part in instruction.op_name.split("/") if part not in ("pallas_call", "")]
    return path[-1] if path else re.sub(r"\.\d+$", "", instruction.name)


def _collectives(run: Executed, program: Program) -> list[tuple[Instruction, str]]:
    """The exchanges that an executed instruction is, each with how it runs: exposed, scattered or hidden.

    A fusion with an estimate holds pieces of an asynchronous one; one without that is called all-reduce-scatter is a
    reduce-scatter, which XLA writes as an all-reduce and a slice.
    """
    instruction, fusion = run.instruction, run.fusion
    opcode = instruction.opcode.removesuffix("-start")
    if instruction.opcode == "fusion" and instruction.cycles:
        inside = program.computations.get(dict(instruction.calls).get("calls", ""), ())
        return [(inner, "hidden") for inner in inside if inner.opcode in TRIPS]
    if opcode not in TRIPS:
        return []
    if instruction.opcode != opcode:
        return [(instruction, "hidden")]
    if fusion is None:
        return [(instruction, "exposed")]
    called = dict(fusion.calls)["calls"]
    if "async" in fusion.name or "async" in called:
        return [(instruction, "hidden")]
    return [(instruction, "scattered" if called.startswith("all-reduce-scatter") else "exposed")]


def _collective(own: Instruction, times: int, way: str, topology: Topology) -> Collective:
    """Bytes and time of one."""
    devices, reach = own.groups
    opcode = own.opcode.removesuffix("-start")
    size = own.sent_bytes
    if opcode == "reduce-scatter":
        size *= devices or 1  # its result is a part
    if way == "scattered":
        opcode = "reduce-scatter"
    moved = size * TRIPS[opcode] * times
    crosses = topology.slices > 1 and reach >= topology.devices_per_slice
    seconds = _across(opcode, moved, devices, topology) if crosses else moved / topology.chip.ici
    shapes = tuple(shape for _, shape in own.sent)
    return Collective(opcode, shapes, devices, times, moved, crosses, seconds, own.op_name)


def _across(opcode: str, moved: float, devices: int, topology: Topology) -> float:
    """Seconds of an exchange between devices of several slices; `moved` has both rounds of an all-reduce."""
    slices = min(topology.slices, max(devices, 1))
    within, leaves = max(1, devices // slices), 1 - 1 / slices
    if opcode == "collective-permute":
        return moved / topology.chip.dcn
    if opcode == "all-to-all":
        within = 1
    return moved / within * leaves / topology.chip.dcn + (moved / topology.chip.ici if within > 1 else 0.0)


def _sent(own: Instruction, times: int, topology: Topology) -> Collective:
    """What a device sends to other slices, messages to its host for XLA:TPU, while it computes."""
    itemsize, shape = own.arrays[0]
    slices = topology.slices
    leaves = 1 - 1 / slices
    rounds = {"ALL_REDUCE": 2 * leaves, "REDUCE_SCATTER": leaves, "ALL_TO_ALL": leaves, "ALL_GATHER": slices - 1}
    moved = itemsize * math.prod(shape) * times * rounds.get(own.target, 1)
    seconds = moved / topology.chip.dcn
    return Collective("send", (shape,), slices, times, moved, True, seconds, own.op_name)


def _symmetric_product(x: Instruction) -> float:
    """FLOPs of x x^T of all matrices of a stack x."""
    ((_, (S, R, C)),) = x.arrays
    return 2.0 * S * R * R * C


def _charge(
    kernels: collections.Counter[str],
    topology: Topology,
    model: ModelConfig,
    tokens: int,
    row_length: int,
    text: str,
    objective: Total | None,
) -> tuple[dict[str, float], float, tuple[str, ...]]:
    """Seconds of kernels by name, of attention, and the names that nothing is known of; `kernels` has their bytes."""
    per_device = tokens / topology.devices
    # One product of hidden states and head, of three: the loss's kernels compute logits again, which is not counted.
    product = 2 * per_device * model.d_model * model.vocab_size / (KERNEL_SHARE * topology.chip.flops)
    passes, again = (objective.passes, objective.repeated_passes) if objective else (1, 0)
    known = dict(zip(LOSS, ((passes + again) * product, 2 * passes * product)))
    known[NEWTON_SCHULZ] = kernels[NEWTON_SCHULZ] / (KERNEL_SHARE * topology.chip.flops)
    charged = {name: known[name] for name in kernels if name in known}
    names = [name for name in kernels if name.startswith("attention")]
    by_bytes = set(kernels) - charged.keys() - set(names)
    charged |= {name: kernels[name] / topology.chip.bandwidth for name in sorted(by_bytes)}
    unknown = tuple(sorted(name for name in by_bytes if not name.startswith(BY_BYTES)))
    attention = 0.0
    if names:
        repeats = re.search(r"/rematted_computation/[^\"]*attention_forward/pallas_call", text) is not None
        if model.multi_token.modules:  # all of whose are
            repeats = model.remat in AGAIN
        teacher = objective.teacher if objective else None
        attention = attention_flops(model, row_length, repeats, teacher) * per_device
        attention /= ATTENTION_SHARE * topology.chip.flops
    return charged, attention, unknown


def slowest(context: int) -> float:
    """How many times the mean of attention's products the last of so many stretches of a row has to do.

    Where one document fills the row, and nobody else goes on before it.
    """
    return (2 * context - 1) / context
