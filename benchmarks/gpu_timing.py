"""For pages about a GPU: columns of a row in turns, failures as rows, tables, and the search for tiles."""

import datetime
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels.attention import gpu, gpu_kernels
from kernels.attention.gpu_kernels import Tile

ROUNDS, BUSY = 7, 0.03  # rounds of a row; seconds of work enqueued at a time
SECONDS = 480  # after which no row begins, so that all ends within ten minutes
STARTED = time.monotonic()
FAILURES: list[str] = []  # columns that did not compile or run, and why


def guarded(what: str, rows: Callable[[], list[list[str]]]) -> list[list[str]]:
    """The rows, or one that says why there are none."""
    if time.monotonic() - STARTED > SECONDS:
        made = [[what, "not begun: out of time"]]
    else:
        try:
            made = rows()
        except Exception as error:  # noqa: BLE001 (a row that fails is part of the result)
            made = [[what, f"failed: {first_line(error)}"]]
    for row in made:
        print(" | ".join(row), flush=True)
    return made


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"


def working(name: str, function, args) -> dict[str, tuple[Any, tuple]]:
    """{name: (compiled function, arguments)}, empty where it does not compile or run."""
    try:
        compiled = function.lower(*args).compile()
        jax.block_until_ready(compiled(*args))
    except Exception as error:  # noqa: BLE001 (the other columns go on)
        FAILURES.append(f"{name}: {first_line(error)}")
        print(f"  {FAILURES[-1]}", flush=True)
        return {}
    return {name: (compiled, args)}


def interleaved(runs: dict[str, tuple[Any, tuple]]) -> dict[str, float]:
    """Milliseconds a call, the median of ROUNDS rounds in which each runs in turn."""
    counts = {name: max(1, int(BUSY / seconds(run, args, 2))) for name, (run, args) in runs.items()}
    times = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, (run, args) in runs.items():
            times[name].append(seconds(run, args, counts[name]))
    return {name: 1e3 * float(np.median(t)) for name, t in times.items()}


def seconds(run, args, count: int) -> float:
    """Mean of so many calls, one behind the other."""
    start = time.perf_counter()
    for _ in range(count):
        out = run(*args)
    jax.block_until_ready(out)
    return (time.perf_counter() - start) / count


def describe() -> str:
    """Date, chip and versions in a sentence."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    kind = jax.devices()[0].device_kind
    return f"Measured {datetime.date.today()} on one {kind} (driver {driver}, jax {jax.__version__})."


def table(columns: list[str], rows: list[list[str]]) -> str:
    filled = [row + [""] * (len(columns) - len(row)) for row in rows]
    lines = [columns, ["---"] * len(columns), *filled]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tune() -> int:
    """Compiles candidates for each kernel and head size at once, times them in turns, prints the five fastest."""
    B, T = 2, 8192
    kind = jax.devices()[0].device_kind
    for H in (128, 64, 256):
        N = 2048 // H
        keys = jax.random.split(jax.random.key(0), 4)
        q, k, v, dout = (jax.random.normal(key, (B, T, N, H), jnp.bfloat16) for key in keys)
        rows = jnp.full((B, N, T), 20.0), jnp.zeros((B, N, T))
        settings = gpu_kernels.Settings(H**-0.5, None, T, 1, exact=False, interpret=False)
        for kernel in (gpu_kernels.forward, gpu_kernels.query_gradient, gpu_kernels.key_gradient):
            arrays = (q, k, v) if kernel is gpu_kernels.forward else (q, dout, k, v, *rows)
            ms = interleaved(compiled(kernel, settings, candidates(kernel, H), arrays))
            for tile in sorted(ms, key=ms.__getitem__)[:5]:
                print(f"{kind}: head size {H}, {kernel.__name__}: Tile{tile} {ms[tile]:.3f} ms", flush=True)
    return 0


def compiled(kernel, settings, tiles: list[Tile], arrays) -> dict[str, tuple[Any, tuple]]:
    """Those of the tiles that compile and run, by name."""

    def one(tile: Tile) -> dict[str, tuple[Any, tuple]]:
        run = jax.jit(lambda *arrays: gpu._call(kernel, settings, tile, None, gpu.Masks(), *arrays))
        return working(str(tuple(tile)), run, arrays)

    with ThreadPoolExecutor(8) as pool:
        return {name: run for found in pool.map(one, tiles) for name, run in found.items()}


def candidates(kernel, H: int) -> list[Tile]:
    """A program's own block is of 64 at least, which Hopper's matrix instructions take; accumulators have to fit."""
    sizes = [(own, other) for own in (64, 128) for other in (32, 64, 128) if own * H <= 128 * 128]
    if kernel is gpu_kernels.key_gradient:
        sizes = [(other, own) for own, other in sizes]
    return [Tile(t, s, warps, stages) for t, s in sizes for warps in (4, 8) for stages in (2, 3)]
