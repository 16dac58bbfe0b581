"""Where arrays live: one mesh with an `fsdp` axis, on one device as on many."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from optim.groups import path_name

# Path pattern and layout of every parameter; the optimiser's moments follow, their paths end alike.
RULES = (
    (r"embedding$", P(None, "fsdp")),  # [V, D]
    (r"layers/attention/(query|key|value)$", P(None, "fsdp", None, None)),  # [L, D, N, H]
    (r"layers/attention/output$", P(None, None, None, "fsdp")),  # [L, N, H, D]
    (r"layers/feed_forward/(gate|up)$", P(None, "fsdp", None)),  # [L, D, F]
    (r"layers/feed_forward/down$", P(None, None, "fsdp")),  # [L, F, D]
    (r"_norm/scale$", P()),  # [L, D] and [D]
    (r"(^|/)(step|count)$", P()),
)


def make_mesh(devices: list[Any] | None = None) -> Mesh:
    """All devices on the `fsdp` axis."""
    devices = devices if devices is not None else jax.devices()
    return jax.make_mesh((len(devices),), ("fsdp",), axis_types=(AxisType.Auto,), devices=devices)


def state_shardings(abstract: Any, mesh: Mesh) -> Any:
    """The layout of every array of the state; one whose axis the mesh does not divide is kept whole."""

    def one(path: tuple[Any, ...], array: jax.ShapeDtypeStruct) -> NamedSharding:
        name = path_name(path)
        spec = next((spec for pattern, spec in RULES if re.search(pattern, name)), None)
        assert spec is not None, f"no sharding rule for {name}; see train/sharding.py"
        sizes = zip(array.shape, spec)
        divides = all(size % mesh.shape[axis] == 0 for size, axis in sizes if axis is not None)
        return NamedSharding(mesh, spec if divides else P())

    return jax.tree_util.tree_map_with_path(one, abstract)


def on_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """The function to be jitted with its mesh in context, where kernels look for what they run on."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return run


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over `fsdp`."""
    return NamedSharding(mesh, P("fsdp"))


def host_rows(sharding: NamedSharding, rows: int) -> np.ndarray:
    """Numbers of the rows of a global batch that devices of this process hold, ascending."""
    held = sharding.addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in held]))


def to_global(batch: Any, sharding: NamedSharding, rows: int) -> Any:
    """The rows that this process holds (see `host_rows`) as its part of global arrays of `rows` rows."""
    own = host_rows(sharding, rows)

    def one(local: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            return local[np.searchsorted(own, np.arange(rows)[index[0]])]

        return jax.make_array_from_callback((rows, *local.shape[1:]), sharding, part)

    return jax.tree.map(one, batch)
