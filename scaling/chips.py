"""Accelerators that a run may be planned for, by what decides its time and memory.

Figures are those of one device as JAX counts them: a chip, half a chip of TPU7x. They are the makers' own
(cloud.google.com/tpu/docs, NVIDIA's data sheets); memory that a program may use is what the compiler of libtpu 0.0.51
says when one does not fit, on a GPU what XLA takes by default (XLA_PYTHON_CLIENT_MEM_FRACTION). Of the link to its
host a TPU's maker says no more than that v6e has PCIe of the fifth generation: for all of them it is an assumption,
16 lanes of the third generation a chip, of v6e and TPU7x twice that. GPUs have 16 lanes of the fourth or fifth.
"""

import math
import re
from typing import NamedTuple

from core.errors import UserError, suggest

GB, GIB = 1e9, 1 << 30


class Chip(NamedTuple):
    """One device."""

    name: str
    kind: str  # JAX's device_kind; of GPUs how it begins
    flops: float  # a second, dense bfloat16
    hbm: float  # bytes
    usable: float  # bytes of it that a program may have
    bandwidth: float  # bytes a second, of that memory
    ici: float  # bytes a second to other chips of a slice, one way, all links (GPU: NVLink)
    dcn: float  # bytes a second to other slices (GPU: to other hosts)
    per_host: int  # devices
    host_link: float  # bytes a second to the memory of its host, one way
    clock: float = 0.0  # cycles a second of the tensor core; 0 where nothing counts them
    per_chip: int = 1  # devices
    axes: int = 0  # of a topology's name; 0 is a number of GPUs
    most: int = 1 << 20  # chips of a slice

    @property
    def is_tpu(self) -> bool:
        """Whether XLA:TPU compiles for it."""
        return self.axes > 0


CHIPS = {
    "v4": Chip("TPU v4", "TPU v4", 275e12, 32 * GIB, 30.75 * GIB, 1228e9, 270e9, 6.25e9, 4, 16e9, 1.05e9, 1, 3, 4096),
    "v5e": Chip(
        "TPU v5e", "TPU v5 lite", 197e12, 16 * GIB, 15.75 * GIB, 819e9, 180e9, 3.125e9, 4, 16e9, 1.5e9, 1, 2, 256
    ),
    "v5p": Chip(
        "TPU v5p", "TPU v5", 459e12, 96 * GIB, 95.73 * GIB, 2765e9, 540e9, 6.25e9, 4, 16e9, 1.75e9, 1, 3, 6144
    ),
    "v6e": Chip(
        "TPU v6e", "TPU v6 lite", 918e12, 32 * GIB, 31.24 * GIB, 1640e9, 360e9, 12.5e9, 4, 32e9, 1.75e9, 1, 2, 256
    ),
    "tpu7x": Chip("TPU7x", "TPU7x", 1153e12, 96 * GIB, 94.74 * GIB, 3690e9, 300e9, 6.25e9, 8, 16e9, 0.0, 2, 3, 9216),
    "a100": Chip("A100 80GB", "NVIDIA A100", 312e12, 80 * GIB, 60 * GIB, 2039e9, 300e9, 25e9, 8, 32e9),
    "h100": Chip("H100 SXM", "NVIDIA H100", 989e12, 80 * GIB, 60 * GIB, 3350e9, 450e9, 50e9, 8, 64e9),
    "h200": Chip("H200 SXM", "NVIDIA H200", 989e12, 141 * GB, 0.75 * 141 * GB, 4800e9, 450e9, 50e9, 8, 64e9),
    "b200": Chip("B200", "NVIDIA B200", 2250e12, 180 * GB, 0.75 * 180 * GB, 7700e9, 900e9, 50e9, 8, 64e9),
}
EXAMPLES = (
    "v5e:16x16",
    "v5p:4x4x4",
    "v6e:16x16",
    "v4:4x4x4",
    "tpu7x:4x4x4",
    "h100:64",
    "a100:64",
    "h200:8",
    "b200:8",
)


class Topology(NamedTuple):
    """Devices that a run is planned for."""

    name: str  # v5e:16x16
    chip: Chip
    slices: int
    devices_per_slice: int

    @property
    def devices(self) -> int:
        """Of all slices, as JAX counts them."""
        return self.slices * self.devices_per_slice

    @property
    def chips(self) -> int:
        """Of all slices, as they are rented."""
        return self.devices // self.chip.per_chip

    @property
    def hosts(self) -> int:
        """Computers that hold them."""
        return max(1, self.devices // self.chip.per_host)


def parse_topology(name: str | None, slices: int = 1) -> Topology:
    """What `--topology` and `--slices` name."""
    known = f"for example {', '.join(EXAMPLES)}"
    if not name:
        raise UserError(f"plan needs --topology=KIND:SHAPE, {known}")
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise UserError(f"topology {name} is of no known kind{suggest(kind, CHIPS)}; {known}")
    chip = CHIPS[kind]
    form = "KIND:" + "x".join("ABC"[: chip.axes]) if chip.is_tpu else "KIND:NUMBER"
    sizes = [int(size) for size in shape.split("x")] if re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5})*", shape) else []
    if len(sizes) != (chip.axes or 1):
        raise UserError(f"topology {name} is not of the form {form.replace('KIND', kind)}; {known}")
    if chip.is_tpu and not _is_built(chip, sizes):
        raise UserError(f"topology {name} is none that {chip.name} has: {_built(chip)}")
    if slices > 1 and not chip.is_tpu:
        raise UserError(f"--slices={slices} is for TPUs; {name} names all GPUs")
    return Topology(name, chip, slices, math.prod(sizes) * chip.per_chip)


FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")  # slices of chips in a plane
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")  # smaller than a cube of 4 x 4 x 4, of which larger slices are made


def _is_built(chip: Chip, sizes: list[int]) -> bool:
    """Whether there is such a slice."""
    shape = "x".join(map(str, sizes))
    if chip.axes == 2:
        return shape in FLAT
    return shape in CUBES or (math.prod(sizes) <= chip.most and not any(size % 4 for size in sizes))


def _built(chip: Chip) -> str:
    """The slices that there are, for messages."""
    if chip.axes == 2:
        return ", ".join(FLAT)
    return f"{', '.join(CUBES)}, or AxBxC of multiples of 4 up to {chip.most:,} chips"


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a device that is here, by JAX's device_kind."""
    known = {chip.kind: chip for chip in CHIPS.values()}
    exact = known.get(device_kind)
    return exact or next(
        (chip for kind, chip in known.items() if "NVIDIA" in kind and device_kind.startswith(kind)), None
    )
