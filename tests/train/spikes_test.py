"""Steps that go wrong in real runs: what is clipped, what is skipped, where a run ends; on four devices as on one."""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.spikes import RUN, make_batch
from core.files import read_json
from lab import launch, smoke
from optim.config import ClipConfig, OptimConfig, SkipConfig
from train.run import make_program
from train.sharding import make_mesh

OPTIM = OptimConfig(
    learning_rate=1e-2,
    warmup_steps=5,
    decay_fraction=0.0,
    clip=ClipConfig("adagc", adagc_warmup=10),
    skip=SkipConfig(spikes=True, window=16),
)
GUARDED = dataclasses.replace(RUN, optim=OPTIM)


@functools.cache
def program():
    return make_program(GUARDED, make_mesh())


def learnt(seed):
    """Every target is the token itself."""
    batch = make_batch(seed)
    return batch._replace(targets_BT=batch.tokens_BT)


def broken():
    """Targets that have nothing to do with the tokens."""
    return make_batch(0, broken=True)


def host(tree):
    return jax.tree.map(np.asarray, tree)


def test_a_spike_and_a_batch_that_is_not_finite_leave_a_run_as_it_was():
    state = program().init()
    for step in range(30):
        state, metrics = program().step(state, learnt(step))
    assert float(metrics["loss"]) < 1.5
    before, rate = host((state.params, state.opt_state.inner)), float(metrics["learning_rate"])
    state, spike = program().step(state, broken())
    assert float(spike["loss"]) > 4
    assert float(spike["clipped_share"]) > 0.5
    assert (int(spike["skipped_steps"]), int(spike["nonfinite_in_a_row"])) == (1, 0)
    nan = learnt(31)._replace(weights_BT=np.full((4, 16), np.nan, np.float32))
    state, bad = program().step(state, nan)
    assert np.isnan(float(bad["loss"]))
    assert (int(bad["skipped_steps"]), int(bad["nonfinite_in_a_row"])) == (2, 1)
    after = host((state.params, state.opt_state.inner))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after)):
        if "values" not in jax.tree_util.keystr(path):  # metrics tell of the step itself
            np.testing.assert_array_equal(a, b)
    assert int(state.step) == 32
    state, metrics = program().step(state, learnt(32))
    assert float(metrics["loss"]) < 1.5
    assert int(metrics["nonfinite_in_a_row"]) == 0
    assert float(metrics["learning_rate"]) == rate
    assert not np.array_equal(before[0]["embedding"], state.params["embedding"])


def test_a_run_that_diverges_ends_with_its_steps_and_documents_named(finished, corpus, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    for name in ("curated", "tokenizer", "tokens"):
        (workdir / name).symlink_to(finished / name)
    settings = ["optim.learning_rate=1e30", "optim.skip.nonfinite_limit=3", "train.log_every=4"]
    result = launch("train", *smoke(workdir, corpus, *(f"--config.{one}" for one in settings)))
    assert result.returncode == 2, result.stderr
    line = result.stderr.splitlines()[-1]
    assert "the loss or the gradients of steps 2 to 4 were not finite (optim.skip.nonfinite_limit=3)" in line
    assert ".txt" in line.partition("step 2 read ")[2]
    assert "train --skip=2:4" in line
    assert not read_json(workdir / "train" / "manifest.json")["complete"]


SCRIPT = """
import sys
sys.path[:0] = {path!r}
import dataclasses
from pathlib import Path
import jax, numpy as np
from spikes_test import GUARDED, OPTIM
from optim.build import build
from optim.config import ClipConfig
from optim.metrics import collect
from train import state
from train.checkpoint import Checkpoints
from train.sharding import make_mesh, state_shardings

assert jax.device_count() == 4

def run(devices, optim):
    optimizer, _ = build(optim, 100)
    abstract = state.abstract(GUARDED.learns, optimizer)
    shardings = state_shardings(abstract, make_mesh(devices=jax.devices()[:devices]))
    params = jax.device_put(state.transformer.init(GUARDED.model, 0), shardings.params)
    opt_state, rows = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params), []
    update = jax.jit(optimizer.update, out_shardings=(shardings.params, shardings.opt_state))
    for step in range(16):
        scale = 50.0 if step == 14 else 1 + 0.1 * (step % 3)
        grads = jax.tree.map(lambda p: np.float32(scale * np.cos(np.arange(p.size)).reshape(p.shape)), params)
        updates, opt_state = update(jax.device_put(grads, shardings.params), opt_state, params, loss=1.0)
        rows.append([float(value) for value in collect(opt_state).values()])
    return abstract, shardings, state.TrainState(jax.numpy.int32(16), params, opt_state), updates, rows

for kind in ("agc", "adagc", "zclip"):
    clip = ClipConfig(kind, agc_ratio=0.1, adagc_warmup=5, zclip_warmup=5)
    optim = dataclasses.replace(OPTIM, clip=clip)
    (abstract, shardings, one, ours, rows), (_, _, four, theirs, others) = run(1, optim), run(4, optim)
    np.testing.assert_allclose(rows, others, rtol=1e-3, atol=1e-4)
    assert collect(four.opt_state)["skipped_steps"] == 1
    for a, b in zip(jax.tree.leaves((one, ours)), jax.tree.leaves((four, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    writer = Checkpoints(Path({folder!r}) / kind, keep_last=1)
    writer.save(four, 16, {{}})
    writer.close()
    restored = Checkpoints(Path({folder!r}) / kind).restore(abstract, shardings, 16)
    for a, b in zip(jax.tree.leaves(four), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(a, b)
print("four devices agree with one")
"""


@pytest.mark.slow
def test_norms_are_those_of_all_devices(tmp_path):
    """Every kind of clipping, spikes skipped; what they remember is saved from four devices and restored on one."""
    here = Path(__file__).parent
    path = [str(folder) for folder in (here, here.parent, here.parent.parent)]
    script = SCRIPT.format(path=path, folder=str(tmp_path / "checkpoints"))
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", script]
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **flags}, timeout=300, check=False
    )
    assert "four devices agree with one" in result.stdout, result.stderr[-2000:]
