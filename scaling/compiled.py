"""A train step compiled for devices that are not here, with all that the compiler tells of it.

    result = compile_lowered(topology.lower_step(run, "v5e:16x16"), "plan")
    result.memory, result.text, result.buffers

The optimised program comes from the compiler's own dump: `Compiled.as_text()` of JAX 0.10.2 fails on what XLA:TPU
makes for chips that have SparseCores, such as v5p and v6e. The dump also names the buffers of a program that does not
fit.
"""

import contextlib
import gzip
import importlib.metadata
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from core.files import atomic_write, fingerprint
from core.progress import duration, say

NAMED_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = .*?op_name=\"([^\"]*)\"", re.MULTILINE)  # instruction, op_name
SPEAKS_EVERY = 20.0  # seconds


class Buffer(NamedTuple):
    """A stretch of temporary memory, by the largest value that ever lies there."""

    bytes: int
    shape: str  # bf16[36,4096,11008]
    op_name: str  # what the value was made from


class Memory(NamedTuple):
    """Bytes of one device."""

    arguments: int  # the state, and the batch
    temporaries: int
    code: int
    host_arguments: int  # in the memory of the host

    @property
    def total(self) -> int:
        """Results take the places of arguments, which are donated."""
        return self.arguments + self.temporaries + self.code


class Compilation(NamedTuple):
    """What came of it."""

    seconds: float
    memory: Memory | None  # None where it does not fit
    needs: float | None  # bytes, where it does not fit
    buffers: tuple[Buffer, ...]  # the largest temporaries
    text: str  # the optimised program; empty where the compiler gave none


def program_key(lowered: jax.stages.Lowered, topology: str, slices: int, options: Mapping[str, Any]) -> str:
    """Of what decides the result of compiling; `options` are the compiler's, of which the program says nothing."""
    versions = {name: importlib.metadata.version(name) for name in ("jaxlib", "libtpu")}
    return fingerprint([lowered.as_text(), topology, slices, dict(options), versions])


def compile_lowered(lowered: jax.stages.Lowered, label: str) -> Compilation:
    """Compiles, and says on the way how long it takes."""
    with tempfile.TemporaryDirectory(prefix="quintet-plan-") as folder:
        began = time.monotonic()
        compiled = needs = None
        with elapsed(label):
            try:
                compiled = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
            except jax.errors.JaxRuntimeError as error:
                needs = needed(str(error))
                if needs is None:
                    raise
        seconds = time.monotonic() - began
        text, buffers = dumped(Path(folder))
    return Compilation(seconds, _memory(compiled) if compiled else None, needs, buffers, text)


def needed(message: str) -> float | None:
    """Bytes that a program wants, from XLA's words when it does not fit."""
    said = re.search(r"\((\d+(?:\.\d+)?)([KMGT])\) exceeds available HBM", message)
    return float(said[1]) * 1024 ** (" KMGT".index(said[2])) if said else None


def _memory(compiled: jax.stages.Compiled) -> Memory:
    stats: Any = compiled.memory_analysis()
    parts = ("argument", "temp", "generated_code", "host_argument")
    return Memory(*(int(getattr(stats, f"{part}_size_in_bytes")) for part in parts))


def dumped(folder: Path) -> tuple[str, tuple[Buffer, ...]]:
    """The program and its largest temporaries, from the files of the largest module."""

    def read(ending: str) -> str:
        files = sorted(folder.glob(f"*{ending}"), key=lambda path: path.stat().st_size)
        return files[-1].read_text(errors="replace") if files else ""

    text = read(".after_codegen.txt")
    names = dict(NAMED_LINE.findall(text or read(".after_optimizations.txt")))
    return text, largest_buffers(read("-buffer-assignment.txt"), names)


def largest_buffers(assignment: str, op_names: dict[str, str], most: int = 12) -> tuple[Buffer, ...]:
    """The largest stretches of temporary HBM, from XLA's buffer assignment; none of them overlap."""
    values = []
    for allocation in re.split(r"^allocation ", assignment, flags=re.MULTILINE):
        first = allocation.partition("\n")[0]
        if "preallocated-temp" not in first or "color" in first:  # colours are other memories than HBM
            continue
        found = re.findall(
            r"value: <\d+ ([\w.\-]+)\S* @\d+> \(size=(\d+),offset=(\d+)\): (\w+\[[\d,]*\])", allocation
        )
        values += [(int(size), int(offset), shape, op_names.get(name, name)) for name, size, offset, shape in found]
    taken: list[tuple[int, int]] = []
    buffers = []
    for size, offset, shape, name in sorted(values, reverse=True):
        if len(buffers) == most:
            break
        if all(offset + size <= begin or offset >= end for begin, end in taken):
            taken.append((offset, offset + size))
            buffers.append(Buffer(size, shape, name))
    return tuple(buffers)


@contextlib.contextmanager
def elapsed(label: str) -> Iterator[None]:
    """Says every now and then how long what is inside has taken: a compiler does not tell how far it is."""
    done, began = threading.Event(), time.monotonic()

    def watch() -> None:
        while not done.wait(SPEAKS_EVERY):
            say(f"{label}: {duration(time.monotonic() - began)} so far")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    say(f"{label}: done in {duration(time.monotonic() - began)}")


def write_text(path: Path, text: str) -> None:
    """A program beside its figures, compressed: it has megabytes."""
    with atomic_write(path) as file:
        file.write(gzip.compress(text.encode(), 6, mtime=0))


def read_text(path: Path) -> str:
    """One that was written."""
    return gzip.decompress(path.read_bytes()).decode()
