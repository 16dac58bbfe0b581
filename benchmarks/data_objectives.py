"""What rearranged documents and left-out repetitions cost the pipeline, and how many tokens repetitions are.

    python benchmarks/data_objectives.py --workdir=runs/quickstart [--rows=32] [--row_length=4096] [--turns=40]

Batches of a workdir's token shards by `batch(k)`, one after the other in one thread, each kind in its turn; M tokens
a second of process time over all turns, padding counted and reading windows of documents included. The ratio is that
to plain batches, with the 95% interval of turns drawn again. The share of targets that are left out is of the same
batches, with the numbers of the default config.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from core.progress import track
from data.config import BatchConfig
from data.corpus import Corpus
from data.history import ask
from data.infill import FillInTheMiddle
from data.pipeline import Batches
from data.plan import Plan
from data.repeats import Repeats
from data.shards import TokenShards
from data.tokenize import open_split

INFILL = FillInTheMiddle(seed=0, rate=0.5, spm_rate=0.5, prefix=0, suffix=1, middle=2, begin=1, end=1)
SPANS, ROWS = Repeats(1, 13, 32), Repeats(1, 13, 32, whole_rows=True)
KINDS = {
    "plain": (None, None),
    "filled in the middle, rate 0.5": (INFILL, None),
    "repetitions left out": (None, SPANS),
    "both": (INFILL, SPANS),
}


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/quickstart"))
    for name, number in (("rows", 32), ("row_length", 4096), ("turns", 40)):
        parser.add_argument(f"--{name}", type=int, default=number)
    given = parser.parse_args()
    shards, shape = open_split(given.workdir, "train"), BatchConfig(rows=given.rows, row_length=given.row_length)
    sides = {name: make_batches(shards, shape, given.turns, *kind) for name, kind in KINDS.items()}
    seconds = {name: [] for name in sides}
    for k in track(range(given.turns), "batches", given.turns):
        for name, batches in sides.items():
            began = time.process_time()
            batches.batch(k)
            seconds[name].append(time.process_time() - began)
    print_rates(seconds, given.rows * given.row_length)
    print_shares(sides["plain"], given.turns)


def make_batches(
    shards: TokenShards, shape: BatchConfig, steps: int, infill: FillInTheMiddle | None, repeats: Repeats | None
) -> Batches:
    """Of one kind, from the beginning of a run."""
    corpus = Corpus(shards, 0, infill)
    return Batches(Plan((ask(shape, steps, corpus.generations),), corpus, 0), repeats=repeats)


def print_rates(seconds: dict[str, list[float]], tokens: int) -> None:
    """The first table."""
    print("\n| batches | M tokens/s per core | time, to plain | 95% interval |\n|---|---|---|---|")
    plain, random = np.array(seconds["plain"]), np.random.default_rng(0)
    for name, own in seconds.items():
        drawn = random.integers(0, len(own), (2000, len(own)))
        low, high = np.quantile(np.array(own)[drawn].sum(1) / plain[drawn].sum(1), [0.025, 0.975])
        rate = tokens * len(own) / sum(own) / 1e6
        print(f"| {name} | {rate:.1f} | {sum(own) / plain.sum():.2f} | {low:.2f} to {high:.2f} |")


def print_shares(batches: Batches, turns: int) -> None:
    """The second table."""
    found = {"span": 0.0, "row": 0.0}
    predicted = 0.0
    for k in range(turns):
        batch = batches.batch(k)
        own = batch.targets_BT, batch.segment_ids_BT, batch.weights_BT
        predicted += batch.weights_BT.sum()
        for name, repeats in (("span", SPANS), ("row", ROWS)):
            found[name] += batch.weights_BT.sum() - repeats.weights(*own).sum()
    print("\n| mask | of the targets |\n|---|---|")
    for name, lost in found.items():
        print(f"| {name} | {lost / predicted:.4%} |")


if __name__ == "__main__":
    main()
