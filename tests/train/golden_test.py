"""A 100-step run on a fixed text, held to recorded losses: an unintended change of the mathematics shows here.

Recorded per jaxlib and CPU, where it must repeat to the bit; elsewhere within 1e-5. After an intended change run
`python tests/train/golden_test.py`, look at the differences it prints, and commit the new file with the reason.
"""

import json
import os
import platform
import re
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jaxlib
import numpy as np
import pytest

from data.config import BatchConfig
from data.shards import TokenDocument, TokenShards, write_shard
from data.workers import available_cores
from lab import make_batches
from model.config import ModelConfig
from optim.config import OptimConfig
from train.config import TrainConfig
from train.run import Run, make_program
from train.sharding import make_mesh

GOLDEN = Path(__file__).with_name("golden_losses.json")
TEXT = Path(__file__).resolve().parents[2] / "LICENSE"
STEPS = 100
RUN = Run(
    ModelConfig(vocab_size=258, num_layers=4, d_model=64, num_heads=4, num_kv_heads=2, head_dim=16, d_ff=128),
    BatchConfig(rows=8, row_length=64),
    OptimConfig(learning_rate=2e-3, warmup_steps=10, decay_fraction=0.2),
    TrainConfig(steps=STEPS),
    seed=0,
)


def this_machine() -> str:
    """What decides the bits: jaxlib, the processor's maker and its widest vectors, and the cores work is split by."""
    isa, vendor = platform.machine(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text()
        found = re.search(r"^vendor_id\s*: (\w+)", text, re.MULTILINE)
        vendor = f" {found[1]}" if found else ""
        isa = next((name for name in ("avx512_bf16", "avx512f", "avx2", "avx") if name in text), isa)
    return f"jaxlib {jaxlib.__version__},{vendor} {isa}, {available_cores()} cores"


def run_losses(folder: Path) -> list[float]:
    """Paragraphs of the licence as byte tokens, through rows, batches and the true step."""
    paragraphs = TEXT.read_text().split("\n\n")
    documents = [TokenDocument(str(i), "licence", [256, *p.encode(), 257], len(p)) for i, p in enumerate(paragraphs)]
    shards = TokenShards(folder, [write_shard(folder / "t.array_record", documents, np.dtype("<u2"))], "<u2")
    program, losses = make_program(RUN, make_mesh()), []
    state = program.init()
    for batch in make_batches(shards, RUN.batch, RUN.seed, STEPS).iterate(0, STEPS):
        state, metrics = program.step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses


def test_the_losses_are_those_recorded(tmp_path):
    golden, losses = json.loads(GOLDEN.read_text()), run_losses(tmp_path)
    message = f"the losses of {STEPS} steps changed on {this_machine()}; see the docstring of {Path(__file__).name}"
    if this_machine() in golden:
        assert losses == golden[this_machine()], message
    else:
        assert losses == pytest.approx(next(iter(golden.values())), abs=1e-5), message
    assert losses[-1] < 0.7 * losses[0]


if __name__ == "__main__":
    import tempfile

    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        losses = run_losses(Path(folder))
    for name, recorded in golden.items():
        print(f"{name}: largest difference {np.abs(np.array(recorded) - losses).max():.2e}")
    golden[this_machine()] = losses
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    print(f"{this_machine()}: {losses[0]:.4f} ... {losses[-1]:.4f}")
