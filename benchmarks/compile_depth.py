"""Time to trace, lower and compile the training step, by depth: layers are scanned, so it should not grow with them.

    python benchmarks/compile_depth.py [--rounds=3]

A fresh process for each, without a compilation cache, taking turns. Medians in seconds; ratios are of medians.
Seconds of CPU time, of all threads, move less with other work on the machine than those on the clock.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax

from data.config import BatchConfig
from data.pipeline import Batch
from model.presets import preset
from optim.config import OptimConfig
from train.config import TrainConfig
from train.run import Run, make_program
from train.sharding import make_mesh

DEPTHS = (8, 80)
PRESETS = ("monad", "baguettotron")  # their widths
REMAT = ("none", "full")
ROWS, LENGTH = 4, 256


def measure(preset_name: str, remat: str, depth: int) -> tuple[float, float]:
    """Seconds in this process, on the clock and of all its cores; imports are not counted."""
    model = dataclasses.replace(preset(preset_name), num_layers=depth, remat=remat)
    optim = OptimConfig(learning_rate=1e-3, warmup_steps=1, decay_fraction=0.0)
    jax.numpy.zeros(1).block_until_ready()  # the backend starts
    began, cpu = time.perf_counter(), time.process_time()
    program = make_program(Run(model, BatchConfig(ROWS, LENGTH), optim, TrainConfig(steps=10), 0), make_mesh())
    ids = jax.ShapeDtypeStruct((ROWS, LENGTH), "int32")
    batch = Batch(ids, ids, ids, ids, jax.ShapeDtypeStruct((ROWS, LENGTH), "float32"))
    program.step.lower(program.abstract, batch).compile()
    return time.perf_counter() - began, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, metavar=("PRESET", "REMAT", "DEPTH"), help="measure here, print seconds")
    arguments = parser.parse_args()
    if arguments.one:
        preset_name, remat, depth = arguments.one
        print(json.dumps(measure(preset_name, remat, int(depth))))
        return
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    few, many = DEPTHS
    print(f"| width of | remat | {few} layers, s | {many} layers, s | ratio ", end="")
    print(f"| {few} layers, CPU s | {many} layers, CPU s | ratio |\n" + "|---" * 8 + "|", flush=True)
    for preset_name in PRESETS:
        for remat in REMAT:
            found = {depth: [] for depth in DEPTHS}
            for depth in DEPTHS * arguments.rounds:
                command = [sys.executable, __file__, "--one", preset_name, remat, str(depth)]
                done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
                found[depth].append(json.loads(done.stdout))
            shown = [preset_name, remat]
            for kind in (0, 1):
                short, long = (statistics.median(one[kind] for one in found[depth]) for depth in DEPTHS)
                shown += [f"{short:.1f}", f"{long:.1f}", f"{long / short:.2f}"]
            print("| " + " | ".join(shown) + " |", flush=True)
    print(f"\nload {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
