"""Muon on meshes: what one device computes, and what travels. A process of its own, with four virtual CPU devices."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import dataclasses, re, sys
import jax, numpy as np
sys.path.insert(0, {tests!r})
from jax.sharding import NamedSharding, PartitionSpec as P
from muon_test import FEW as PARAMS, FLOAT32, gradients
from optim.muon import scale_by_muon
from train.config import MeshConfig
from train.sharding import make_mesh, on_mesh, state_shardings

GRADS = [gradients(PARAMS, step) for step in range(2)]

def updates(muon, mesh=None):
    state = muon.init(PARAMS)
    if mesh is None:
        step, text = jax.jit(muon.update), ""
    else:
        layout = state_shardings(PARAMS, mesh), state_shardings(state, mesh)
        step = jax.jit(on_mesh(muon.update, mesh), in_shardings=layout, out_shardings=layout)
        state = jax.device_put(state, layout[1])
        text = step.lower(GRADS[0], state).compile().as_text()
    for grads in GRADS:
        out, state = step(grads, state)
    return out, state, text

def bytes_of(text, opcode):
    # Of the results of a kind of exchange.
    total = 0
    for result in re.findall(r"= (.*?) " + opcode + r"(?:-start)?\\(", text):
        for shape in re.findall(r"f32\\[([\\d,]*)\\]", result):
            total += 4 * int(np.prod([int(n) for n in shape.split(",") if n] or [1]))
    return total

one = {{}}
WHOLE = 4 * sum(leaf.size for leaf in jax.tree.leaves(PARAMS))
for split, normuon, sizes in {cases!r}:
    muon = scale_by_muon(dataclasses.replace(FLOAT32, split=split, normuon_b2=normuon))
    want, want_state, _ = one.setdefault((split, normuon), None) or updates(muon)
    one[split, normuon] = want, want_state, ""
    got, got_state, text = updates(muon, make_mesh(MeshConfig(**sizes)))
    for a, b in zip(jax.tree.leaves((want, want_state)), jax.tree.leaves((got, got_state))):
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=repr((split, sizes)))
    key, momentum = (tree["layers"]["attention"]["key"] for tree in (got, got_state.momentum))
    assert momentum.sharding.is_equivalent_to(key.sharding, 4)
    parts = 4 // sizes.get("replica", 1)
    assert np.prod(key.sharding.shard_shape(key.shape)) == key.size // parts
    moved, gathered = bytes_of(text, "all-to-all"), bytes_of(text, "all-gather")
    ways = bool(sizes.get("fsdp", sizes.get("context"))) + ("tensor" in sizes)
    neurons = 0.05 * bool(normuon)
    held = WHOLE / parts if "replica" in sizes else 0  # replicas took different matrices
    assert moved <= 0.7 * WHOLE * ways, (moved, WHOLE)  # a quarter there and back, of padded stacks
    assert gathered <= 1.4 * held + neurons * WHOLE, (gathered, WHOLE)
    print("as one device")
"""

FEW = (("projection", 0.95, {"replica": 2, "fsdp": 2}),)
ALL = (
    ("projection", 0.95, {"fsdp": 2, "tensor": 2}),
    ("projection", 0.0, {"fsdp": 4}),
    ("projection", 0.0, {"context": 4}),
    ("projection", 0.95, {"context": 2, "tensor": 2}),
    ("head", 0.0, {"fsdp": 2, "tensor": 2}),
    ("head", 0.0, {"replica": 2, "tensor": 2}),
    ("head", 0.95, {"replica": 4}),
)


def update_on(cases):
    """Runs the script with four devices."""
    script = SCRIPT.format(tests=str(Path(__file__).parent), cases=cases)
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=600, check=False
    )
    assert result.stdout.count("as one device") == len(cases), result.stdout + result.stderr[-3000:]


def test_meshes_update_as_one_device():
    update_on(FEW)


@pytest.mark.slow
def test_all_meshes_update_as_one_device():
    update_on(ALL)
