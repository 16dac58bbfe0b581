"""Where the wall-clock time of a run goes: every second belongs to exactly one kind."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Literal, get_args

Kind = Literal["setup", "compile", "step", "data", "checkpoint", "eval", "rework"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PREFIX = "seconds_"  # of the columns in metrics.jsonl


class Goodput:
    """Seconds by kind over all restarts of a run: setup, compile, step, data wait, checkpoint, eval, and rework.

    Rework is what a killed process spent on steps after its last checkpoint, which are done again.
    """

    def __init__(self):
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self.kind: Kind = "setup"
        self.clock = time.monotonic()

    def resume(self, kept: Mapping[str, float], lost: Mapping[str, float]) -> None:
        """Adds what the row of the checkpoint says, and as rework what rows beyond it spent in addition."""
        for kind in KINDS:
            self.seconds[kind] += kept.get(PREFIX + kind, 0.0)
        if lost:
            spent = (sum(row.get(PREFIX + kind, 0.0) for kind in KINDS) for row in (lost, kept))
            self.seconds["rework"] += max(0.0, next(spent) - next(spent))

    def switch(self, kind: Kind) -> None:
        """From now on time belongs to `kind`."""
        now = time.monotonic()
        self.seconds[self.kind] += now - self.clock
        self.kind, self.clock = kind, now

    @contextlib.contextmanager
    def on(self, kind: Kind) -> Iterator[None]:
        """Time inside belongs to `kind`, afterwards to what it belonged to before."""
        before = self.kind
        self.switch(kind)
        try:
            yield
        finally:
            self.switch(before)

    def row(self) -> dict[str, float]:
        """Columns for metrics.jsonl, up to now."""
        self.switch(self.kind)
        return {PREFIX + kind: round(seconds, 3) for kind, seconds in self.seconds.items()}


def read(row: Mapping[str, float]) -> dict[str, float]:
    """Seconds by kind from a row of metrics.jsonl; empty where it holds none."""
    return {kind: row[PREFIX + kind] for kind in KINDS if PREFIX + kind in row}
