"""Sizes of blocks by chip: found by `benchmarks/attention_blocks.py`, at 4 heads a key/value head of size 128."""

from typing import NamedTuple

from kernels.attention.schedule import Blocks

LANES = 128
MIB = 1 << 20
MOST_QUERIES = 512  # of a block: longer ones compute more behind the diagonal


class Sizes(NamedTuple):
    """At most so many queries of all heads of a block, G * t, and keys."""

    rows: int
    keys: int


class Chip(NamedTuple):
    """What a kernel may use of a chip."""

    vmem_bytes: int  # of all that the chip has, or of as much as is ever needed
    forward: Sizes
    query_gradient: Sizes
    key_gradient: Sizes


LARGE, SMALL = Sizes(2048, 512), Sizes(1024, 512)
DEFAULT = Chip(16 * MIB, SMALL, SMALL, SMALL)
CHIPS = {  # by JAX's device_kind
    "TPU v4": Chip(16 * MIB, LARGE, LARGE, SMALL),
    "TPU v5 lite": Chip(64 * MIB, LARGE, LARGE, SMALL),
    "TPU v5": Chip(64 * MIB, LARGE, LARGE, LARGE),
    "TPU v6 lite": Chip(64 * MIB, LARGE, LARGE, LARGE),
    "TPU7x": Chip(64 * MIB, LARGE, LARGE, LARGE),
}


class Cuts(NamedTuple):
    """How each kernel cuts rows that are padded to one length."""

    forward: Blocks
    query_gradient: Blocks
    key_gradient: Blocks


def cut(T: int, G: int, chip: Chip) -> Cuts:
    """Rows of T tokens in powers of two from 128 on, so that all sizes divide one padded length."""
    least = 1 << (max(T, LANES) - 1).bit_length()

    def fit(sizes: Sizes) -> tuple[int, int]:
        t = max(LANES, 1 << (sizes.rows // G).bit_length() - 1)
        return min(least, t, MOST_QUERIES), min(least, sizes.keys)

    fits = [fit(sizes) for sizes in (chip.forward, chip.query_gradient, chip.key_gradient)]
    most = max(max(sizes) for sizes in fits)
    padded = -(-T // most) * most
    return Cuts(*(Blocks(t, s, padded // t, padded // s) for t, s in fits))
