"""What shapes say of a run on the devices that are here."""

from typing import Any

import jax

from optim.build import build
from scaling.chips import Topology, chip_of
from scaling.estimate import estimate
from train import state
from train.run import Run
from train.sharding import abstract_mesh


def predict(run: Run) -> dict[str, Any] | None:
    """Seconds of a step of the last stage and bytes of one device; None where no peak of the devices is known."""
    devices = jax.devices()
    chip = chip_of(devices[0].device_kind)
    if chip is None:
        return None
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    here = Topology(devices[0].device_kind, chip, slices, len(devices) // slices)
    mesh = abstract_mesh(run.mesh, here.devices, here.slices)
    optimizer, _ = build(run.optim, run.steps)
    own = estimate(run, here, run.batch.plan(run.train.steps)[-1], state.abstract(run.model, optimizer), mesh)
    return {"seconds": own.seconds, "bytes": own.total}
