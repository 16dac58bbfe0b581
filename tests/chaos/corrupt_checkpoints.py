"""Every file of a checkpoint, corrupted, through the code that restores it."""

import contextlib
import functools
from pathlib import Path

import jax
import numpy as np
from chaos.corruptions import Row, run

from core.files import MANIFEST
from model.config import ModelConfig
from objectives.build import build as build_objective
from objectives.config import ObjectiveConfig
from optim.build import build
from optim.config import OptimConfig
from train import manifest, state
from train.checkpoint import Checkpoints
from train.manifest import DamagedCheckpoint
from train.sharding import make_mesh, state_shardings

MODEL = ModelConfig(vocab_size=64, num_layers=2, d_model=32, num_heads=2, num_kv_heads=1, head_dim=16, d_ff=32)
OPTIMIZER = build(OptimConfig(warmup_steps=10), 100)[0]
OBJECTIVE = build_objective(MODEL, ObjectiveConfig())
ABSTRACT = state.abstract(OBJECTIVE, OPTIMIZER)
SHARDINGS = state_shardings(ABSTRACT, make_mesh())
STEP, RECORD = 7, {"history": [{"steps": 100, "rows": 4}], "name": "a run"}


def write_checkpoint(folder: Path, hashed_below: int | None = None) -> state.TrainState:
    """A checkpoint of a tiny model; with `hashed_below=0` its arrays are covered as those of a large one are."""
    made = jax.jit(lambda: state.init(OBJECTIVE, OPTIMIZER, 0), out_shardings=SHARDINGS)()
    made = jax.tree.map(lambda array: array + 1, made)
    before = manifest.HASHED_BELOW
    manifest.HASHED_BELOW = before if hashed_below is None else hashed_below
    try:
        with contextlib.closing(Checkpoints(folder, keep_last=1)) as checkpoints:
            checkpoints.save(made, STEP, RECORD)
    finally:
        manifest.HASHED_BELOW = before
    return made


def outcome(folder: Path, original: Path, expected: state.TrainState) -> str:
    """`detected`, `harmless`, or what went wrong, with a checkpoint that was copied from `original` and corrupted."""
    reader = Checkpoints(folder.parent)
    try:
        found, record = reader.restore(ABSTRACT, SHARDINGS, STEP), reader.record(STEP)
    except DamagedCheckpoint as damage:
        return "detected" if "\n" not in str(damage) else f"more than one line: {damage}"
    except Exception as error:  # noqa: BLE001, which is what we are looking for
        return f"{type(error).__name__}: {error}"
    equal = record == RECORD and jax.tree.structure(found) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected))
    same = equal and all(a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)
    if not same:
        return "a wrong value, silently"
    return "overlooked, though the manifest tells" if told_by_manifest(folder, original) else "harmless"


def told_by_manifest(folder: Path, original: Path) -> bool:
    """Whether a file has another size than the manifest says or, where it says a hash, other bytes."""
    files = {MANIFEST: {"hash": ""}, **manifest.read_manifest(original)["files"]}

    def differs(name: str) -> bool:
        data, now = (original / name).read_bytes(), folder / name
        if not now.is_file() or now.stat().st_size != len(data):
            return True
        return "hash" in files[name] and now.read_bytes() != data

    return any(map(differs, files))


def check(folder: Path, hashed_below: int | None, seed: int, count: int) -> list[Row]:
    """Writes a checkpoint, corrupts it, and fails where anything but `detected` and `harmless` came out."""
    expected = write_checkpoint(folder, hashed_below)
    original = folder / str(STEP)
    judge = functools.partial(outcome, original=original, expected=expected)
    assert judge(original) == "harmless"
    rows, wrong = run(original, judge, seed, count)
    assert not wrong, "\n".join(wrong)
    return rows
