"""What XLA:TPU made of a program: its instructions, with the compiler's own estimate of their cycles.

    program = instructions(compile_for_chip("v5e", function, *shapes).as_text())
    sum(instruction.cycles for instruction in program.values())

Estimates exist for what XLA compiles itself (fusions, copies, products), not for Pallas kernels. `executed` walks
from the entry through fusions and loops, and says how often each instruction runs.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

SHAPE = re.compile(r"\b([a-z]+)(\d+)\w*\[([\d,]*)\](?:\{([^}]*)\})?")
ELSEWHERE = re.compile(r"S\([1-9]")  # in a layout: another memory than HBM
CALLS = re.compile(r"\b(calls|to_apply|body|condition|branch_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))")


class Instruction(NamedTuple):
    """One line of a computation."""

    opcode: str
    operands: tuple[str, ...]  # names
    arrays: tuple[tuple[int, tuple[int, ...]], ...]  # bytes an element and shape of every result
    cycles: int  # 0 where the compiler says nothing
    op_name: str  # what it was made from: "jit(f)/jvp(attention_forward)/pallas_call"
    multiplies: bool  # whether it holds a matrix product
    name: str = ""
    calls: tuple[tuple[str, str], ...] = ()  # computations it runs, each with how: calls, to_apply, body, condition
    target: str = ""  # of a custom call; of a message between slices what exchange it is part of: ALL_REDUCE
    channel: int = 0  # of a collective; pieces of one that XLA has split share it
    groups: tuple[int, int] = (0, 0)  # devices that a collective joins, and the farthest two numbers among them
    hbm: int = 0  # bytes of the results that lie in HBM, not in a memory on the chip

    @property
    def bytes(self) -> int:
        """Of the results in memory, where a last axis fills whole registers of 128 lanes."""
        total = 0
        for itemsize, shape in self.arrays:
            size = itemsize
            for axis, length in enumerate(shape):
                size *= -(-length // 128) * 128 if axis == len(shape) - 1 else length
            total += size
        return total

    @property
    def sent_bytes(self) -> int:
        """Of the results as they travel between chips, without that padding; of a start, those of its end."""
        return sum(itemsize * math.prod(shape) for itemsize, shape in self.sent)

    @property
    def sent(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Arrays that an exchange results in: a start has its operands before them, and counters, which are scalars.

        The start of an all-reduce has its results alone.
        """
        if self.opcode not in ("all-gather-start", "collective-permute-start"):
            return self.arrays
        arrays = [array for array in self.arrays if array[1]]
        return tuple(arrays[len(arrays) // 2 :])


class Program(NamedTuple):
    """A module: its computations by name, each a list of instructions in order."""

    computations: dict[str, list[Instruction]]
    entry: str


class Executed(NamedTuple):
    """An instruction, how often a run of the program runs it, and the computation that it stands in."""

    instruction: Instruction
    times: int
    computation: str
    fusion: Instruction | None = None  # that it is part of


def instructions(text: str) -> dict[str, Instruction]:
    """Those of the entry computation by name, in order."""
    program = parse(text)
    return {instruction.name: instruction for instruction in program.computations[program.entry]}


def parse(text: str) -> Program:
    """All computations of a module's text."""
    lines: dict[str, list[tuple[str, str]]] = {}
    computation = entry = ""
    products = set()
    for line in text.splitlines():
        if begins := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            computation = begins[2]
            lines[computation] = []
            entry = computation if begins[1] else entry
        elif parsed := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)", line):
            lines[computation].append((parsed[1], parsed[2]))
            if " convolution(" in line or " dot(" in line:
                products.add(computation)
    own = {name: [_instruction(*line, products) for line in body] for name, body in lines.items()}
    return Program(own, entry)


def _instruction(name: str, rest: str, products: set[str]) -> Instruction:
    opcode = re.search(r"(?:^|\s)([a-z][\w\-]*)\(", rest)
    results, arguments = rest[: opcode.start()], rest[opcode.end() :]
    depth, end = 1, 0
    while depth:
        depth += {"(": 1, ")": -1}.get(arguments[end], 0)
        end += 1
    attributes = arguments[end:]
    found = SHAPE.findall(results)
    arrays = tuple(
        (max(1, int(bits) // 8), tuple(int(n) for n in shape.split(",") if n)) for _, bits, shape, _ in found
    )
    hbm = sum(size * math.prod(shape) for (size, shape), one in zip(arrays, found) if not ELSEWHERE.search(one[3]))
    cycles = re.search(r'"estimated_cycles":"(\d+)"', attributes)
    op_name = re.search(r'op_name="([^"]*)"', attributes)
    target = re.search(r'(?:custom_call_target|_xla_megascale_transfer_type)="([^"]*)"', attributes)
    channel = re.search(r"channel_id=(\d+)", attributes)
    calls = tuple(
        (how, called)
        for how, names, one in CALLS.findall(attributes)
        for called in re.findall(r"[\w.\-]+", names or one)
    )
    constant = re.match(r"(\d+)\)", arguments) if opcode[1] == "constant" else None
    return Instruction(
        opcode[1],
        (constant[1],) if constant else tuple(re.findall(r"%([\w.\-]+)", arguments[:end])),
        arrays,
        int(cycles[1]) if cycles else 0,
        op_name[1] if op_name else "",
        opcode[1] in ("convolution", "dot") or any(how == "calls" and c in products for how, c in calls),
        name,
        calls,
        target[1] if target else "",
        int(channel[1]) if channel else 0,
        _groups(attributes) if channel else (0, 0),
        hbm,
    )


def _groups(attributes: str) -> tuple[int, int]:
    """Size of the groups of a collective, and how far apart the numbers of the devices of one are.

    XLA writes groups as {{0,1},{2,3}}, as [2,2]<=[4] (transposed: <=[2,2]T(1,0)), or by axes of a mesh.
    """
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        numbers = [int(number) for number in listed[1].split(",")]
        return len(numbers), max(numbers) - min(numbers)
    if pairs := re.findall(r"(?<=[{,])\{(\d+),(\d+)\}", attributes.partition("source_target_pairs=")[2]):
        return 2, max(abs(int(a) - int(b)) for a, b in pairs)
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        size = int(iota[1].split(",")[-1])
        lengths = [int(n) for n in iota[2].split(",")]
        order = [int(n) for n in iota[3].split(",")] if iota[3] else list(range(len(lengths)))
        return size, _reach(lengths, order, size)
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = [(axis, int(n)) for axis, n in re.findall(r"'([^']+)'=(\d+)", mesh[1])]
        stride, size, reach = math.prod(n for _, n in sizes), 1, 0
        for axis, n in sizes:
            stride //= n
            if f"'{axis}'" in mesh[2]:
                size, reach = size * n, reach + (n - 1) * stride
        return size, reach
    return 0, 0


def _reach(lengths: list[int], order: list[int], size: int) -> int:
    """How far the first `size` numbers of a transposed count are apart."""
    strides = [math.prod(lengths[axis + 1 :]) for axis in range(len(lengths))]
    reach = 0
    for axis in reversed(order):
        taken = min(size, lengths[axis])
        reach, size = reach + (taken - 1) * strides[axis], max(1, size // taken)
    return reach


def executed(program: Program, computation: str | None = None, times: int = 1) -> Iterator[Executed]:
    """Every instruction that runs, outside fusions and inside of those that have no estimate of their own.

    A loop runs as often as the largest number in its condition says.
    """
    computation = computation or program.entry
    for instruction in program.computations.get(computation, ()):
        yield Executed(instruction, times, computation)
        calls = dict(instruction.calls)
        if instruction.opcode == "while":
            yield from executed(program, calls["body"], times * trips(program, calls["condition"]))
        elif instruction.opcode == "fusion" and not instruction.cycles and "calls" in calls:
            for inner in executed(program, calls["calls"], times):
                yield inner._replace(fusion=inner.fusion or instruction)
        elif instruction.opcode in ("call", "conditional", "async-start"):
            for how, called in instruction.calls:
                if how in ("calls", "to_apply", "branch_computations"):
                    yield from executed(program, called, times)


def trips(program: Program, condition: str) -> int:
    """How often a loop runs: the largest constant of its condition, 1 where there is none."""
    numbers = [
        int(i.operands[0]) for i in program.computations.get(condition, ()) if i.opcode == "constant" and i.operands
    ]
    return max(numbers, default=1)
