"""How long a step takes, from a compiled program: cycles by the compiler, kernels by FLOPs, collectives by bytes.

Cycles are XLA's own estimates times the trips of the loops around them. A Pallas kernel has none: it is charged the
FLOPs of its reference at 80% of the peak, attention at 50% and on a line of its own; Muon's symmetric products as
plain ones, though their kernel leaves out nearly half. Collectives that the compiler has not made asynchronous take
their bytes at full link speed, an all-reduce twice (it is a reduce-scatter and an all-gather); what crosses slices
goes over DCN. Nothing is known of stragglers, input, and latency.
"""

import collections
import math
import re
from typing import Any, NamedTuple

from model.config import ModelConfig
from scaling.chips import Topology
from scaling.hlo import Executed, Instruction, Program, executed, parse

TRIPS = {"all-gather": 1, "all-reduce": 2, "reduce-scatter": 1, "all-to-all": 1, "collective-permute": 1}
KERNEL_SHARE, ATTENTION_SHARE = 0.8, 0.5  # of the peak
NEWTON_SCHULZ = "newton_schulz_product"


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
    exposed: float  # collectives that the chip waits for
    hidden: float  # collectives at link speed while it computes: no part of the sum
    attention: float
    collectives: tuple[Collective, ...]  # exposed, longest first
    hidden_collectives: tuple[Collective, ...]
    by_opcode: dict[str, float]  # compute
    uncharged: tuple[str, ...]  # kernels that nothing is known of

    @property
    def outside_attention(self) -> float:
        """All but attention's kernels."""
        return self.compute + sum(self.kernels.values()) + self.exposed

    @property
    def total(self) -> float:
        """Of a step."""
        return self.outside_attention + self.attention

    @property
    def between_slices(self) -> float:
        """Over DCN, of what is hidden."""
        return sum(one.seconds for one in self.hidden_collectives if one.crosses)


def step_time(
    text: str, topology: Topology, model: ModelConfig, tokens: int, row_length: int, context: int = 1
) -> StepTime:
    """Of a compiled step over `tokens` in rows of `row_length`, each split over `context` devices."""
    program, chip = parse(text), topology.chip
    compute: collections.Counter[str] = collections.Counter()
    kernels: collections.Counter[str] = collections.Counter()
    products = 0.0  # of the optimiser, FLOPs
    exposed: list[Collective] = []
    hidden: dict[Any, Collective] = {}
    for run in executed(program):
        instruction = run.instruction
        if instruction.cycles:
            compute[instruction.opcode] += instruction.cycles * run.times / chip.clock
        if instruction.target == "tpu_custom_call" and not instruction.cycles:
            kernels[_kernel(instruction)] += run.times
            if _kernel(instruction) == NEWTON_SCHULZ:
                products += run.times * _symmetric_product(instruction, program.computations[run.computation])
        if instruction.opcode == "send" and topology.slices > 1:
            hidden["send", instruction.channel] = _sent(instruction, run.times, topology)
        for own, way in _collectives(run, program):
            found = _collective(own, run.times, way, topology)
            if way == "hidden":
                hidden[own.channel, own.opcode, found.bytes] = (
                    found  # its start, its pieces and its end share a channel
                )
            elif found.bytes:
                exposed.append(found)
    charged, attention, unknown = _charge(kernels, topology, model, tokens, row_length, text)
    if NEWTON_SCHULZ in kernels:
        charged[NEWTON_SCHULZ] = products / (KERNEL_SHARE * chip.flops)
    attention *= slowest(context)
    return StepTime(
        sum(compute.values()),
        charged,
        sum(one.seconds for one in exposed),
        sum(one.seconds for one in hidden.values()),
        attention,
        _longest(exposed),
        _longest(hidden.values()),
        dict(compute.most_common()),
        unknown,
    )


def _longest(collectives: Any) -> tuple[Collective, ...]:
    return tuple(sorted(collectives, key=lambda one: -one.seconds))


def _kernel(instruction: Instruction) -> str:
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
    size = own.sent_bytes / (2 if own.opcode != opcode else 1)  # a start holds its operand and its result
    if opcode == "reduce-scatter":
        size *= devices or 1  # its result is a part
    if way == "scattered":
        opcode = "reduce-scatter"
    moved = size * TRIPS[opcode] * times
    crosses = topology.slices > 1 and reach >= topology.devices_per_slice
    seconds = moved / topology.chip.ici
    if crosses:  # first within each slice, then each chip its part of the sum with the other slices
        within = max(1, devices // topology.slices)
        apart = moved / within * (1 - 1 / topology.slices) / topology.chip.dcn
        seconds = apart + (seconds if within > 1 else 0.0)
    shapes = tuple(shape for _, shape in own.arrays)
    return Collective(opcode, shapes, devices, times, moved, crosses, seconds, own.op_name)


def _sent(own: Instruction, times: int, topology: Topology) -> Collective:
    """What a device sends to other slices, messages between hosts to XLA:TPU, while it computes."""
    itemsize, shape = own.arrays[0]
    moved = itemsize * math.prod(shape) * times * (topology.slices - 1)
    seconds = moved / topology.chip.dcn
    return Collective("send", (shape,), topology.slices, times, moved, True, seconds, own.op_name)


def _symmetric_product(own: Instruction, computation: list[Instruction]) -> float:
    """FLOPs of all x x^T of a stack, from the shape of x, its last operand."""
    ((_, (S, R, C)),) = next(one.arrays for one in computation if one.name == own.operands[-1])
    return 2.0 * S * R * R * C


def _charge(
    kernels: collections.Counter[str], topology: Topology, model: ModelConfig, tokens: int, row_length: int, text: str
) -> tuple[dict[str, float], float, tuple[str, ...]]:
    """Seconds of kernels by name, of attention, and the names that nothing is known of."""
    per_device = tokens / topology.devices
    # One product of hidden states and head, of three: the loss's kernels compute logits again, which is not counted.
    product = 2 * per_device * model.d_model * model.vocab_size / (KERNEL_SHARE * topology.chip.flops)
    known = {"cross_entropy_forward": product, "cross_entropy_backward": 2 * product}
    charged = {name: known[name] for name in kernels if name in known}
    charged |= {name: 0.0 for name in kernels if name.startswith("rope") or name == NEWTON_SCHULZ}
    names = [name for name in kernels if name.startswith("attention")]
    unknown = tuple(sorted(set(kernels) - charged.keys() - set(names)))
    attention = 0.0
    if names:
        repeated = re.search(r"/rematted_computation/[^\"]*attention_forward/pallas_call", text) is not None
        attention = attention_flops(model, row_length) * per_device * (4 / 3 if repeated else 1)
        attention /= ATTENTION_SHARE * topology.chip.flops
    return charged, attention, unknown


def slowest(context: int) -> float:
    """How many times the mean of attention's products the last of so many stretches of a row has to do.

    Where one document fills the row, and nobody else goes on before it.
    """
    return (2 * context - 1) / context


def attention_flops(model: ModelConfig, row_length: int) -> float:
    """The part of `flops_per_token` that is attention."""
    matmul = model.num_layers * model.layer_matmul_parameters + model.vocab_size * model.d_model
    return model.flops_per_token(row_length) - 6 * matmul
