"""What holds attention logits that blow up: each variant of experiments/logit_control.py on five seeds, as a table.

    PYTHONPATH=. python benchmarks/logit_control.py [--seeds=5] [--steps=200] [VARIANT ...]
    PYTHONPATH=. python benchmarks/logit_control.py --treatments

The task is to repeat sixteen random tokens of 32, which only attention can do. Numbers: the loss of the last 30 steps
(mean, least and greatest over seeds; a guess costs ln 32 = 3.47), the largest logit of any step, of the last step
(mean), heads clipped a step (of 8), and of those that were scaled, how many were below the threshold. The second
command compares QK-Clip's treatments of heads that share a key, run by run, at three rates and two thresholds.
"""

import argparse
import dataclasses
import importlib
import itertools
from pathlib import Path

import jax
import numpy as np

import launch
from core.config import load_experiment, parse_parts
from data.pipeline import Batch
from experiments.logit_control import VARIANTS
from model import transformer
from optim.build import build
from optim.qk_clip import split_factors
from train import state
from train.run import Run, make_program
from train.sharding import make_mesh

EXPERIMENT = Path(__file__).parent.parent / "experiments" / "logit_control.py"
VOCABULARY, HALF = 32, 16
TREATMENTS = ("query", "group")


def main() -> None:
    """One row a variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=f"of {', '.join(VARIANTS)} (all)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--treatments", action="store_true", help="optim.qk_clip.treatment: query beside group")
    arguments = parser.parse_args()
    if arguments.treatments:
        return treatments(arguments.steps, range(arguments.seeds))
    print("| variant | loss | least .. greatest | largest logit | at the end | clipped a step | innocent |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.variants or VARIANTS:
        print(row(name, train(VARIANTS[name], arguments.steps, range(arguments.seeds))), flush=True)


def treatments(steps: int, seeds: range) -> None:
    """One row a rate of queries and keys (in parts of all else's) and threshold."""
    print("| rate | threshold | query, loss | group, loss | query is lower in | query, innocent | group, innocent |")
    print("|---|---|---|---|---|---|---|")
    for rate, threshold in itertools.product(("5", "10", "20"), ("20", "50")):
        setting = {"optim.groups.heads.multiplier": rate, "optim.qk_clip.threshold": threshold}
        runs = {way: train({**setting, "optim.qk_clip.treatment": way}, steps, seeds) for way in TREATMENTS}
        query_S, group_S = (runs[way]["loss"][:, -30:].mean(1) for way in TREATMENTS)
        query, group = (f"{runs[way]['innocent'].mean():.2f}" for way in TREATMENTS)
        print(
            f"| {rate} | {threshold} | {query_S.mean():.3f} | {group_S.mean():.3f} | {(query_S < group_S).sum()} of "
            f"{len(seeds)} | {query} | {group} |",
            flush=True,
        )


def copies(seed: int, steps: int) -> Batch:
    """Sixteen rows a step, of random tokens and the same once more, which is what is predicted: [steps, B, T]."""
    half = np.random.default_rng(seed).integers(0, VOCABULARY, (steps, 16, HALF)).astype(np.int32)
    tokens = np.concatenate([half, half, half[..., :1]], axis=-1)
    places = np.broadcast_to(np.arange(2 * HALF, dtype=np.int32), (steps, 16, 2 * HALF))
    weights = (places >= HALF - 1).astype(np.float32)
    return Batch(tokens[..., :-1], tokens[..., 1:], np.ones_like(places), places, weights)


def train(overrides: dict[str, str], steps: int, seeds: range) -> dict[str, np.ndarray]:
    """Metrics [seeds, steps, ...] of the true step."""
    tree = load_experiment(EXPERIMENT, {"train.steps": str(steps), **overrides}, groups=launch.PARTS)
    parts = parse_parts(
        {n: getattr(importlib.import_module(room), cls) for n, (room, cls) in launch.PARTS.items()}, tree
    )
    own = {name: parts[name] for name in ("batch", "objective", "optim", "train", "seed")}
    run = Run(dataclasses.replace(parts["model"], vocab_size=VOCABULARY), **own)
    program, optimizer = make_program(run, make_mesh()), build(run.optim, run.steps)[0]
    whole = jax.jit(lambda first, batches: jax.lax.scan(program.step, first, batches)[1])
    found = [
        jax.device_get(whole(state.begin(transformer.init(run.model, seed), optimizer), copies(seed, steps)))
        for seed in seeds
    ]
    metrics = {name: np.array([one[name] for one in found]) for name in found[0]}
    if run.optim.qk_clip.threshold and not run.optim.adaptive.slack:
        metrics["innocent"] = innocent(metrics["max_logit_LN"], run)
    return metrics


def innocent(logits_SSLN: np.ndarray, run: Run) -> np.ndarray:
    """Heads a step that were scaled, their query or their key, without having been above the threshold."""
    config, G = run.optim.qk_clip, run.model.num_heads // run.model.num_kv_heads
    over = logits_SSLN > config.threshold
    factor_XN = np.where(over, config.threshold / logits_SSLN, 1.0).reshape(-1, run.model.num_heads)
    query_XN, key_XK = split_factors(factor_XN, run.model.num_kv_heads, config.treatment, config.alpha)
    scaled_XN = (np.asarray(query_XN) < 1) | (np.repeat(np.asarray(key_XK), G, axis=1) < 1)
    return (scaled_XN.reshape(over.shape) & ~over).sum((-1, -2))


def row(name: str, metrics: dict[str, np.ndarray]) -> str:
    """Of the table."""
    loss = metrics["loss"][:, -30:].mean(1)
    largest = metrics["max_logit"]
    clipped = f"{metrics['qk_clipped_heads'].mean():.2f}" if "qk_clipped_heads" in metrics else "-"
    wronged = f"{metrics['innocent'].mean():.2f}" if "innocent" in metrics else "-"
    spread = f"{loss.min():.3f} .. {loss.max():.3f}"
    return (
        f"| {name} | {loss.mean():.3f} | {spread} | {largest.max():,.0f} | {largest[:, -1].mean():,.0f} | "
        f"{clipped} | {wronged} |"
    )


if __name__ == "__main__":
    main()
