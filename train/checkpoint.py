"""Checkpoints by Orbax: written beside the running steps, whole or not at all."""

import logging
import shutil
from pathlib import Path
from typing import Any

import absl.logging
import jax
import orbax.checkpoint as ocp

from core.errors import UserError
from train.state import TrainState


class _NotOrbax(logging.Filter):
    """Orbax logs what it also raises, tracebacks included, and comments on its own options."""

    def filter(self, record: logging.LogRecord) -> bool:
        """False for what Orbax logs."""
        return "orbax" not in record.pathname


absl.logging.get_absl_logger().addFilter(_NotOrbax())


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
        size = sum(array.nbytes for array in jax.tree.leaves(state))
        free = shutil.disk_usage(self.folder).free
        if free < size:
            raise UserError(
                f"{self.folder}: no space is left on the disk for a checkpoint of {size / 1e6:,.1f} MB "
                f"({free / 1e6:,.1f} MB free); make room, the same command continues"
            )
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
