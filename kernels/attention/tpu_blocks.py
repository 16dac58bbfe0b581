"""Sizes of blocks by chip: found by `benchmarks/attention_blocks.py`, at 4 heads a key/value head of size 128."""

from typing import NamedTuple

from kernels.attention.schedule import Blocks

LANES = 128
MOST_QUERIES = 512  # of a block: longer ones compute more behind the diagonal


class Sizes(NamedTuple):
    """At most so many queries of all heads of a block, G * t, and keys."""

    rows: int
    keys: int


class Kernels(NamedTuple):
    """The sizes of each kernel."""

    forward: Sizes
    query_gradient: Sizes
    key_gradient: Sizes


LARGE, SMALL = Sizes(2048, 512), Sizes(1024, 512)
OTHERS = Kernels(SMALL, SMALL, SMALL)
SIZES = {  # by JAX's device_kind
    "TPU v4": Kernels(LARGE, LARGE, SMALL),
    "TPU v5 lite": Kernels(LARGE, LARGE, SMALL),
    "TPU v5": Kernels(LARGE, LARGE, LARGE),
    "TPU v6 lite": Kernels(LARGE, LARGE, LARGE),
    "TPU7x": Kernels(LARGE, LARGE, LARGE),
}


class Cuts(NamedTuple):
    """How each kernel cuts rows that are padded to one length."""

    forward: Blocks
    query_gradient: Blocks
    key_gradient: Blocks


def cut(T: int, G: int, kind: str) -> Cuts:
    """Rows of T tokens in powers of two from 128 on, so that all sizes divide one padded length."""
    least = 1 << (max(T, LANES) - 1).bit_length()

    def fit(sizes: Sizes) -> tuple[int, int]:
        t = max(LANES, 1 << (sizes.rows // G).bit_length() - 1)
        return min(least, t, MOST_QUERIES), min(least, sizes.keys)

    fits = [fit(sizes) for sizes in SIZES.get(kind, OTHERS)]
    most = max(max(sizes) for sizes in fits)
    padded = -(-T // most) * most
    return Cuts(*(Blocks(t, s, padded // t, padded // s) for t, s in fits))
