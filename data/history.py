"""What was asked of the data from which step on: a list of records, kept in every checkpoint.

A record says what holds from a step on: the stages, the generations of documents there are, and how many planned
batches are left out at that point. `data/plan.py` lays out what follows from it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from core.errors import UserError
from core.files import first_difference
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


def continue_history(history: History, now: Record, *, amend: bool) -> History:
    """The history with what the config asks `now`, from its step on.

    The same as before changes nothing; something else is refused, or with `amend` appended.
    """
    if not history or now.step == 0:
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
    return (*history, now)


def skip(history: History, step: int, batches: int) -> History:
    """The history with `batches` left out at `step`: step + i gets what step + batches + i would have got."""
    if history[-1].step > step:
        raise UserError(f"the history changes at step {history[-1].step + 1:,}; only what comes after can be skipped")
    return (*history, dataclasses.replace(history[-1], step=step, skip=batches))


def _difference(last: Record, now: Record) -> str:
    old, new = to_json((last, now))
    same = {"step": 0, "skip": 0}
    return first_difference({**old, **same}, {**new, **same})
