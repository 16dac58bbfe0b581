"""Sizes of blocks by chip: found by `benchmarks/attention_blocks.py`, at 4 heads a key/value head of size 128."""

from typing import NamedTuple

from kernels.attention.schedule import Blocks, most_pairs
from kernels.dispatch import target
from kernels.tpu_chips import MIB, chip

LANES = 128
MOST_STEPS = 90_000  # 8 bytes each, of 1 MiB of scalar memory
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
    """How each kernel cuts queries that are padded to one length, and keys."""

    forward: Blocks
    query_gradient: Blocks
    key_gradient: Blocks


class Heads(NamedTuple):
    """What decides how large blocks may be."""

    G: int  # query heads a key/value head
    H: int
    itemsize: int


def cut(T: int, S: int, heads: Heads) -> Cuts:
    """T queries of a row of S tokens in powers of two from 128 on, so that all sizes divide one padded length.

    Keys are padded so far that the padded queries have theirs too, wherever in the row the stretch begins: then every
    query sees itself, and nothing infinite comes of those that are not there.
    """

    def least(length: int) -> int:
        return _power_of_two(max(length, LANES) * 2 - 1)

    def fit(sizes: Sizes) -> tuple[int, int]:
        t = min(least(T), max(LANES, _power_of_two(sizes.rows // heads.G)), MOST_QUERIES)
        return t, min(least(S), sizes.keys, max(LANES, _power_of_two(_most_pairs(heads) // (heads.G * t))))

    fits = [fit(sizes) for sizes in SIZES.get(target().kind, OTHERS)]
    most = max(max(sizes) for sizes in fits)
    queries = -(-T // most) * most
    keys = -(-(S - T + queries) // most) * most
    return Cuts(*(Blocks(t, s, queries // t, keys // s) for t, s in fits))


def refusal(T: int, S: int, heads: Heads) -> str | None:
    """Why even the smallest blocks do not fit, as the end of a sentence."""
    G, H, itemsize = heads
    X = G * LANES
    blocks = (6 * X + 4 * LANES) * H * itemsize  # queries, their gradients, keys and values come and go twice over
    kept = X * H * 4 + X * LANES * 4 + (12 * (X + LANES) * H if itemsize == 4 else 0)
    if blocks + kept > vmem_bytes():
        return (
            f"takes fewer than {G} query heads of size {H} a key/value head within {vmem_bytes() // MIB} MiB of VMEM"
        )
    if pairs_of_blocks(T, S, heads) > MOST_STEPS:
        return f"takes shorter rows than {S:,} tokens"
    return None


def pairs_of_blocks(T: int, S: int, heads: Heads) -> int:
    """Steps that a row may have."""
    if T < S:
        return max(most_pairs(blocks, stretch=True) for blocks in cut(T, S, heads))
    return max(blocks.I * blocks.J // 2 + max(blocks.I, blocks.J) for blocks in cut(T, S, heads))


def vmem_bytes() -> int:
    """That a kernel may ask for."""
    return min(64 * MIB, chip().vmem_bytes)


def _most_pairs(heads: Heads) -> int:
    """Logits of a block: the more VMEM, the more; the wider the heads, the fewer."""
    return vmem_bytes() // 16 * 256 // max(256, heads.H * heads.itemsize)


def _power_of_two(n: int) -> int:
    """The largest up to n, at least 1."""
    return 1 << max(n, 1).bit_length() - 1
