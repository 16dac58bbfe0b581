"""Which mesh, microbatches and remat policy: every way that splits a run, by the estimate.

ways = candidates(run, topology, stage)
ranked = rank(run, topology, stage, ways)
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from core.errors import UserError
from data.config import Stage
from scaling.chips import Topology
from scaling.estimate import Estimate, estimate
from train.run import Run, abstract_state, require_split
from train.sharding import abstract_mesh, shown

REMAT = ("none", "dots", "branches", "attention", "full")  # from the most memory to the least
LONG_ROWS = 16_384  # tokens from which on splitting a row is worth a try
MOST_TENSOR, MOST_MICROBATCHES = 8, 64
ESTIMATE_MAY_ERR = 0.15


class Way(NamedTuple):
    """Settings that may change without another result."""

    replica: int
    fsdp: int
    tensor: int
    context: int
    microbatches: int
    remat: str

    @property
    def flags(self) -> dict[str, Any]:
        """By key of the config."""
        mesh = {f"mesh.{name}": getattr(self, name) for name in ("replica", "fsdp", "tensor", "context")}
        return mesh | {"train.microbatches": self.microbatches, "model.remat": self.remat}

    def of(self, run: Run) -> Run:
        """The run, made so."""
        axes = {name: getattr(self, name) for name in ("replica", "fsdp", "tensor", "context")}
        return dataclasses.replace(
            run,
            mesh=dataclasses.replace(run.mesh, **axes),
            train=dataclasses.replace(run.train, microbatches=self.microbatches),
            model=dataclasses.replace(run.model, remat=self.remat),
        )


class Ranked(NamedTuple):
    """A way and what the estimate says of it."""

    way: Way
    mesh: str
    estimate: Estimate

    @property
    def shown(self) -> str:
        """In a line."""
        parts = f"{self.way.microbatches} microbatches" if self.way.microbatches > 1 else "whole batches"
        return f"{self.mesh}, {parts}, remat {self.way.remat}"


def candidates(run: Run, topology: Topology, stage: Stage) -> Iterator[Way]:
    """Every way that the rows, heads and devices can be split, by powers of two."""
    devices, model = topology.devices, run.model
    contexts = _powers(64) if stage.row_length >= LONG_ROWS or stage.rows < devices else [1]
    for tensor in _powers(MOST_TENSOR):
        if model.num_kv_heads % tensor or model.d_ff % tensor or model.vocab_size % tensor:
            continue
        for context in contexts:
            if stage.row_length % (context * 128) and context > 1:
                continue
            if devices % (tensor * context):
                continue
            rest = devices // (tensor * context)
            for replica in (topology.slices * n for n in _powers(rest // topology.slices or 1)):
                if rest % replica or stage.rows % rest:
                    continue
                for microbatches in _powers(min(MOST_MICROBATCHES, stage.rows // rest)):
                    if stage.rows % (rest * microbatches) == 0:
                        for remat in REMAT:
                            yield Way(replica, rest // replica, tensor, context, microbatches, remat)


def _powers(most: int) -> list[int]:
    return [1 << n for n in range(int(math.log2(max(1, most))) + 1)]


def rank(run: Run, topology: Topology, stage: Stage, ways: Iterable[Way]) -> list[Ranked]:
    """The quickest first; those of equal time by memory. What the run or the rules of sharding refuse is left out."""
    abstract, ranked = abstract_state(run), []
    for way in ways:
        own = way.of(run)
        mesh = abstract_mesh(own.mesh, topology.devices, topology.slices)
        try:
            require_split(own, mesh)  # all its stages, not only the one that is planned
            ranked.append(Ranked(way, shown(mesh) or "1 device", estimate(own, topology, stage, abstract, mesh)))
        except UserError:  # rows of a stage, or an axis that does not divide a parameter
            continue
    return sorted(ranked, key=lambda one: (float(f"{one.estimate.seconds:.3g}"), one.estimate.total))


def fitting(ranked: list[Ranked], topology: Topology, margin: float = 0.0) -> list[Ranked]:
    """Those whose estimate leaves a share of the memory free."""
    return [one for one in ranked if one.estimate.total <= (1 - margin) * topology.chip.usable]


def asked(run: Run, topology: Topology) -> Way | None:
    """The way that the config has; None where its mesh is not that of the devices."""
    try:
        mesh = abstract_mesh(run.mesh, topology.devices, topology.slices).shape
    except UserError:
        return None
    return Way(*(mesh[name] for name in Way._fields[:4]), run.train.microbatches, run.model.remat)


def nearest(run: Run, topology: Topology, stage: Stage) -> Ranked | None:
    """The way that fits, surely, with the fewest settings changed; None where there is none."""
    ranked = rank(run, topology, stage, candidates(run, topology, stage))
    now = asked(run, topology)

    def changed(one: Ranked) -> tuple[int, int, float]:
        differs = [now is None or getattr(one.way, name) != getattr(now, name) for name in Way._fields]
        return (sum(differs[:4]), sum(differs[4:]), one.estimate.seconds)

    others = [one for one in fitting(ranked, topology, margin=ESTIMATE_MAY_ERR / 2) if one.way != now]
    return min(others, key=changed, default=None)


def flags_for(way: Way, run: Run, topology: Topology) -> str:
    """What to add to the command to have a way, as far as it differs."""
    now = asked(run, topology)
    has = now.flags if now else {}
    return " ".join(f"--config.{key}={value}" for key, value in way.flags.items() if value != has.get(key))
