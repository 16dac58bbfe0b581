"""Checkpoints: Orbax writes the arrays beside the running steps; whole and verified, or not there at all.

checkpoints/120/              appears by one rename, when all that it holds is on the disk
    state/                    the arrays, by Orbax
    record.json               what the caller wants to know again at this step
    manifest.json             size and hash of the files, shape, dtype and fingerprint of the arrays, its own hash
checkpoints/.150.part/        a save under way, or one that was killed
checkpoints/.90.deleted/      on its way out
checkpoints/110.damaged-1/    set aside
"""

import errno
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from core.errors import UserError
from core.files import MANIFEST
from core.progress import say
from train import fingerprint as arrays
from train.manifest import (
    FORMAT,
    DamagedCheckpoint,
    check_files,
    describe,
    disk_full,
    files_of,
    may_pass,
    measure,
    read,
    read_manifest,
    require_same,
    seal,
    sync,
    sync_one,
)
from train.state import Parameters, TrainState

S = TypeVar("S", TrainState, Parameters)
STATE, RECORD = "state", "record.json"
FILE_BYTES = 1 << 27  # Orbax holds what goes into one file of arrays
CHUNKED = ocp.SaveArgs(chunk_byte_size=1 << 23)  # a large array is compressed in pieces, not whole


class _NotOrbax(logging.Filter):
    """Orbax logs what it also raises, tracebacks included, and comments on its own options.

    Where one of many reads or writes fails, asyncio tells of all the others, for which nobody waits any more.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """False for what comes from Orbax or TensorStore."""
        error = str(record.exc_info[1]) if record.exc_info else ""
        text = f"{record.pathname} {record.getMessage()} {error}" if record.name == "asyncio" else record.pathname
        return not any(name in text.lower() for name in ("orbax", "tensorstore", "ocdbt"))


def _without_abandoned(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """TensorStore also reports those others to an event loop that Orbax has closed, where they end as "ignored"."""

    def told(ignored: Any) -> None:
        text = str(ignored.exc_value)
        if text != "Event loop is closed" and not any(name in text for name in ("TensorStore", "OCDBT")):
            hook(ignored)

    return told


for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(_NotOrbax())
sys.unraisablehook = _without_abandoned(sys.unraisablehook)


class Restored(NamedTuple):
    """What `restore_newest` found."""

    state: TrainState
    step: int
    record: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run, by the number of steps done.

    With several processes all of them call the same methods; the first alone writes what is not Orbax's.
    """

    def __init__(self, folder: Path, *, keep_last: int | None = None, keep_every: int = 0):
        """Opens them for writing, keeping the newest `keep_last` and every multiple of `keep_every` steps.

        Without `keep_last` they are opened for reading beside a writer, and nothing on the disk is changed.
        """
        self.folder, self.keep_last, self.keep_every = folder.absolute(), keep_last, keep_every
        self.seconds = 0.0  # that the caller waited in `save`
        self.failed: str | None = None  # why the last save is not on the disk
        self.saving: Future | None = None
        if keep_last is not None:
            assert keep_last > 0
            self.orbax: ocp.AsyncCheckpointer | None = None  # made by the first save
            self.limit = 0.0  # gigabytes that it writes at once
            self.thread = ThreadPoolExecutor(1, "checkpoint")
            if _first():
                self.folder.mkdir(parents=True, exist_ok=True)
                self._clean()

    @property
    def steps(self) -> list[int]:
        """The steps with a checkpoint, ascending."""
        names = [path.name for path in self.folder.iterdir() if path.is_dir()] if self.folder.is_dir() else []
        return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)

    @property
    def latest(self) -> int | None:
        """The newest step saved, None before the first."""
        return max(self.steps, default=None)

    def save(self, state: TrainState, step: int, record: Mapping[str, Any]) -> None:
        """Starts a save; the arrays may be donated to the next step as soon as this returns.

        A full disk costs this checkpoint and a warning; other errors are raised by the next call of save or close.
        """
        began = time.monotonic()
        self.wait()
        assert self.keep_last is not None, "opened for reading"
        assert step not in self.steps, f"step {step} is saved already"
        part, self.failed = self.folder / f".{step}.part", None
        body = {"format": FORMAT, "step": step, "arrays": describe(state)}
        text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        size = sum(array.nbytes for array in jax.tree.leaves(state))
        try:
            if _first():
                self._clean()
            free = shutil.disk_usage(self.folder).free
            if not _everywhere(free >= size):
                raise OSError(errno.ENOSPC, f"{size / 1e6:,.1f} MB for a checkpoint, {free / 1e6:,.1f} MB free")
            if _first():
                part.mkdir()
            sums = arrays.start(state)
            self._write(part / STATE, state._asdict())
        except (OSError, ValueError, RuntimeError) as error:
            if not disk_full(error):
                raise
            self._skip(step)
        else:
            structure = jax.tree.map(lambda _: 0, state)  # the arrays may be donated meanwhile
            self.saving = self.thread.submit(self._finish, part, body, text, structure, sums)
        self.seconds += time.monotonic() - began

    def _write(self, folder: Path, saved: dict[str, Any]) -> None:
        """Starts to write about one large array at a time; buffers for all at once would take as much as several."""
        largest = max(array.nbytes for array in jax.tree.leaves(saved)) / 10**9
        if self.orbax is None or largest >= self.limit:
            self.limit = 1.01 * max(largest, 1)  # Orbax refuses an array that is not below
            self.orbax = _make_orbax(self.limit)
        chunked = jax.tree.map(lambda _: CHUNKED, saved)
        self.orbax.save(
            folder, args=ocp.args.PyTreeSave(saved, save_args=chunked, ocdbt_target_data_file_size=FILE_BYTES)
        )

    def wait(self) -> None:
        """Waits for the save under way; raises what went wrong in it."""
        saving, self.saving = self.saving, None
        if saving is not None:
            saving.result()

    def close(self) -> None:
        """Waits for the save under way; raises when the last one did not reach the disk."""
        if self.keep_last is None:
            return
        try:
            self.wait()
        finally:
            self.thread.shutdown()
            if self.orbax is not None:
                self.orbax.close()
            if _first():
                self._clean()
        if self.failed is not None:
            raise UserError(f"{self.failed}; make room, the same command continues from step {self.latest or 0}")

    def record(self, step: int) -> dict[str, Any]:
        """What was saved beside the state at `step`."""
        folder = self.folder / str(step)
        files = read_manifest(folder)["files"]
        check_files(folder, {RECORD: files[RECORD]})
        return json.loads(read(folder, RECORD))

    def check(self, step: int) -> None:
        """Raises DamagedCheckpoint where a file of a checkpoint is missing or not what was saved."""
        folder = self.folder / str(step)
        if not folder.is_dir():
            raise DamagedCheckpoint(folder, "it is missing")
        check_files(folder, read_manifest(folder)["files"])

    def restore(self, abstract: S, shardings: S, step: int) -> S:
        """The state at `step`, laid out as told; `DamagedCheckpoint` when a file or an array is not as saved.

        Of a run's state or of `Parameters`, which leave out whatever else was saved.
        """
        folder = self.folder / str(step)
        self.wait()

        def verify() -> dict[str, Any]:
            manifest = read_manifest(folder)
            saved, asked = manifest["arrays"], describe(abstract)
            if isinstance(abstract, Parameters):
                saved = {name: saved[name] for name in asked if name in saved}
            require_same(folder, saved, asked)
            check_files(folder, manifest["files"])
            return manifest

        manifest = _together(folder, verify)
        target = jax.tree.map(
            lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
            abstract._asdict(),
            shardings._asdict(),
        )
        partial = isinstance(abstract, Parameters)
        state = _together(folder, lambda: type(abstract)(**_read_arrays(folder, target, partial)))
        for name, found in arrays.fingerprints(state).items():
            if found != manifest["arrays"][name]["fingerprint"]:
                raise DamagedCheckpoint(folder, f"array {name} is not what was saved")
        return state

    def restore_newest(self, abstract: TrainState, shardings: Any, at_most: int | None = None) -> Restored | None:
        """The newest undamaged checkpoint, up to step `at_most`; None where there is none at all.

        Damaged ones that are newer are set aside; when all are damaged, nothing is touched.
        """
        damages: dict[int, DamagedCheckpoint] = {}
        tried: set[int] = set()
        while (step := self._choose(at_most, tried)) is not None:
            tried.add(step)
            try:
                record = _together(self.folder / str(step), lambda step=step: self.record(step))
                found = Restored(self.restore(abstract, shardings, step), step, record)
            except DamagedCheckpoint as damage:
                if (self.folder / str(step)).exists():  # else the writer removed it while this process read
                    damages[step] = damage
                continue
            for number, damage in damages.items() if _first() else ():
                aside = f"; set aside as {self._set_aside(number, 'damaged')}" if self.keep_last is not None else ""
                say(f"{damage}{aside}; using step {step:,}")
            return found
        if damages:
            raise UserError(
                f"{damages[max(damages)]}, as is every one of {len(damages)} in {self.folder}; nothing was deleted: "
                "bring back a copy, or use another --workdir"
            )
        return None

    def set_aside_after(self, step: int) -> None:
        """Renames all checkpoints beyond `step` out of the way, to go on from there; nothing is deleted."""
        assert self.keep_last is not None
        self.wait()
        for newer in [number for number in self.steps if number > step] if _first() else ():
            say(f"checkpoint {self.folder / str(newer)} is set aside as {self._set_aside(newer, 'rolled-back')}")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"checkpoints set aside after {step}")

    def _finish(self, part: Path, body: dict[str, Any], text: str, structure: TrainState, sums: jax.Array) -> None:
        """What follows the arrays, on a thread: the other files, the rename, and then what is kept no longer."""
        step = body["step"]
        try:
            self.orbax.wait_until_finished()
            if not _first():
                return
            for name, value in arrays.read(structure, sums).items():
                body["arrays"][name]["fingerprint"] = value
            (part / RECORD).write_text(text, encoding="utf-8")
            body["files"] = {str(path.relative_to(part)): measure(path) for path in files_of(part)}
            (part / MANIFEST).write_bytes(seal(body))
            sync(part)
            part.rename(self.folder / str(step))
            sync_one(self.folder)
        except (OSError, ValueError, RuntimeError) as error:
            if not disk_full(error):
                raise
            self._skip(step)
        else:
            self._retain()

    def _skip(self, step: int) -> None:
        """After a save for which the disk had no room: what it wrote is removed, and the run goes on."""
        self.failed = f"{self.folder}: no space is left on the disk for the checkpoint of step {step:,}"
        if _first():
            self._clean()
        self.orbax = None  # it may hold more errors of the same save, for whoever uses it next
        say(f"warning: {self.failed}; going on without it, the next one tries again")

    def _retain(self) -> None:
        """Removes the checkpoints that need not be kept; a half-deleted one no longer has its name."""
        steps = self.steps
        for step in steps[: -self.keep_last]:
            if not self.keep_every or step % self.keep_every:
                target = self.folder / f".{step}.deleted"
                (self.folder / str(step)).rename(target)
                shutil.rmtree(target)

    def _clean(self) -> None:
        """Removes what killed saves and deletions left.

        Where a save has just failed its other writes may still add files; then the next call removes the rest.
        """
        for pattern in (".*.part", ".*.deleted"):
            for path in self.folder.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

    def _choose(self, at_most: int | None, tried: set[int]) -> int | None:
        """The newest step not tried yet, the same one for all processes."""
        steps = [step for step in self.steps if step not in tried and (at_most is None or step <= at_most)]
        step = max(steps, default=-1)
        if jax.process_count() > 1:
            step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        return step if step >= 0 else None

    def _set_aside(self, step: int, word: str) -> str:
        """Renames a checkpoint to the first free `<step>.<word>-<n>`."""
        number = 1
        while (target := self.folder / f"{step}.{word}-{number}").exists():
            number += 1
        (self.folder / str(step)).rename(target)
        sync_one(self.folder)
        return target.name


def _make_orbax(gigabytes: float) -> ocp.AsyncCheckpointer:
    return ocp.AsyncCheckpointer(
        ocp.PyTreeCheckpointHandler(save_concurrent_gb=gigabytes),
        async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
    )


def _first() -> bool:
    return jax.process_index() == 0


def _everywhere(condition: bool) -> bool:
    """Whether it holds in every process."""
    if jax.process_count() == 1:
        return condition
    return bool(multihost_utils.process_allgather(np.array(condition)).all())


def _together(folder: Path, work: Callable[[], Any]) -> Any:
    """The result of `work`; where it fails in one process, all fail, and none waits for the others in vain."""
    if jax.process_count() == 1:
        return work()
    result, failure = None, None
    try:
        result = work()
    except UserError as error:
        failure = error
    well = _everywhere(failure is None)
    if failure is not None:
        raise failure
    if not well:
        raise DamagedCheckpoint(folder, "another process could not read it")
    return result


def _read_arrays(folder: Path, target: dict[str, Any], partial: bool) -> dict[str, Any]:
    """By Orbax's handler, since its checkpointer waits for other processes where one has failed."""
    try:
        if not partial:
            args = ocp.args.StandardRestore(target)
            return ocp.StandardCheckpointHandler().restore(epath.Path(folder / STATE), args=args)
        laid_out = ocp.checkpoint_utils.construct_restore_args(target)
        args = ocp.args.PyTreeRestore(target, restore_args=laid_out, partial_restore=True)
        return ocp.PyTreeCheckpointHandler().restore(epath.Path(folder / STATE), args=args)
    except Exception as error:
        cause = error.__cause__ if type(error) is Exception else error  # Orbax wraps what a read gave
        if not isinstance(cause, (ValueError, KeyError, FileNotFoundError)) or may_pass(cause):
            raise
        reason = str(cause).strip().splitlines()[0][:200]
        raise DamagedCheckpoint(folder, f"its arrays cannot be read: {reason}") from error
