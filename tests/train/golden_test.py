"""A 100-step run on a fixed text, held to recorded losses: an unintended change of the mathematics shows here.

Recorded per jaxlib and CPU, where it must repeat to the bit; elsewhere within 1e-5. After an intended change run
`python tests/train/golden_test.py`, look at the differences it prints, and commit the new file with the reason.
It runs in a process of its own, where XLA optimises as in runs; in other tests it does less.
"""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jaxlib
import numpy as np
import pytest

from data.config import BatchConfig
from data.workers import available_cores
from lab import ROOT, run_losses
from model.config import ModelConfig
from optim.config import OptimConfig
from train.config import TrainConfig
from train.run import Run

GOLDEN = Path(__file__).with_name("golden_losses.json")
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


def test_the_losses_are_those_recorded():
    environment = {name: value for name, value in os.environ.items() if name != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}"
    command = [sys.executable, __file__, "--print"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=True)
    golden, losses = json.loads(GOLDEN.read_text()), json.loads(done.stdout)
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
        losses = run_losses(Path(folder), RUN)
    if "--print" in sys.argv:
        print(json.dumps(losses))
        sys.exit()
    for name, recorded in golden.items():
        print(f"{name}: largest difference {np.abs(np.array(recorded) - losses).max():.2e}")
    golden[this_machine()] = losses
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    print(f"{this_machine()}: {losses[0]:.4f} ... {losses[-1]:.4f}")
