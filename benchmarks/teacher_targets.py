"""Ways to store a teacher's distributions: the bias of the gradient, bytes a token, and what they cost a step.

    python benchmarks/teacher_targets.py --workdir=runs/quickstart [--student=FOLDER] [--draws=10000] [--steps=100]

The teacher is the exported model of a finished run of the quickstart, over its own tokens. The student is a fresh
model of the quickstart's shape, or the Hugging Face folder given. The gradient is that of all of the student's
parameters, of the cross-entropy with the teacher's distributions in one row of 256 tokens. For random draws the bias
is that of the mean over so many draws of the row; "along" is its part in the direction of the gradient of whole
distributions, with the 99% interval, "away" its norm, beside what chance alone would bring, all in parts of the
gradient's norm. Steps with 50 stored ids and with the next token alone take turns, batches included; the ratio is
that of each pair, its median with the 95% interval.
"""

import argparse
import dataclasses
import functools
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import launch
from core.progress import track
from data.corpus import Corpus
from data.history import ask
from data.pipeline import Batches
from data.plan import Plan
from data.shards import TokenDocument, TokenShards, write_shard
from data.targets import Distributions, Form, Targets, encode, write_targets
from data.tokenize import open_split
from model import transformer
from model.config import ModelConfig
from model.hf import read_params
from model.hf_config import read_config
from objectives.config import ObjectiveConfig
from train.compress import draw, largest, place_keys
from train.run import Run, make_program
from train.sharding import make_mesh

WAYS = (("top_k", 8), ("top_k", 50), ("top_k", 256), ("sample", 10), ("sample", 50), ("sample", 256))
NOISE = 100  # draws of which the whole gradient is computed
TOKENS = 200_000  # of the documents that steps are timed on


class Row(NamedTuple):
    """What is learned from: X places of one row."""

    batch: Any
    teacher_XV: jax.Array
    weights_X: jax.Array


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--student", type=Path, help="a Hugging Face folder")
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=100, help="of each kind")
    given = parser.parse_args()
    overrides = [f"--workdir={given.workdir}", "--config.objective.targets.weight=0.5"]
    run = launch.open_experiment(launch.parse_arguments(overrides)).training
    shards = open_split(given.workdir, "train")
    if given.draws:
        corpus = Corpus(shards, run.seed)
        plan = Plan((ask(run.batch, run.steps, corpus.generations),), corpus, run.seed)
        biases(given, run.model, Batches(plan).batch(0))
    if given.steps:
        step_times(given.steps, run, shards)


def biases(given: argparse.Namespace, shape: ModelConfig, batch: Any) -> None:
    """A line a way."""
    folder = given.workdir / "export"
    described = read_config(folder)
    probabilities = jax.jit(functools.partial(_probabilities, described, read_params(folder, described)))
    rows = [jax.tree.map(lambda field, i=i: field[i : i + 1], batch) for i in range(len(batch.tokens_BT))]
    row = Row(rows[0], probabilities(rows[0]), jnp.asarray(rows[0].weights_BT[0]))
    model = read_config(given.student) if given.student else shape
    params = read_params(given.student, model) if given.student else transformer.init(model, 1)
    gradient, softmax_XV = student(model, params, row)
    exact = gradient(slope(row, softmax_XV, row.teacher_XV))
    norm = jnp.sqrt(exact @ exact)
    print("| stored | along | away | by chance | bytes a token | most |\n|---|---|---|---|---|---|")
    for method, k in WAYS:
        form = Form(method, k, row.teacher_XV.shape[-1])
        sizes = [size for number, own in enumerate(rows) for size in stored_bytes(form, probabilities(own), number)]
        size = f"{np.mean(sizes):.1f} | {max(sizes)}"
        if method == "sample":
            print(f"| {k} draws | {sampled(given.draws, k, row, softmax_XV, gradient, exact)} | {size} |", flush=True)
            continue
        estimate_XV = spread(row, *largest(row.teacher_XV, k))
        for name, own_XV in (("", estimate_XV), (", scaled to 1", estimate_XV / estimate_XV.sum(-1, keepdims=True))):
            error = (gradient(slope(row, softmax_XV, own_XV)) - exact) / norm
            along, away = float(error @ exact / norm), float(jnp.sqrt(error @ error))
            print(f"| top {k}{name} | {along:+.2%} | {away:.2%} | 0 | {size} |", flush=True)


def _probabilities(model: ModelConfig, params: Any, batch: Any) -> jax.Array:
    """Of the teacher [X, V]."""
    hidden_BTD = transformer.apply(model, params, *_read(batch)).hidden_BTD
    return jax.nn.softmax(transformer.logits(model, params, hidden_BTD)[0])


def _read(batch: Any) -> tuple[Any, ...]:
    return batch.tokens_BT, batch.segment_ids_BT, batch.positions_BT


def student(model: ModelConfig, params: Any, row: Row) -> tuple[Any, jax.Array]:
    """The gradient of all parameters as one vector, by that of the logits [X, V]; and the student's distributions."""

    def logits(params: Any) -> jax.Array:
        return transformer.logits(model, params, transformer.apply(model, params, *_read(row.batch)).hidden_BTD)[0]

    logits_XV, pull = jax.vjp(logits, params)
    return jax.jit(lambda slope_XV: ravel_pytree(pull(slope_XV))[0]), jax.nn.softmax(logits_XV)


def slope(row: Row, softmax_XV: jax.Array, estimate_XV: jax.Array) -> jax.Array:
    """The gradient of the logits."""
    mass_X1 = estimate_XV.sum(-1, keepdims=True)
    return (mass_X1 * softmax_XV - estimate_XV) * row.weights_X[:, None] / row.weights_X.sum()


def spread(row: Row, ids_Xk: jax.Array, probs_Xk: jax.Array) -> jax.Array:
    """A few ids as a distribution [X, V]."""
    places_X1 = jnp.arange(len(ids_Xk))[:, None]
    return jnp.zeros_like(row.teacher_XV).at[places_X1, ids_Xk].add(probs_Xk)


def sampled(draws: int, n: int, row: Row, softmax_XV: jax.Array, gradient: Any, exact: jax.Array) -> str:
    """Cells of a line: the error of the mean over draws of the whole row, each as of another document.

    The gradient is linear in the distributions, so it is computed of their mean, and of some draws for the noise.
    """
    square, exact_XV = exact @ exact, slope(row, softmax_XV, row.teacher_XV)
    along_XV = jax.grad(lambda slope_XV: gradient(slope_XV) @ exact)(exact_XV) / square

    @jax.jit
    def error(teacher_XV: jax.Array, number: jax.Array) -> jax.Array:
        X = len(teacher_XV)
        keys_X = place_keys(0, jnp.full(X, number, jnp.uint32), jnp.arange(X))
        return slope(row, softmax_XV, spread(row, draw(teacher_XV, keys_X, n), 1 / n)) - exact_XV

    total_XV, along, squares = jnp.zeros_like(exact_XV), [], []
    for number in track(range(draws), f"{n} draws", draws):
        error_XV = error(row.teacher_XV, number)
        total_XV += error_XV
        along.append(jnp.vdot(error_XV, along_XV))
        if number < NOISE:
            own = gradient(error_XV)
            squares.append(own @ own / square)
    along, mean = np.array(jax.device_get(along), np.float64), gradient(total_XV / draws)
    half, away = 2.576 * along.std() / np.sqrt(draws), float(jnp.sqrt(mean @ mean / square))
    chance = float(jnp.sqrt(jnp.stack(squares).mean() / draws))
    return f"{along.mean():+.3%} ± {half:.3%} | {away:.2%} | {chance:.2%}"


def stored_bytes(form: Form, probs_XV: jax.Array, number: int) -> list[int]:
    """Of every place."""
    if form.method == "top_k":
        found = Distributions(*largest(probs_XV, form.tokens))
    else:
        keys_X = place_keys(1, jnp.full(len(probs_XV), number, jnp.uint32), jnp.arange(len(probs_XV)))
        found = Distributions(draw(probs_XV, keys_X, form.tokens))
    ids_Xk, probs_Xk = jax.device_get(found)
    at = range(len(ids_Xk))
    parts = (Distributions(ids_Xk[i : i + 1], None if probs_Xk is None else probs_Xk[i : i + 1]) for i in at)
    return [len(encode(form, part)) for part in parts]


def step_times(steps: int, run: Run, shards: TokenShards) -> None:
    """The median step with stored targets, and with the next token alone, in turns."""
    sides, seconds = {}, {"next token": [], "stored": []}
    with tempfile.TemporaryDirectory() as folder:
        small, targets = part(Path(folder), shards)
        corpus = Corpus(small, run.seed)
        plan = Plan((ask(run.batch, run.steps, corpus.generations),), corpus, run.seed)
        for name in seconds:
            own = run if name == "stored" else dataclasses.replace(run, objective=ObjectiveConfig())
            program, batches = (
                make_program(own, make_mesh()),
                Batches(plan, None, targets if name == "stored" else None),
            )
            sides[name] = program.step, program.init(), batches.iterate(0, steps + 3)
        for _ in track(range(steps + 3), "steps", steps + 3):
            for name, (step, state, batches) in sides.items():
                began = time.perf_counter()
                state, metrics = step(state, next(batches))
                jax.block_until_ready(metrics)
                seconds[name].append(time.perf_counter() - began)
                sides[name] = step, state, batches
    plain, taught = (np.array(own[3:]) for own in seconds.values())  # the first compile
    ratios, random = taught / plain, np.random.default_rng(0)
    low, high = np.quantile(np.median(random.choice(ratios, (2000, len(ratios))), axis=1), [0.025, 0.975])
    print(f"\nnext token {np.median(plain) * 1e3:.1f} ms, with 50 stored ids {np.median(taught) * 1e3:.1f} ms a step")
    print(f"ratio {np.median(ratios):.3f} ({low:.3f} to {high:.3f}), {len(ratios)} pairs")


def part(folder: Path, shards: TokenShards) -> tuple[TokenShards, Targets]:
    """The first documents, with made-up draws: the time of a step does not depend on what was drawn."""
    count = int(np.searchsorted(np.cumsum(shards.lengths), TOKENS)) + 1
    ids = shards.read(np.arange(count))
    documents = (TokenDocument(str(number), "part", own.tolist(), len(own)) for number, own in enumerate(ids))
    path = folder / "tokens" / "part.array_record"
    small = TokenShards(path.parent, [write_shard(path, documents, shards.dtype)], shards.dtype.str)
    random, form = np.random.default_rng(0), Form("sample", 50, 4096)
    drawn = (np.minimum(random.zipf(1.3, (max(len(own) - 1, 0), 50)), form.vocab_size) - 1 for own in ids)
    taught = zip(small.crc32.tolist(), map(Distributions, drawn))
    written = write_targets(folder / "targets" / path.name, form, taught)
    return small, Targets(small, form, [{"summary": {"shards": [written]}}])


if __name__ == "__main__":
    main()
