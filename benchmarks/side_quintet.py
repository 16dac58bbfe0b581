"""Our side of cpu_throughput.py: the true train step on random tokens."""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import numpy as np

from data.config import BatchConfig
from data.pipeline import Batch
from model.config import ModelConfig
from optim.config import OptimConfig
from train.config import TrainConfig
from train.run import Run, make_program
from train.sharding import make_mesh


def main() -> None:
    given = json.loads(sys.argv[1])
    model, batch_config = ModelConfig(**given["model"]), BatchConfig(**given["batch"])
    optim = OptimConfig(learning_rate=1e-3, warmup_steps=1, decay_fraction=0.0)
    program = make_program(Run(model, batch_config, optim, TrainConfig(steps=10**6), 0), make_mesh())
    shape = (batch_config.rows, batch_config.row_length)
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (shape[0], shape[1] + 1)).astype(np.int32)
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], np.ones(shape, np.int32), positions, np.ones(shape, np.float32))

    state = program.init()
    for _ in range(2):
        state, metrics = program.step(state, batch)
    jax.block_until_ready(metrics)
    say = {"parameters": model.num_parameters, "versions": f"jax {jax.__version__}"}
    print(json.dumps(say), flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            state, metrics = program.step(state, batch)
        jax.block_until_ready(metrics)
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    main()
