"""What was asked of the data from which step on: a list of records, kept in every checkpoint.

A record says what holds from a step on: the stages, the generations of documents there are, and how many planned
batches are left out at that point. `data/plan.py` lays out what follows from it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import fingerprint, first_difference, read_json, write_json
from data.config import BatchConfig, Stage


@dataclasses.dataclass(frozen=True)
class Record:
    """What holds from `step` on."""

    step: int
    stages: tuple[Stage, ...]  # of the whole run, from step 0
    max_epochs: dict[str, int]
    documents: tuple[str, ...]  # a hash of each generation of documents
    skip: int = 0  # batches that were planned next and are left out

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return sum(stage.steps for stage in self.stages)

    def asks_as(self, other: "Record") -> bool:
        """True where both ask the same of the steps that follow."""
        return (self.stages, self.max_epochs, self.documents) == (other.stages, other.max_epochs, other.documents)


History = tuple[Record, ...]


def ask(config: BatchConfig, steps: int, documents: tuple[str, ...], step: int = 0) -> Record:
    """What a config asks from a step on; `documents` are the generations there are (`Corpus.generations`)."""
    return Record(step, config.plan(steps), config.max_epochs, documents)


def to_json(history: History) -> list[dict[str, Any]]:
    """As it is stored with every checkpoint."""
    return [{**dataclasses.asdict(record), "stages": [s._asdict() for s in record.stages]} for record in history]


def from_json(records: Sequence[Mapping[str, Any]]) -> History:
    """The inverse of `to_json`."""
    return tuple(
        Record(
            **{
                **record,
                "stages": tuple(Stage(**stage) for stage in record["stages"]),
                "documents": tuple(record["documents"]),
            }
        )
        for record in records
    )


def write(path: Path, history: History) -> None:
    """Writes a history with a hash of itself."""
    records = to_json(history)
    write_json(path, {"records": records, "fingerprint": fingerprint(records)})


def read(path: Path) -> History:
    """What `write` wrote."""
    found = read_json(path)
    try:
        if found["fingerprint"] == fingerprint(found["records"]):
            return from_json(found["records"])
    except (KeyError, TypeError):
        pass  # told below, as any other content that was not written here
    raise UserError(f"{path} is damaged; without that file the history of the newest checkpoint holds")


def continue_history(history: History, now: Record, *, amend: bool) -> History:
    """The history with what the config asks `now`, from its step on.

    The same as before changes nothing; something else is refused, or with `amend` appended, in place of records
    from that step on. A run of which nothing is kept, and nothing was amended, begins with what the config asks.
    """
    if not history or (now.step == 0 and len(history) == 1):
        return (dataclasses.replace(now, step=0),)
    last = history[-1]
    if now.documents[: len(last.documents)] != last.documents:
        raise UserError(
            "the documents are not those this run was trained on (data.added may only get longer); "
            "use another --workdir"
        )
    if now.asks_as(last):
        return history
    if not amend:
        raise UserError(
            f"the config contradicts the history of this run ({_difference(last, now)}); `launch.py train --amend` "
            "lets it hold from the next step on, another --workdir begins anew"
        )
    if now.step >= now.steps:
        raise UserError(
            f"{now.step:,} steps are done and the config asks for {now.steps:,}; make the last stage longer"
        )
    kept = tuple(record for record in history if record.step < now.step)
    return kept if kept and now.asks_as(kept[-1]) else (*kept, now)


def skip(history: History, step: int, batches: int) -> History:
    """The history with `batches` left out at `step`: what was planned for them is not read."""
    steps = history[-1].steps
    if step + batches > steps:
        raise UserError(f"step {step + batches:,} is not in this run, whose steps are 1 to {steps:,}")
    if history[-1].step > step:
        raise UserError(
            f"the history changes at step {history[-1].step + 1:,}; only steps from there on can be skipped"
        )
    return (*history, dataclasses.replace(history[-1], step=step, skip=batches))


def _difference(last: Record, now: Record) -> str:
    old, new = to_json((last, now))
    same = {"step": 0, "skip": 0}
    return first_difference({**old, **same}, {**new, **same})
