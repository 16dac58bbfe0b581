"""Every file of a checkpoint, corrupted in every way we know: noticed, or without effect, and never a wrong value.

`python tests/train/corruption_test.py 500` prints a table of as many cases.
"""

import contextlib
import itertools
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from model.config import ModelConfig
from optim.build import build
from optim.config import OptimConfig
from train import manifest, state
from train.checkpoint import Checkpoints
from train.manifest import DamagedCheckpoint
from train.sharding import make_mesh, state_shardings

MODEL = ModelConfig(vocab_size=64, num_layers=2, d_model=32, num_heads=2, num_kv_heads=1, head_dim=16, d_ff=32)
OPTIMIZER = build(OptimConfig(warmup_steps=10), 100)[0]
ABSTRACT = state.abstract(MODEL, OPTIMIZER)
SHARDINGS = state_shardings(ABSTRACT, make_mesh())
STEP, RECORD = 7, {"history": [{"steps": 100, "rows": 4}], "name": "a run"}

Corrupt = Callable[[Path], None]


class Case(NamedTuple):
    """One corruption of one checkpoint."""

    kind: str
    what: str  # file and place
    corrupt: Corrupt


class Row(NamedTuple):
    """What became of the cases of one kind."""

    kind: str
    cases: int
    detected: int
    harmless: int
    silent: int  # wrong values without a word, or an error of another type


def write_checkpoint(folder: Path, hashed_below: int | None = None) -> state.TrainState:
    """A checkpoint of a tiny model; with `hashed_below=0` its arrays are covered as those of a large one are."""
    made = jax.jit(lambda: state.init(MODEL, OPTIMIZER, 0), out_shardings=SHARDINGS)()
    made = jax.tree.map(lambda array: array + 1, made)
    before = manifest.HASHED_BELOW
    manifest.HASHED_BELOW = before if hashed_below is None else hashed_below
    try:
        with contextlib.closing(Checkpoints(folder, keep_last=1)) as checkpoints:
            checkpoints.save(made, STEP, RECORD)
    finally:
        manifest.HASHED_BELOW = before
    return made


def cases(folder: Path, seed: int) -> Iterator[Case]:
    """Endless corruptions of the checkpoint in `folder`: round after round of every kind for every file."""
    chance = random.Random(seed)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    while True:
        for name in names:
            size, other = (folder / name).stat().st_size, chance.choice([n for n in names if n != name])
            places = [chance.randrange(size * 8) for _ in range(chance.choice([1, 1, 1, 2, 8]))]
            start, length = chance.randrange(size), chance.choice([1, 16, 512])
            yield Case("flipped bits", f"{name} {places}", edit(name, lambda data, p=places: flip(data, p)))
            yield Case("zeroed", f"{name} {start}+{length}", edit(name, lambda d, s=start, n=length: blank(d, s, n)))
            junk = chance.randbytes(length)
            yield Case("junk", f"{name} {start}+{length}", edit(name, lambda d, s=start, j=junk: splice(d, s, j)))
            yield Case("swapped", f"{name} {other}", lambda at, a=name, b=other: swap(at / a, at / b))
            yield Case("overwritten", f"{other} -> {name}", lambda at, a=other, b=name: shutil.copy(at / a, at / b))
            for keep in chance.sample([0, size - 1, size // 2, chance.randrange(size)], 2):
                yield Case("truncated", f"{name} {keep}", lambda at, n=name, keep=keep: os.truncate(at / n, keep))
            yield Case("appended", name, edit(name, lambda data, junk=junk: data + junk))
            yield Case("deleted", name, lambda at, n=name: (at / n).unlink())
            copy = str(Path(name).with_name(chance.choice(["process_1", "0" * 32, "copy", ".lock"])))
            yield Case("duplicated", f"{name} -> {copy}", lambda at, a=name, b=copy: shutil.copy(at / a, at / b))


def edit(name: str, change: Callable[[bytes], bytes]) -> Corrupt:
    """Rewrites one file."""

    def corrupt(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return corrupt


def flip(data: bytes, places: list[int]) -> bytes:
    """With the bits at `places` inverted."""
    changed = bytearray(data)
    for place in places:
        changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def blank(data: bytes, start: int, length: int) -> bytes:
    """With a run of zeros, as of a sector that was never written."""
    return splice(data, start, bytes(min(length, len(data) - start)))


def splice(data: bytes, start: int, junk: bytes) -> bytes:
    """With a run of other bytes; the size stays."""
    return (data[:start] + junk + data[start + len(junk) :])[: len(data)]


def swap(a: Path, b: Path) -> None:
    """Exchanges the bytes of two files."""
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


def outcome(checkpoints: Path, expected: state.TrainState) -> str:
    """`detected`, `harmless`, or what went wrong."""
    reader = Checkpoints(checkpoints)
    try:
        found, record = reader.restore(ABSTRACT, SHARDINGS, STEP), reader.record(STEP)
    except DamagedCheckpoint as damage:
        return "detected" if "\n" not in str(damage) else f"more than one line: {damage}"
    except Exception as error:  # noqa: BLE001, which is what we are looking for
        return f"{type(error).__name__}: {error}"
    equal = record == RECORD and jax.tree.structure(found) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected))
    same = equal and all(a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)
    return "harmless" if same else "a wrong value, silently"


def run(folder: Path, expected: state.TrainState, seed: int, count: int) -> tuple[list[Row], list[str]]:
    """Tries `count` corruptions of a checkpoint; a table, and what went wrong."""
    counts, wrong = Counter(), []
    for case in sample(folder / str(STEP), seed, count):
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / "checkpoints"
            shutil.copytree(folder, copy)
            case.corrupt(copy / str(STEP))
            result = outcome(copy, expected)
        counts[case.kind, result if result in ("detected", "harmless") else "silent"] += 1
        if result not in ("detected", "harmless"):
            wrong.append(f"{case.kind} {case.what}: {result}")
    kinds = sorted({kind for kind, _ in counts})
    rows = [[counts[kind, name] for name in ("detected", "harmless", "silent")] for kind in kinds]
    return [Row(kind, sum(row), *row) for kind, row in zip(kinds, rows)], wrong


def sample(folder: Path, seed: int, count: int) -> list[Case]:
    """`count` cases from several rounds, so that all kinds and files are among them."""
    several = list(itertools.islice(cases(folder, seed), max(4 * count, 1000)))
    return random.Random(seed).sample(several, count)


def table(rows: list[Row]) -> str:
    """For people."""
    total = Row("all", *(sum(row[column] for row in rows) for column in range(1, 5)))
    lines = [f"{'corruption':14} {'cases':>6} {'detected':>9} {'harmless':>9} {'silent':>7}"]
    lines += [f"{r.kind:14} {r.cases:6} {r.detected:9} {r.harmless:9} {r.silent:7}" for r in [*rows, total]]
    return "\n".join(lines)


def check(folder: Path, hashed_below: int | None, seed: int, count: int) -> list[Row]:
    """Writes a checkpoint, corrupts it, and fails where anything but `detected` and `harmless` came out."""
    expected = write_checkpoint(folder, hashed_below)
    assert outcome(folder, expected) == "harmless"
    rows, wrong = run(folder, expected, seed, count)
    assert not wrong, "\n".join(wrong)
    return rows


@pytest.mark.parametrize("hashed_below", [None, 0], ids=["hashed files", "array files by size"])
def test_no_corruption_gives_a_wrong_value(tmp_path, hashed_below):
    rows = check(tmp_path, hashed_below, seed=0, count=40)
    assert sum(row.detected for row in rows) > 30


@pytest.mark.slow
@pytest.mark.parametrize("hashed_below", [None, 0], ids=["hashed files", "array files by size"])
def test_no_corruption_of_many_gives_a_wrong_value(tmp_path, hashed_below):
    rows = check(tmp_path, hashed_below, seed=1, count=300)
    assert len(rows) == 9
    assert sum(row.detected for row in rows) > 250


def main() -> None:
    """Both ways of covering the arrays, half of the cases each."""
    count = int(sys.argv[1]) // 2
    for hashed_below, name in ((None, "small files of arrays, hashed"), (0, "large ones, by size and fingerprints")):
        with tempfile.TemporaryDirectory() as folder:
            print(f"{name}\n{table(check(Path(folder), hashed_below, 0, count))}\n")


if __name__ == "__main__":
    main()
