"""Block sizes of the TPU's attention kernels, chosen by the compiler's final schedules: no TPU is needed.

    python benchmarks/attention_blocks.py [--chips=v5e,v6e] [--heads=128] [--length=8192]

Compiles each kernel with every candidate (queries of all heads a block, keys a block) and predicts cycles of a row:
bundles of a step, with and without a mask, of a step's own book-keeping and of a block's beginning and end, times how
often each happens; for one document a row and for packed ones, equally. Memory traffic is not in it; it overlaps with
the computation. Prints the best of each, to be copied into `kernels/attention/tpu_blocks.py`.
"""

import argparse
import functools
import itertools
import math
import sys

import jax
import numpy as np
from attention_static import documents
from kernel_compiles import vmem

from core.progress import say
from kernels.attention import tpu, tpu_kernels
from kernels.attention.schedule import Blocks, by_key, by_query
from kernels.attention.tpu_blocks import Cuts
from scaling import bundles
from scaling.topology import CHIPS, compile_for_chip

ROWS, KEYS = (1024, 2048), (256, 512, 1024)
STEP = 250  # bundles of a step around its kernel: which blocks are next, their copies
G, T_COMPILED = 4, 4096


def compile_kernel(kernel, chip: str, blocks: Blocks, H: int, folder) -> bundles.Schedule | None:
    """One kernel alone; None where it does not fit."""
    T = blocks.t * blocks.I
    settings = tpu_kernels.Settings(H**-0.5, None, None, Cuts(*[blocks] * 3), T, vmem(chip) << 20, False)
    shapes = {"queries": (1, 1, G, T, H), "keys": (1, 1, T, H), "rows": (1, 1, G, T)}
    arrays = [
        jax.ShapeDtypeStruct(shapes[kind], "float32" if kind == "rows" else "bfloat16")
        for kind in tpu_kernels.KINDS[kernel][0]
    ]
    run = lambda ids, *arrays: tpu._call(kernel, settings, tpu_kernels.Masks(ids), *arrays)  # noqa: E731
    try:
        compile_for_chip(chip, run, jax.ShapeDtypeStruct((1, T), "int32"), *arrays)
    except jax.errors.JaxRuntimeError as error:
        if "vmem" not in str(error).lower():
            raise
        return None
    finally:
        found = bundles.read(folder)
    return next(schedule for name, schedule in found.items() if "attention" in name)


def cycles(kernel, schedule: bundles.Schedule, blocks: Blocks, ids) -> float:
    """Predicted for one row and one key/value head."""
    plain, masked = schedule.products
    listed = (by_query if tpu_kernels.STAYS[kernel] == "queries" else by_key)(blocks, 1, ids, None)
    hidden = int((np.asarray(listed.moves_P)[: int(listed.count)] & 1).sum())
    staying = blocks.I if tpu_kernels.STAYS[kernel] == "queries" else blocks.J
    rest = (schedule.total - plain - masked) / 2  # of the beginning and end of a block, which exist twice
    count = int(listed.count)
    return (count - hidden) * plain + hidden * masked + count * STEP + staying * rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", default=",".join(CHIPS))
    parser.add_argument("--heads", default="64,128,256", help="head sizes")
    parser.add_argument("--length", type=int, default=8192)
    options = parser.parse_args()
    folder = bundles.listen()
    jax.config.update("jax_enable_compilation_cache", False)
    rows = documents(options.length).values()
    print("| chip | head size | kernel | rows x keys | bundles a step, masked | cycles a token |")
    print("|---" * 6 + "|", flush=True)
    for chip, H, kernel in itertools.product(
        options.chips.split(","), map(int, options.heads.split(",")), tpu_kernels.KINDS
    ):
        found = []
        for X, s in itertools.product(ROWS, KEYS):
            sized = functools.partial(Blocks, X // G, s)
            schedule = compile_kernel(kernel, chip, sized(T_COMPILED * G // X, T_COMPILED // s), H, folder)
            if schedule is None or len(schedule.products) != 2:
                say(f"{chip} {H} {kernel.__name__} {X} x {s}: {schedule or 'does not fit'}")
                continue
            whole = sized(options.length * G // X, options.length // s)
            per_token = sum(cycles(kernel, schedule, whole, ids) for ids in rows) / (2 * options.length)
            found.append((per_token, X, s, schedule.products))
            say(f"{chip} {H} {kernel.__name__} {X} x {s}: {schedule.products} {per_token:,.1f}")
        per_token, X, s, (plain, masked) = min(found, default=(math.nan, 0, 0, (0, 0)))
        shown = [chip, H, kernel.__name__, f"{X} x {s}", f"{plain:,}, {masked:,}", f"{per_token:,.1f}"]
        print("| " + " | ".join(map(str, shown)) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
