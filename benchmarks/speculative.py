"""Greedy decoding with drafts by the model's own modules beside decoding without, on this CPU.

    make bench-speculative

Trains the quickstart's model with modules for three further tokens, one run a kind, where the folder does not hold
them yet. Then held-out documents' first 32 tokens are continued by 128, a row at a time, the loop on the device timed
from its second token to its last. The same prompts go through plain decoding and every number of drafts in turn, so
that a busy machine slows all; a ratio is of two neighbours. `equal` is the share of the same ids. What a round costs
beside a plain token does not depend on the weights; `--untrained` shows it of larger models, drawn at random.
"""

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import numpy as np

import launch
from data.tokenize import open_split
from model import transformer
from model.config import ModelConfig, MultiToken
from model.decode import Decoder
from model.sample import Sampling
from train.run import load_params

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("parallel", "sequential")
PROMPT, TOKENS, CONTEXT = 32, 128, 256
GREEDY = Sampling(temperature=0)
UNTRAINED = {"10M": ModelConfig(8192, 7, 320, 8, 4, 40, 768), "65M": ModelConfig(8192, 16, 576, 9, 3, 64, 1536)}


def flags(kind: str, folder: Path, steps: int) -> list[str]:
    """Of launch.py."""
    keys = {"model.multi_token.kind": kind, "model.multi_token.tokens": 4, "objective.multi_token.weight": 1.0}
    keys |= {"train.steps": steps, "train.eval_every": steps}
    return [f"--workdir={folder / kind}", *(f"--config.{key}={value}" for key, value in keys.items())]


def trained(kind: str, folder: Path, steps: int) -> tuple[Any, Any, list[list[int]]]:
    """The model's config, its parameters, and the beginnings of held-out documents."""
    given = flags(kind, folder, steps)
    for verb in ("curate", "tokenize", "train"):
        subprocess.run([sys.executable, str(ROOT / "launch.py"), verb, *given], check=True)
    run = launch.open_experiment(launch.parse_arguments(["generate", *given])).training
    shards = open_split(folder / kind, "heldout")
    texts = [ids.tolist() for ids in shards.read(np.arange(len(shards)))]
    return run.model, load_params(run, folder / kind)[0], [ids[:PROMPT] for ids in texts if len(ids) > PROMPT]


class Turn(NamedTuple):
    """One text: seconds a token, seconds a round of the loop, and the ids."""

    token: float
    round: float
    ids: np.ndarray


def turn(decoder: Decoder, prompt: list[int], tokens: int) -> Turn:
    """The loop alone, from the second token on."""
    rows = jax.block_until_ready(decoder.begin([prompt], GREEDY, 0))
    began, before = time.perf_counter(), decoder.drafted
    rows = jax.block_until_ready(decoder.advance(rows, np.array([len(prompt) + tokens - 1]), GREEDY, 0))
    seconds, made = time.perf_counter() - began, int(rows.last_B[0]) - len(prompt)
    rounds = (decoder.drafted - before) / decoder.drafts if decoder.drafts else made
    return Turn(seconds / made, seconds / rounds, np.asarray(rows.tokens_BS)[0, len(prompt) : len(prompt) + tokens])


def measure(name: str, config: ModelConfig, params: Any, prompts: list[list[int]], tokens: int, turns: int) -> None:
    """A line of the table for every number of drafts."""
    decoders = [Decoder(config, params, CONTEXT, drafts) for drafts in range(config.multi_token.tokens)]
    for decoder in decoders:
        turn(decoder, prompts[0], tokens)  # compiles
        decoder.drafted = decoder.accepted = 0
    found = [[turn(one, prompt, tokens) for one in decoders] for _ in range(turns) for prompt in prompts]
    plain, *others = zip(*found)
    for decoder, own in zip(decoders[1:], others):
        share = decoder.accepted / decoder.drafted
        shown = [name, decoder.drafts, f"{share:.0%}", f"{1 + share * decoder.drafts:.2f}"]
        shown.append(f"{statistics.median(a.round / b.token for a, b in zip(own, plain)):.2f}")
        shown += [f"{1 / statistics.median(one.token for one in side):,.0f}" for side in (plain, own)]
        low, middle, high = np.quantile([b.token / a.token for a, b in zip(own, plain)], [0.1, 0.5, 0.9])
        equal = np.mean([np.mean(a.ids == b.ids) for a, b in zip(own, plain)])
        shown += [f"{middle:.2f}", f"{low:.2f} to {high:.2f}", f"{equal:.1%}"]
        print("| " + " | ".join(map(str, shown)) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "speculative", help="of the trained models")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument(
        "--untrained", action="store_true", help="what a round costs of larger models, of any weights"
    )
    arguments = parser.parse_args()
    kinds = [arguments.only] if arguments.only else KINDS
    print("| model | drafts | accepted | tokens a round | a round, in plain tokens ", end="")
    print("| plain tokens/s | with drafts | ratio | 10% to 90% | equal |\n" + "|---" * 10 + "|", flush=True)
    for kind in kinds:
        config, params, prompts = trained(kind, arguments.folder, arguments.steps)
        measure(kind, config, params, prompts[: arguments.prompts], TOKENS, arguments.turns)
    for name, shape in UNTRAINED.items() if arguments.untrained else ():
        for kind in kinds:
            config = dataclasses.replace(shape, multi_token=MultiToken(kind, 4))
            prompt = np.random.default_rng(0).integers(0, config.vocab_size, PROMPT).tolist()
            measure(f"{name}, {kind}", config, transformer.init(config, 0), [prompt], 16, arguments.turns)
    print(f"\njax {jax.__version__}; {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
