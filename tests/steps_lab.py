"""What tests of whole steps share: gradients of a batch on one device and on several."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lab import on_devices
from model import transformer
from train.run import Run, make_program
from train.sharding import batch_sharding, make_mesh, on_mesh
from train.step import accumulate

MESHES = {"fsdp": 4}, {"replica": 2, "tensor": 2}, {"context": 4}, {"fsdp": 2, "context": 2}  # of four devices

Found = dict[str, np.ndarray]  # gradients and metrics by name


def gradients(run: Run, batch: Any, devices: int = 1) -> Found:
    """Of every parameter, as a step's optimiser gets them, and the sums of the metrics; a teacher is a fresh one."""
    mesh = make_mesh(run.mesh, jax.devices()[:devices])
    program, learns = make_program(run, mesh), run.learns
    shardings = program.shardings.params
    taught_by = [
        jax.jit(functools.partial(transformer.init, run.teacher.model, 5), out_shardings=_of(laid_out))()
        for laid_out in program.teacher
    ]

    def compute(params, batch, *teacher):
        counts = learns.counts(batch)
        loss = functools.partial(learns.loss, counts=counts, step=1, teacher=teacher[0] if teacher else None)
        grads, measured = accumulate(loss, params, batch, counts, run.train.microbatches, shardings)
        return {"gradients": grads, "metrics": measured.sums}

    params = jax.jit(lambda: learns.init(run.seed), out_shardings=shardings)()
    found = jax.jit(on_mesh(compute, mesh))(params, jax.device_put(batch, batch_sharding(mesh)), *taught_by)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(found)}


def _of(laid_out: Any) -> Any:
    return jax.tree.map(lambda own: own.sharding, laid_out)


def assert_alike(found: Found, expected: Found) -> None:
    """Gradients leaf by leaf, within 1e-5 of the largest number of each; sums of the metrics within 1e-4.

    A z-loss and a divergence are differences of sums of the size of the loss, and have their last bits.
    """
    assert found.keys() == expected.keys()
    for name, right in expected.items():
        largest, more = np.abs(right).max(), 0.0
        assert largest > 0 or "accuracy" in name, name
        if "z_loss" in name or "distill_loss" in name:
            more = 1e-6 * expected["['metrics']['loss']"]
        bound = 1e-5 if "gradients" in name else 1e-4
        np.testing.assert_allclose(found[name], right, rtol=0, atol=bound * largest + more, err_msg=name)


SCRIPT = """
import sys
import numpy as np
sys.path.insert(0, {tests!r})
from steps_lab import assert_alike, gradients
from train.config import MeshConfig
from {module} import batch_of, make_run

for kind, mesh in {cases!r}:
    found = gradients(make_run(kind, mesh=MeshConfig(**mesh)), batch_of(0), 4)
    assert_alike(found, dict(np.load({folder!r} + f"/{{kind}}.npz")))
    print("as one device:", kind, mesh)
"""


def assert_as_one_device(test: str, cases: tuple, alone: Any, folder: Path) -> None:
    """The file of a `test` has `make_run(kind, ...)` and `batch_of(step)`; `alone(kind)` is what one device found."""
    for kind in {kind for kind, _ in cases}:
        np.savez(folder / f"{kind}.npz", **alone(kind))
    at = Path(test)
    script = SCRIPT.format(tests=str(at.parent), module=at.stem, cases=cases, folder=str(folder))
    assert on_devices(4, script, timeout=1800).count("as one device:") == len(cases)
