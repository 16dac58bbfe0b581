"""What a few broken batches do to a run, by kind of clipping and with skipped steps.

    python benchmarks/spikes.py

A model of 10k parameters learns rows that count upwards; in three steps in a row every target is one and the same
token. The table has the loss before and after; settings are the defaults, of AdamW at a rate of 0.01.
"""

import dataclasses

import numpy as np

from data.config import BatchConfig
from data.pipeline import Batch
from model.config import ModelConfig
from optim.config import ClipConfig, OptimConfig, SkipConfig
from train.config import TrainConfig
from train.run import Run, make_program
from train.sharding import make_mesh

VOCABULARY, ROWS, LENGTH = 64, 4, 16
MODEL = ModelConfig(
    vocab_size=VOCABULARY, num_layers=2, d_model=32, num_heads=2, num_kv_heads=1, head_dim=16, d_ff=32
)
OPTIM = OptimConfig(learning_rate=1e-2, warmup_steps=10, decay_fraction=0.0)
RUN = Run(MODEL, BatchConfig(ROWS, LENGTH), OPTIM, TrainConfig(steps=200), seed=0)
BROKEN = (150, 151, 152)


def make_batch(seed: int, *, broken: bool = False) -> Batch:
    """Rows that count in steps of 1, 2 or 3; broken, what follows is always token 7."""
    random = np.random.default_rng(seed)
    starts, strides = random.integers(0, VOCABULARY, (ROWS, 1)), random.integers(1, 4, (ROWS, 1))
    tokens = ((starts + np.arange(LENGTH + 1) * strides) % VOCABULARY).astype(np.int32)
    ones = np.ones((ROWS, LENGTH), np.int32)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), ones.shape)
    targets = 7 * ones if broken else tokens[:, 1:]
    return Batch(tokens[:, :-1], targets, ones, positions, ones.astype(np.float32))


def measure(optim: OptimConfig) -> list[dict[str, float]]:
    """Metrics of every step."""
    run = dataclasses.replace(RUN, optim=optim)
    program, rows = make_program(run, make_mesh()), []
    state = program.init()
    for step in range(run.train.steps):
        state, metrics = program.step(state, make_batch(step, broken=step in BROKEN))
        rows.append({name: float(value) for name, value in metrics.items()})
    return rows


def main() -> None:
    """Prints the table."""
    kinds = {kind: {"clip": ClipConfig(kind)} for kind in ("none", "global_norm", "agc", "adagc", "zclip")}
    kinds["zclip, clip_norm 100"] = {"clip": ClipConfig("zclip"), "clip_norm": 100.0}
    kinds["global_norm, spikes skipped"] = {"skip": SkipConfig(spikes=True)}
    print("| clipping | loss before | 5 steps after | 40 steps after | clipped share | steps skipped |")
    print("|---|---|---|---|---|---|")
    for name, own in kinds.items():
        rows = measure(dataclasses.replace(OPTIM, **own))
        losses = np.array([row["loss"] for row in rows])
        first, after = BROKEN[0], BROKEN[-1] + 1
        means = [losses[first - 20 : first], losses[after : after + 5], losses[after : after + 40]]
        shown = " | ".join(f"{part.mean():.3f}" for part in means)
        share = np.mean([rows[step].get("clipped_share", 0.0) for step in BROKEN])
        print(f"| {name} | {shown} | {share:.2f} | {rows[-1]['skipped_steps']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
