"""Where arrays live: one mesh of named axes, on one device as on thousands, and which axes split what.

`fsdp` splits parameters, the optimiser's state and rows (Rajbhandari et al. 2020: ZeRO-3); `replica` rows alone, one
part a slice of a TPU, for what travels between slices is then gradients only; `tensor` heads, the features of the
feed-forward layer and the vocabulary; `context` the tokens of a row and, as `fsdp`, parameters. XLA inserts the
communication; `model/sharding.py` says how activations lie at the edges of layers.
"""

import functools
import logging
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from core.errors import UserError
from kernels.dispatch import BATCH_AXES
from optim.groups import path_name
from train.config import AXES, MeshConfig

PARAMETER_AXES = ("fsdp", "context")


class Rule(NamedTuple):
    """Which dimensions of a parameter the mesh splits; the optimiser's moments follow, for their paths end alike."""

    path: str  # pattern
    # L layers, D model (I twice it, E that of a teacher), N and K heads, H head size, F feed-forward, V vocabulary
    dimensions: str = ""
    tensor: str = ""  # the dimension that `tensor` splits
    # Those that `fsdp` and `context` may split, the first that they divide. Summing gradients onto parts of the last
    # dimension makes XLA:TPU sum them whole on every device, twice the traffic.
    parts: str = ""


RULES = (
    Rule(r"/mean_norms/"),  # a number a layer
    # What SOAP and Shampoo keep of stacks of matrices R x C (optim/kronecker.py): a device whole matrices, else rows.
    Rule(r"(^|/)matrices/\w+/((multi_token|distill)/)?layers/[\w/]+$", "LRC", "LR", "LRC"),
    Rule(r"(^|/)mean_square/"),  # of NorMuon: a number a neuron, whole on every device
    Rule(r"(embedding|head)$", "VD", "V", "VD"),
    Rule(r"layers/attention/query$", "LDNH", "N", "D"),
    Rule(r"layers/attention/(key|value)$", "LDKH", "K", "D"),
    Rule(r"layers/attention/output$", "LNHD", "N", "DH"),
    Rule(r"layers/feed_forward/(gate|up)$", "LDF", "F", "D"),
    Rule(r"layers/feed_forward/down$", "LFD", "F", "DF"),
    Rule(r"multi_token/layers/projection$", "LID", "", "I"),
    Rule(r"distill/layers/projection$", "LDE", "", "D"),
    Rule(r"layers/attention/query_bias$", "LNH", "N"),
    Rule(r"layers/attention/(key|value)_bias$", "LKH", "K"),
    Rule(r"layers/feed_forward/(gate|up)_bias$", "LF", "F"),
    Rule(r"(output|down)_bias$"),  # of the width of the residual stream, as norms: whole on every device
    Rule(r"_norm/(scale|bias)$"),
    Rule(r"(^|/)(step|count|mean|variance|(values|window)/\w+)$"),
    Rule(r"/(level|trend)_LN$"),  # of optim/adaptive.py
)


def make_mesh(config: MeshConfig = MeshConfig(), devices: list[Any] | None = None) -> Mesh:  # noqa: B008 (frozen)
    """The mesh that `config` asks for, on all devices of the run or on those given."""
    devices = list(devices if devices is not None else jax.devices())
    slices = count_slices(devices)
    sizes = _sizes(config, len(devices), slices)
    if slices > 1:  # replica is the outer axis, and goes over the network between slices
        inner = (sizes[0] // slices, *sizes[1:])
        arranged = mesh_utils.create_hybrid_device_mesh(
            inner, (slices, 1, 1, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        arranged = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def count_slices(devices: list[Any]) -> int:
    """Of a TPU. (A GPU has a slice_index too, its host's.)"""
    return len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"}) or 1


def abstract_mesh(config: MeshConfig, devices: int, slices: int = 1) -> AbstractMesh:
    """The mesh that `config` asks for on so many devices, wherever they are: enough to lay a state out on."""
    return AbstractMesh(_sizes(config, devices, slices), AXES)


def _sizes(config: MeshConfig, devices: int, slices: int) -> tuple[int, ...]:
    """Of every axis; refuses a mesh that is not the devices."""
    asked = {name: getattr(config, name) for name in AXES}
    asked["replica"] = asked["replica"] or slices
    if asked["replica"] % slices:
        raise UserError(f"config mesh.replica={asked['replica']} is not a multiple of the {slices} slices")
    others = math.prod(size for name, size in asked.items() if name != "fsdp")
    asked["fsdp"] = asked["fsdp"] or max(1, devices // others)
    if math.prod(asked.values()) != devices:
        product = " x ".join(f"{name} {size}" for name, size in asked.items() if size > 1) or "1 device"
        remedy = f"their product must divide {devices}"
        if config.fsdp and devices % others == 0:
            remedy = f"mesh.fsdp={devices // others} is, or 0, which takes what the others leave"
        raise UserError(f"config mesh: {product} is not the {devices} devices; {remedy}")
    return tuple(asked.values())


def state_shardings(abstract: Any, mesh: Mesh, config: MeshConfig = MeshConfig()) -> Any:  # noqa: B008 (frozen)
    """The layout of every array of the state.

    An axis that was asked for must divide what it splits; where it was left to be filled up, an array that it does
    not divide is kept whole, and the log says so.
    """

    def one(path: tuple[Any, ...], array: jax.ShapeDtypeStruct) -> NamedSharding:
        name = path_name(path)
        rule = next((rule for rule in RULES if re.search(rule.path, name)), None)
        assert rule is not None, f"no sharding rule for {name}; see train/sharding.py"
        sizes = dict(zip(rule.dimensions, array.shape))
        axes: dict[str, tuple[str, ...]] = {}
        for candidates, wanted in ((rule.tensor, ("tensor",)), (rule.parts, PARAMETER_AXES)):
            wanted = tuple(axis for axis in wanted if mesh.shape[axis] > 1)
            if candidates and wanted:
                split = {d: (*axes.get(d, ()), *wanted) for d in candidates}
                fits = (d for d in candidates if sizes[d] % math.prod(mesh.shape[a] for a in split[d]) == 0)
                chosen = next(fits, None)
                if chosen is None:
                    _cannot_split(name, {d: sizes[d] for d in candidates}, wanted, mesh, config)
                else:
                    axes[chosen] = split[chosen]
        return NamedSharding(mesh, P(*(axes.get(d) for d in rule.dimensions)))

    return jax.tree_util.tree_map_with_path(one, abstract)


def offloaded(shardings: Any, abstract: Any) -> Any:
    """The layout of a state whose optimiser lives in the memory of the host; its counters stay on the device."""

    def one(array: jax.ShapeDtypeStruct, sharding: NamedSharding) -> NamedSharding:
        return sharding.with_memory_kind("pinned_host") if array.ndim else sharding

    return shardings._replace(opt_state=jax.tree.map(one, abstract.opt_state, shardings.opt_state))


def _cannot_split(name: str, sizes: dict[str, int], axes: tuple[str, ...], mesh: Mesh, config: MeshConfig) -> None:
    """Refuses what was asked for; says what was not."""
    product = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in axes)
    dimensions = " or ".join(f"{letter}={size}" for letter, size in sizes.items())
    if any(getattr(config, axis) > 1 for axis in axes):
        size = max(sizes.values())
        choices = ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)
        raise UserError(f"config mesh: {product} does not divide {dimensions} of {name}; what does: {choices}")
    _say(f"{name} is whole on every device: mesh axis {product} does not divide {dimensions}")


@functools.cache  # so that it is said once, not for each moment of the optimiser
def _say(line: str) -> None:
    logging.getLogger("mesh").warning(line)


def on_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """The function to be jitted with its mesh in context, where kernels look for what they run on."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return run


def shown(mesh: Mesh) -> str:
    """The axes that split anything, for messages: "fsdp 64 x tensor 4"; nothing on one device."""
    return " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)


def described(mesh: Mesh) -> dict[str, Any]:
    """The devices of a mesh and how they divide the work, for whoever reads of the run elsewhere."""
    devices = list(mesh.devices.flat)
    own = {"device_kind": devices[0].device_kind, "devices": len(devices), "slices": count_slices(devices)}
    return own | {"mesh": dict(mesh.shape)}


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over `replica` and `fsdp`, their tokens over `context`."""
    return NamedSharding(mesh, P(BATCH_AXES, "context"))


def host_rows(sharding: NamedSharding, rows: int) -> np.ndarray:
    """Numbers of the rows of a global batch of which devices of this process hold any part, ascending."""
    whole_rows = NamedSharding(sharding.mesh, P(sharding.spec[0]))
    held = whole_rows.addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in held]))


def to_global(batch: Any, sharding: NamedSharding, rows: int) -> Any:
    """The rows that this process holds (see `host_rows`) as its part of global arrays of `rows` rows.

    (`jax.make_array_from_process_local_data` would want them to be one contiguous stretch of the rows.)
    """
    own = host_rows(sharding, rows)

    def one(local: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            return local[np.searchsorted(own, np.arange(rows)[index[0]])][(slice(None), *index[1:])]

        return jax.make_array_from_callback((rows, *local.shape[1:]), sharding, part)

    return jax.tree.map(one, batch)
