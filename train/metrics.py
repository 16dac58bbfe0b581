"""What the loop writes down: `metrics.jsonl`, the same as TensorBoard events, and the progress bar."""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter

from core.errors import UserError
from core.files import atomic_write
from core.progress import Progress, count
from data.pipeline import Batches
from data.plan import Plan
from train.goodput import Goodput


class Diverged(UserError):
    """Training that came to nothing finite."""


class Journal:
    """Writes rows from step `start` on; rows beyond it come from work that was lost and are removed.

    With several processes only the first writes.
    """

    def __init__(self, folder: Path, start: int, plan: Plan, goodput: Goodput, nonfinite_limit: int = 1):
        self.path, self.plan, self.goodput = folder / "metrics.jsonl", plan, goodput
        self.nonfinite_limit = nonfinite_limit  # steps in a row at which the run ends
        self.writes = jax.process_index() == 0
        self.bar = Progress("train", plan.steps, start=start) if self.writes else None
        self.seconds = 0.0  # of training, over all restarts
        self.step, self.clock = start, time.monotonic()
        if not self.writes:
            return
        found = read_metrics(self.path)
        rows = [row for row in found if row["step"] <= start]
        timed = [row for row in rows if "seconds_setup" in row]
        goodput.resume(timed[-1] if timed else {}, found[-1] if len(found) > len(rows) else {})
        self.seconds = rows[-1]["seconds"] if rows else 0.0
        with atomic_write(self.path, "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        self.file = self.path.open("a", encoding="utf-8")
        self.events = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1 if start else None)

    def log(self, step: int, metrics: Mapping[str, Any], *, write: bool = True) -> None:
        """A row for the update that made the state of `step`; reading the arrays waits for it.

        Without `write` the numbers are only checked. A value that is not finite has no place in JSON and is left out.
        """
        values = {name: _plain(value) for name, value in metrics.items()}
        in_a_row = int(values.get("nonfinite_in_a_row", not math.isfinite(values["loss"])))
        if in_a_row >= self.nonfinite_limit:
            raise Diverged(not_finite(self.plan, step - in_a_row + 1, self.nonfinite_limit))
        if not (write and self.writes):
            return
        now = time.monotonic()
        elapsed, self.clock = now - self.clock, now
        tokens = self.plan.tokens_before(step)
        rate = (tokens - self.plan.tokens_before(self.step)) / elapsed
        self.step, self.seconds = step, self.seconds + elapsed
        finite = {name: value for name, value in values.items() if np.isfinite(value).all()}
        self.write(
            step, {**finite, "tokens": tokens, "tokens_per_second": rate, **self.goodput.row(), **device_memory()}
        )
        skipped = f" · {int(values['skipped_steps']):,} skipped" if values.get("skipped_steps") else ""
        self.bar.update(step, f"loss {values['loss']:.3f} · {count(rate)} tokens/s{skipped}")

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """One row of numbers, or of lists of them, which TensorBoard is not given."""
        if not self.writes:
            return
        row = {"step": step, **values, "seconds": round(self.seconds, 3)}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        for name, value in values.items():
            if not isinstance(value, list):
                self.events.add_scalar(name, value, step)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside is not training time; the steps before it must have been awaited, by `log`."""
        began = time.monotonic()
        yield
        self.clock += time.monotonic() - began

    def close(self) -> None:
        """Flushes, and leaves the last line of the bar."""
        if not self.writes:
            return
        self.file.close()
        self.events.close()
        self.bar.finish(f"{self.step:,} of {self.bar.total:,} steps")


NAMED = 5  # documents in a message


def not_finite(plan: Plan, first: int, limit: int) -> str:
    """Why a run ends: `limit` steps from `first` on had no finite loss or gradients. What was read, what to do."""
    last, shards = first + limit - 1, plan.corpus.shards
    pieces = [found.piece.document for found in Batches(plan).documents(first - 1)]
    names = [shards.document_id(document) for document in dict.fromkeys(pieces)]
    read = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    what = f"step {first:,} were" if limit == 1 else f"steps {first:,} to {last:,} were"
    return (
        f"the loss or the gradients of {what} not finite (optim.skip.nonfinite_limit={limit}), and changed nothing; "
        f"step {first:,} read {read} (`launch.py explain --step={first}` shows more): leave them out with `launch.py "
        f"train --skip={first}:{last}`, or lower optim.learning_rate or optim.clip_norm in another --workdir"
    )


def _plain(value: Any) -> Any:
    """A number, or an array as nested lists of 4 significant digits."""
    if not np.ndim(value):
        return float(value)
    return [_plain(part) if np.ndim(part) else float(f"{part:.4g}") for part in np.asarray(value)]


def device_memory() -> dict[str, int]:
    """The most bytes that a device of this process ever held, where they are counted (not on CPUs)."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [own["peak_bytes_in_use"] for own in stats if "peak_bytes_in_use" in own]
    return {"memory_peak_bytes": max(peaks)} if peaks else {}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows written so far; a last line cut off by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    try:
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except json.JSONDecodeError as error:
        raise UserError(f"{path} holds a line that is not JSON ({error}); restore or remove the file") from error
