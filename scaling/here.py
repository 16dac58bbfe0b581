"""What shapes say of a run on the devices that it was trained on."""

from collections.abc import Mapping
from typing import Any

from scaling.chips import Topology, chip_of
from scaling.estimate import estimate
from scaling.plan import chosen
from train.config import MeshConfig
from train.run import Run, abstract_state
from train.sharding import abstract_mesh


def predict(run: Run, trained_on: Mapping[str, Any]) -> dict[str, Any] | None:
    """Seconds of a step of the stage with the most tokens, and bytes of one device; None where no peak is known.

    `trained_on` is what `train/sharding.py: described` said of the mesh.
    """
    kind, devices, slices = (trained_on[name] for name in ("device_kind", "devices", "slices"))
    chip = chip_of(kind)
    if chip is None:
        return None
    mesh = abstract_mesh(MeshConfig(**trained_on["mesh"]), devices, slices)
    there = Topology(kind, chip, slices, devices // slices)
    stages = run.batch.plan(run.train.steps)
    own = estimate(run, there, stages[chosen(stages, None)], abstract_state(run), mesh)
    return {"seconds": own.seconds, "bytes": own.total}
