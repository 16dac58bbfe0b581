"""TPU topologies on a CPU host: the real TPU compiler, no TPU.

    compiled = compile_step(run, "v5e:4x4")
    compiled.memory_analysis(), compiled.as_text()
    compile_for_chip("v5e", function, jax.ShapeDtypeStruct((8, 128), "float32"))

`pip install libtpu` (in the extra [test], Linux x86-64) brings the compiler; names are v4:2x2x1, v5e:2x2,
v5p:2x2x1, v6e:2x2, tpu7x:2x2x1 and larger ones.
"""

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from core.errors import UserError
from data.pipeline import Batch, TaughtBatch
from train.run import Run, make_program
from train.sharding import make_mesh, on_mesh

CHIPS = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}

# libtpu asks a metadata server who it is, unless told, and lets one process at a time load it, to guard chips that
# nobody touches here.
HOST = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def topology_devices(name: str, num_slices: int = 1) -> list[Any]:
    """Devices of a topology, to build a mesh on; they can be compiled for, not run on."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the TPU compiler is not installed; run `pip install libtpu` (wheels exist for Linux x86-64)")
    for key, value in HOST.items():
        os.environ.setdefault(key, value)
    options: dict[str, Any] = {"num_slices": num_slices} if num_slices > 1 else {}
    if name.startswith("v4:"):  # by default its two cores are devices of their own, which JAX's meshes refuse
        options["chip_config_name"] = "megacore"
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except (RuntimeError, ValueError) as error:
        raise UserError(f"topology {name} is not known to libtpu ({str(error).splitlines()[0]})") from error


def compile_for_chip(chip: str, function: Callable[..., Any], *shapes: Any) -> jax.stages.Compiled:
    """A function of arrays compiled for one chip, a name in CHIPS; its arguments as pytrees of shapes."""
    mesh = make_mesh(devices=topology_devices(CHIPS[chip])[:1])
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(on_mesh(function, mesh), in_shardings=whole).lower(*shapes).compile()


def compile_step(run: Run, topology: str, num_slices: int = 1) -> jax.stages.Compiled:
    """The true train step of a run, compiled by XLA:TPU for every chip of a topology, from shapes alone."""
    return lower_step(run, topology, num_slices).compile()


def lower_step(run: Run, topology: str, num_slices: int = 1, stage: int = -1) -> jax.stages.Lowered:
    """The step of one of its stages, traced and not compiled yet."""
    program = make_program(run, make_mesh(run.mesh, topology_devices(topology, num_slices)))
    rows = run.batch.plan(run.train.steps)[stage]
    shape = rows.rows, rows.row_length
    batch = Batch(*(jax.ShapeDtypeStruct(shape, dtype) for dtype in (*4 * [jnp.int32], jnp.float32)))
    if run.objective.targets.asked:
        taught = (jax.ShapeDtypeStruct((*shape, run.teach.tokens), dtype) for dtype in (jnp.int32, jnp.float32))
        batch = TaughtBatch(*batch, *taught)
    return program.step.lower(program.abstract, batch, *program.teacher)
