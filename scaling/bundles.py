"""What a TPU kernel costs by the compiler's final schedule: bundles of instructions, about a cycle each.

    folder = bundles.listen()                  # before anything is compiled for a TPU in this process
    compile_for_chip("v5e", function, *shapes)
    bundles.read(folder)["attention_forward"].products

The compiler estimates cycles of its own fusions, not of kernels; this is as near as one comes without a chip. What a
step waits for (memory, other cores) is not in it.
"""

import os
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

LINE = re.compile(r"^\s*0x[0-9a-f]+\s*(LH|LB|LE|PB|PF|CT)?\s*:\s*>*\s*\{(.*)")
NAME = re.compile(r"^\d+-(.+?)(\.\d+)?-\d+-final_bundles\.txt$")
LEAST_PRODUCTS = 8  # instructions of the matrix unit in a stretch that counts as products


class Schedule(NamedTuple):
    """Bundles of a kernel."""

    total: int
    products: tuple[int, ...]  # of each stretch without a branch that multiplies matrices, in order


def listen() -> Path:
    """Has the compiler write its schedules into a new folder from now on."""
    folder = Path(tempfile.mkdtemp(prefix="bundles-"))
    flags = [f"to={folder}", "llo_text=true", "llo_pass_label_regex=final_bundles"]
    os.environ["LIBTPU_INIT_ARGS"] = " ".join(f"--xla_jf_dump_{flag}" for flag in flags)
    return folder


def read(folder: Path) -> dict[str, Schedule]:
    """The schedules written since the last call, by the names of kernels; removes the files."""
    found = {}
    for path in sorted(folder.iterdir()):
        if name := NAME.match(path.name):
            found[name[1]] = _parse(path.read_text())
        path.unlink()
    return found


def _parse(text: str) -> Schedule:
    total, stretches = 0, [[0, 0]]  # bundles and products of each
    for line in text.splitlines():
        found = LINE.match(line)
        if found is None:
            continue
        if found[1]:  # something jumps here
            stretches.append([0, 0])
        total += 1
        stretches[-1][0] += 1
        stretches[-1][1] += len(re.findall(r"\bvmatmul", found[2]))
        if "sbr.rel" in found[2]:
            stretches.append([0, 0])
    return Schedule(total, tuple(bundles for bundles, products in stretches if products >= LEAST_PRODUCTS))
