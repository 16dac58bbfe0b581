"""Checkpoints by Orbax: written beside the running steps, whole or not at all."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from core.errors import UserError
from train.state import TrainState


class Checkpoints:
    """The checkpoints of a run, by the number of steps done."""

    def __init__(self, folder: Path, keep: int | None = None):
        """Opens them for writing, keeping the newest `keep`, or without `keep` for reading beside a writer."""
        options = (
            ocp.CheckpointManagerOptions(read_only=True)
            if keep is None
            else ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        )
        self.folder = folder.absolute()
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    @property
    def latest(self) -> int | None:
        """The newest step saved, None before the first."""
        return self.manager.latest_step()

    def save(self, state: TrainState, step: int) -> None:
        """Starts a save; the arrays may be donated to the next step as soon as this returns."""
        self.manager.save(step, args=ocp.args.StandardSave(state._asdict()))

    def restore(self, abstract: TrainState, shardings: Any, step: int) -> TrainState:
        """The state at `step`, laid out as told."""
        target = jax.tree.map(
            lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
            abstract._asdict(),
            shardings._asdict(),
        )
        try:
            return TrainState(**self.manager.restore(step, args=ocp.args.StandardRestore(target)))
        except (ValueError, OSError, KeyError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise UserError(f"{self.folder / str(step)} cannot be restored ({reason}); remove that folder") from error

    def close(self) -> None:
        """Waits for the save under way."""
        self.manager.wait_until_finished()
        self.manager.close()
