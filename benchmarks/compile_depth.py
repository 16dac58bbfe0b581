"""Time to trace, lower and compile the training step, by depth: layers are scanned, so it should not grow with them.

    python benchmarks/compile_depth.py [--rounds=3]

A fresh process for each, without a compilation cache, taking turns. Medians in seconds; the ratio is of medians.
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
PRESETS = ("monad", "baguettotron", "smollm3-3b")  # their widths
REMAT = ("none", "full")
ROWS, LENGTH = 4, 256


def measure(preset_name: str, remat: str, depth: int) -> float:
    """Seconds in this process, imports not counted."""
    model = dataclasses.replace(preset(preset_name), num_layers=depth, remat=remat)
    optim = OptimConfig(learning_rate=1e-3, warmup_steps=1, decay_fraction=0.0)
    jax.numpy.zeros(1).block_until_ready()  # the backend starts
    began = time.perf_counter()
    program = make_program(Run(model, BatchConfig(ROWS, LENGTH), optim, TrainConfig(steps=10), 0), make_mesh())
    ids = jax.ShapeDtypeStruct((ROWS, LENGTH), "int32")
    batch = Batch(ids, ids, ids, ids, jax.ShapeDtypeStruct((ROWS, LENGTH), "float32"))
    program.step.lower(program.abstract, batch).compile()
    return time.perf_counter() - began


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
    print(f"| width of | remat | {few} layers, s | {many} layers, s | ratio |\n" + "|---" * 5 + "|", flush=True)
    for preset_name in PRESETS:
        for remat in REMAT:
            found = {depth: [] for depth in DEPTHS}
            for depth in DEPTHS * arguments.rounds:
                command = [sys.executable, __file__, "--one", preset_name, remat, str(depth)]
                done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
                found[depth].append(json.loads(done.stdout))
            short, long = (statistics.median(found[depth]) for depth in DEPTHS)
            print(f"| {preset_name} | {remat} | {short:.1f} | {long:.1f} | {long / short:.2f} |", flush=True)
    print(f"\nload {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
