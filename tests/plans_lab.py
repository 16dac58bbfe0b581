"""A small run to plan; the seven plans that estimates are held to, and what the compiler said of them.

tests/scaling/compiled.json has that, recorded anew in about 12 minutes on two cores, where libtpu or the train step
has changed, by

    PYTHONPATH=. JAX_PLATFORMS=cpu python tests/plans_lab.py --workdir=runs/plans
"""

import argparse
import importlib.metadata
import json
from pathlib import Path
from typing import Any, NamedTuple

import launch
from core.files import read_json, write_json
from lab import ROOT
from scaling.chips import Topology, parse_topology
from scaling.estimate import Estimate, estimate
from scaling.plan import chosen, compile_cached, read_times
from train.run import Run, make_program
from train.sharding import abstract_mesh

RECORDED = ROOT / "tests" / "scaling" / "compiled.json"


# A small model for tests that compile.
CONFIG = """
from ml_collections import ConfigDict
from experiments import smoke
def get_config():
    config = smoke.get_config()
    with config.unlocked():
        config.model = {model}
        config.batch.rows, config.batch.row_length = 32, 512
        config.train.microbatches = 2
        config.optim.warmup_steps = 1
    return config
"""
MODEL = {
    "vocab_size": 4096,
    "num_layers": 6,
    "d_model": 512,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 128,
    "d_ff": 2048,
    "dtype": "bfloat16",
    "remat": "branches",
}


def plan(config, workdir, *flags):
    """The verb; its exit code and plan.json."""
    code = launch.main(["plan", f"--config={config}", f"--workdir={workdir}", *flags])
    path = workdir / "plan" / "plan.json"
    return code, json.loads(path.read_text()) if path.exists() else None


class Planned(NamedTuple):
    """A config, what is changed of it, and where it would run."""

    config: str
    topology: str
    slices: int = 1
    changed: dict[str, Any] = {}  # noqa: RUF012 (read only)

    @property
    def place(self) -> Topology:
        return parse_topology(self.topology, self.slices)

    @property
    def run(self) -> Run:
        flags = [f"--config.{key}={value}" for key, value in self.changed.items()]
        arguments = launch.parse_arguments([f"--config={ROOT}/experiments/{self.config}.py", *flags])
        return launch.open_experiment(arguments).training

    @property
    def estimate(self) -> Estimate:
        run, place = self.run, self.place
        mesh, stages = abstract_mesh(run.mesh, place.devices, place.slices), run.batch.plan(run.train.steps)
        return estimate(run, place, stages[chosen(stages, None)], make_program(run, mesh).abstract, mesh)


PLANS = {
    "SmolLM3-3B, v5e:16x16": Planned("smollm3_3b", "v5e:16x16"),
    "SmolLM3-3B, v5p:4x4x4": Planned("smollm3_3b", "v5p:4x4x4"),
    "SmolLM3-3B, v6e:16x16": Planned("smollm3_3b", "v6e:16x16"),
    "SmolLM3-3B, 2 slices of v5e:16x16": Planned("smollm3_3b", "v5e:16x16", 2, {"batch.rows": 1024}),
    "SmolLM3-3B at 65,536, v5e:16x16": Planned("smollm3_64k", "v5e:16x16"),
    "Baguettotron, v5e:4x4": Planned("baguettotron", "v5e:4x4"),
    "Llama 2 7B, v4:4x4x4": Planned("llama2_7b", "v4:4x4x4"),
}


def record(planned: Planned, workdir: Path) -> dict[str, Any]:
    """Bytes of a device and seconds of a step, of a plan that is compiled into the workdir unless it is there."""
    run, stages = planned.run, planned.run.batch.plan(planned.run.train.steps)
    number = chosen(stages, None)
    found = compile_cached(run, planned.place, number, workdir)
    times = read_times(found, run, planned.place, stages[number])
    memory = {name: found["memory"][name] for name in ("arguments", "temporaries")}
    seconds = {name: round(getattr(times, name), 6) for name in ("compute", "exposed", "attention", "total")}
    return memory | seconds | {"kernels": round(sum(times.kernels.values()), 6)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "plans")
    workdir = parser.parse_args().workdir
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    plans = {name: record(planned, workdir) for name, planned in PLANS.items()}
    command = "PYTHONPATH=. JAX_PLATFORMS=cpu python tests/plans_lab.py"
    write_json(RECORDED, {"versions": versions, "command": command, "plans": plans})


def recorded() -> dict[str, Any]:
    """What was written, by the names of PLANS."""
    return read_json(RECORDED)["plans"]


if __name__ == "__main__":
    main()
