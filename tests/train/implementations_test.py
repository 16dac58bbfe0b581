"""A run computes the same with any implementation of its kernels."""

import dataclasses

import numpy as np
import pytest

from data.config import BatchConfig
from kernels.attention import tpu_blocks
from lab import run_losses
from model.config import Kernels, ModelConfig
from optim.config import OptimConfig
from train.config import TrainConfig
from train.run import Run

MODEL = ModelConfig(
    vocab_size=258, num_layers=2, d_model=64, num_heads=4, num_kv_heads=2, head_dim=16, d_ff=128,
    sliding_window=150, global_every=2, attention_soft_cap=20.0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Of the TPU's attention: several a row, of queries and of keys."""
    sizes = tpu_blocks.Sizes
    monkeypatch.setattr(tpu_blocks, "OTHERS", tpu_blocks.Kernels(sizes(128, 128), sizes(512, 128), sizes(128, 256)))


@pytest.fixture(scope="module")
def reference_losses(tmp_path_factory):
    return losses(tmp_path_factory.mktemp("reference") / "run", Kernels(*3 * ["reference"]))


def losses(folder, kernels):
    """Of 12 steps over packed rows of real text, with a sliding window in every other layer."""
    folder.mkdir()
    model = dataclasses.replace(MODEL, kernels=kernels)
    optim = OptimConfig(learning_rate=2e-3, warmup_steps=4, decay_fraction=0.2)
    run = Run(model, BatchConfig(rows=2, row_length=400), optim, TrainConfig(steps=12), seed=0)
    return np.array(run_losses(folder, run))


@pytest.mark.parametrize(
    "kernels",
    [
        Kernels(),
        pytest.param(
            Kernels(attention="tpu_interpret", cross_entropy="tpu_interpret", rope="tpu_interpret"),
            marks=pytest.mark.slow,
        ),
        pytest.param(Kernels(attention="gpu_interpret", cross_entropy="gpu_interpret"), marks=pytest.mark.slow),
    ],
)
def test_kernels_change_no_loss_curve(tmp_path, reference_losses, kernels):
    assert reference_losses[-1] < 0.9 * reference_losses[0]
    np.testing.assert_allclose(losses(tmp_path / "run", kernels), reference_losses, atol=1e-4, rtol=0)
