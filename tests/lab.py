"""What tests share: a small corpus, a run without a workdir, and launch.py as a user runs it."""

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quick_launch import can_launch_quickly, quick_launch

from data.config import BatchConfig
from data.corpus import Corpus
from data.history import ask
from data.pipeline import Batches
from data.plan import Plan
from data.shards import TokenDocument, Tokens, TokenShards, write_shard
from train.run import Run, make_program
from train.sharding import make_mesh

ROOT = Path(__file__).resolve().parent.parent
REAL = Path(os.environ.get("QUINTET_REAL_INPUTS", ROOT.parent / "shared" / "data"))
WORDS = (
    "the model reads a row of tokens and learns to predict what follows each of them while gradients flow back "
    "through layers heads and norms until loss falls and text begins to look like text written by someone"
).split()


def make_corpus(folder: Path, files: int = 12, sentences: int = 60, seed: int = 0) -> Path:
    """Text files of made-up sentences; each file differs."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for number in range(files):
        lines = [" ".join(random.choice(WORDS, random.integers(6, 14))) + ".\n" for _ in range(sentences)]
        (folder / f"{number:03d}.txt").write_text("".join(lines))
    return folder


def real(name: str) -> Path:
    """A folder of real inputs, which belong to others and are no part of this project; without it a test skips."""
    if not (REAL / name).exists():
        pytest.skip(f"{name} is not among the real inputs (QUINTET_REAL_INPUTS names their folder)")
    return REAL / name


def launch(*arguments: object, timeout: int = 300, **options: object) -> subprocess.CompletedProcess:
    """Runs launch.py as a user would; given options of `subprocess.run`, by that, else as `quick_launch` does."""
    given = [*map(str, arguments)]
    if not options and can_launch_quickly():
        return quick_launch(given, timeout)
    command = [sys.executable, str(ROOT / "launch.py"), *given]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)


def smoke(workdir: Path, corpus: Path, *arguments: object) -> list[str]:
    """Arguments of a run of seconds over the small corpus."""
    return [
        "--config=" + str(ROOT / "experiments" / "smoke.py"),
        f"--workdir={workdir}",
        f"--config.data.path={corpus}",
        "--config.data.heldout_fraction=0.2",
        "--config.tokenizer.vocab_size=320",
        "--config.train.steps=24",
        *map(str, arguments),
    ]


def on_devices(count: int, program: str, timeout: int = 300, **flags: object) -> str:
    """Runs a Python program in a process of its own with so many virtual CPU devices; what it printed.

    `flags` are XLA's.
    """
    flags = {"xla_force_host_platform_device_count": count, **flags}
    shown = " ".join(f"--{name}={str(value).lower()}" for name, value in flags.items())
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "XLA_FLAGS": shown, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout + result.stderr


class FakeShards:
    """Documents in memory: token t of document d is 1000 d + t."""

    def __init__(self, lengths: list[int], sources: list[str] | None = None, generations: tuple[int, ...] = ()):
        """`generations` are the numbers of documents up to the end of each but the last."""
        self.lengths = np.array(lengths)
        named = sources if sources is not None else ["text"] * len(lengths)
        self.source_names = sorted(set(named))
        self.source_of = np.array([self.source_names.index(name) for name in named])
        self.generation_starts = np.array([0, *generations, len(lengths)])
        self.hashes = [self.lengths[:end].tolist() for end in self.generation_starts[1:]]
        self.reads = 0  # documents
        self.trained: dict[int, np.ndarray] = {}  # of those that are conversations
        self.predicted = np.maximum(self.lengths - 1, 0)

    @property
    def masked(self) -> np.ndarray:
        """Which are conversations."""
        return np.array([document in self.trained for document in range(len(self.lengths))])

    def read_tokens(self, documents: np.ndarray) -> list[Tokens]:
        """Their tokens."""
        self.reads += len(documents)
        return [Tokens(1000 * d + np.arange(self.lengths[d]), self.trained.get(d)) for d in documents.tolist()]

    def source(self, document: int) -> str:
        """The source of one."""
        return self.source_names[self.source_of[document]]


def make_plan(shards, config: BatchConfig, seed: int = 0, steps: int = 1000) -> Plan:
    """The plan of a run without a past."""
    corpus = Corpus(shards, seed)
    return Plan((ask(config, steps, corpus.generations),), corpus, seed)


def make_batches(shards, config: BatchConfig, seed: int = 0, steps: int = 1000) -> Batches:
    """The batches of a run without a past."""
    return Batches(make_plan(shards, config, seed, steps))


class ByteTokenizer:
    """A token a byte, and one for each special token; those decode to nothing."""

    def __init__(self, special: Iterable[str] = ()):
        self.special_tokens = {token: 256 + number for number, token in enumerate(special)}
        self.vocab_size = 256 + len(self.special_tokens)

    def encode_with_offsets(self, text: str, special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and begin and end of the characters of each."""
        names = "|".join(map(re.escape, self.special_tokens)) if special else ""
        ids, offsets, place = [], [], 0
        for part in re.split(f"({names})", text) if names else [text]:
            if names and part in self.special_tokens:
                ids.append(self.special_tokens[part])
                offsets.append((place, place + len(part)))
            else:
                for character, at in zip(part, range(place, place + len(part))):
                    ids += character.encode()
                    offsets += [(at, at + 1)] * len(character.encode())
            place += len(part)
        return ids, offsets

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Text of ids."""
        names = [bytes([i]) for i in range(256)] + [name.encode() if special else b"" for name in self.special_tokens]
        return b"".join(names[i] for i in ids).decode("utf-8", "replace")


def run_losses(folder: Path, run: Run, names: tuple[str, ...] = ("loss",)) -> list[Any]:
    """Paragraphs of the licence as byte tokens, through rows, batches and the true step: the loss of each.

    Of several names, the list of them.
    """
    paragraphs = (ROOT / "LICENSE").read_text().split("\n\n")
    documents = [TokenDocument(str(i), "licence", [256, *p.encode(), 257], len(p)) for i, p in enumerate(paragraphs)]
    shards = TokenShards(folder, [write_shard(folder / "t.array_record", documents, np.dtype("<u2"))], "<u2")
    program, losses = make_program(run, make_mesh()), []
    state = program.init()
    for batch in make_batches(shards, run.batch, run.seed, run.train.steps).iterate(0, run.train.steps):
        state, metrics = program.step(state, batch)
        found = [float(metrics[name]) for name in names]
        losses.append(found if len(found) > 1 else found[0])
    return losses
