"""What XLA:TPU made of a program: its instructions, with the compiler's own estimate of their cycles.

    program = instructions(compile_for_chip("v5e", function, *shapes).as_text())
    sum(instruction.cycles for instruction in program.values())

Estimates exist for what XLA compiles itself (fusions, copies, products), not for Pallas kernels.
"""

import re
from typing import NamedTuple

SHAPE = re.compile(r"\b([a-z]+)(\d+)\w*\[([\d,]*)\]")


class Instruction(NamedTuple):
    """One line of the entry computation."""

    opcode: str
    operands: tuple[str, ...]  # names
    arrays: tuple[tuple[int, tuple[int, ...]], ...]  # bytes an element and shape of every result
    cycles: int  # 0 where the compiler says nothing
    op_name: str  # what it was made from: "jit(f)/jvp(attention_forward)/pallas_call"
    multiplies: bool  # whether it holds a matrix product

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


def instructions(text: str) -> dict[str, Instruction]:
    """Those of the entry computation by name, in order."""
    found, products, computation, is_entry = {}, set(), "", False
    for line in text.splitlines():
        if begins := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            is_entry, computation = bool(begins[1]), begins[2]
        elif " convolution(" in line or " dot(" in line:
            products.add(computation)
        if is_entry and (parsed := re.match(r"\s+(?:ROOT )?%([\w.\-]+) = (.*)", line)):
            found[parsed[1]] = _instruction(parsed[2], products)
    return found


def _instruction(rest: str, products: set[str]) -> Instruction:
    opcode = re.search(r"(?:^|\s)([a-z][\w\-]*)\(", rest)
    results, arguments = rest[: opcode.start()], rest[opcode.end() :]
    depth, end = 1, 0
    while depth:
        depth += {"(": 1, ")": -1}.get(arguments[end], 0)
        end += 1
    attributes = arguments[end:]
    arrays = tuple(
        (max(1, int(bits) // 8), tuple(int(n) for n in shape.split(",") if n))
        for _, bits, shape in SHAPE.findall(results)
    )
    cycles = re.search(r'"estimated_cycles":"(\d+)"', attributes)
    op_name = re.search(r'op_name="([^"]*)"', attributes)
    called = re.search(r"calls=%?([\w.\-]+)", attributes)
    return Instruction(
        opcode[1],
        tuple(re.findall(r"%([\w.\-]+)", arguments[:end])),
        arrays,
        int(cycles[1]) if cycles else 0,
        op_name[1] if op_name else "",
        opcode[1] in ("convolution", "dot") or bool(called and called[1] in products),
    )
