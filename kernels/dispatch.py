"""Which implementation of an op runs, and on which part of the arrays.

An op has implementations by name: `reference` (the plain one), `xla` (blocked, for any platform), `tpu` and `gpu`
(kernels), `tpu_interpret` and `gpu_interpret` (those kernels on any platform, step by step and slowly). `auto` is the
platform's kernel and, where there is none or it cannot take the arguments, `xla`, with a warning.
"""

import functools
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from core.errors import UserError

# Mesh axes that split a batch, those that split heads or a vocabulary, and those that split the tokens of a row.
BATCH_AXES = ("replica", "fsdp")
TENSOR_AXES = ("tensor",)
CONTEXT_AXES = ("context",)
PARAMETER_AXES = ("fsdp", "context")  # that split tokens and, for they are not needed there, parameters
KERNELS = ("tpu", "gpu")
LEAST_CAPABILITY = 8.0  # bfloat16 on tensor cores


class Target(NamedTuple):
    """What a computation is traced for."""

    platform: str  # "cpu", "gpu" or "tpu"
    kind: str  # of the device: "cpu", "TPU v5 lite", "NVIDIA H100 80GB HBM3"


def target() -> Target:
    """The devices of the mesh in context, which may be a topology that is not here, else JAX's default device."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.abstract_device is not None:
        return Target(mesh.abstract_device.platform, mesh.abstract_device.device_kind)
    device = jax.config.jax_default_device or jax.devices()[0]
    platform = device if isinstance(device, str) else device.platform
    return Target(platform, platform if isinstance(device, str) else device.device_kind)


def gpu_refusal() -> str | None:
    """What it is about the GPU that is computed for that our kernels cannot take; None on other devices."""
    platform, kind = target()
    if platform != "gpu":
        return None
    if not kind.startswith("NVIDIA"):
        return f"is for NVIDIA GPUs, not {kind}"
    here = (getattr(d, "compute_capability", None) for d in jax.devices() if d.device_kind == kind)
    capability = next(here, None)  # of a GPU that is elsewhere it is not known
    if capability is not None and float(capability) < LEAST_CAPABILITY:
        return f"needs compute capability {LEAST_CAPABILITY} (A100 or newer), and {kind} has {capability}"
    return None


def choose(op: str, known: tuple[str, ...], asked: str, refusals: Mapping[str, str | None]) -> str:
    """The name of the implementation that runs.

    `refusals` says for some implementations what it is in the arguments that they cannot take, or None. Raises
    ValueError on an unknown name, UserError where the one asked for cannot run.
    """
    if asked not in ("auto", *known):
        raise ValueError(f"{op}: unknown implementation {asked!r}; choose from auto, {', '.join(sorted(known))}")
    platform, kind = target()
    if asked != "auto":
        if asked in KERNELS and asked != platform:
            others = ", ".join(sorted(name for name in known if name not in KERNELS))
            raise UserError(f"{op}: implementation {asked!r} does not run on {platform}; choose from auto, {others}")
        if refusal := refusals.get(asked.removesuffix("_interpret")):
            raise UserError(f"{op}: implementation {asked!r} {refusal}; auto picks another")
        _say(logging.INFO, f"{op}: implementation {asked!r}, as asked")
        return asked
    if platform in known and not refusals.get(platform):
        _say(logging.INFO, f"{op}: implementation {platform!r}, picked for {kind}")
        return platform
    if platform == "cpu":
        _say(logging.INFO, f"{op}: implementation 'xla', picked for cpu")
    else:
        why = refusals[platform] if platform in known else "is not there for it"
        _say(logging.WARNING, f"{op}: implementation 'xla' on {kind}, slower than a kernel, which {why}")
    return "xla"


@functools.cache  # so that a choice is said once, not once a layer and trace
def _say(level: int, line: str) -> None:
    logging.getLogger("kernels").log(level, line)


def mesh_axes(names: tuple[str, ...], size: int) -> tuple[str, ...]:
    """Those axes of the mesh in context that split an array's axis of `size`, as many of the first as divide it.

    What is left computes the same on several devices, and the log says so.
    """
    sizes = free_axes()
    axes = tuple(name for name in names if name in sizes)
    taken = axes
    while size % math.prod(sizes[name] for name in taken):
        taken = taken[:-1]
    if taken != axes:
        left = ", ".join(f"{name} ({sizes[name]} devices)" for name in axes[len(taken) :])
        _say(logging.WARNING, f"kernels: mesh axis {left} does not divide {size}, so its devices compute the same")
    return taken


def over_mesh(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`function` on each device's part of its arrays: XLA does not partition a kernel.

    (The compiler for TPUs that are elsewhere does not know `custom_partitioning`.)
    """
    if not free_axes():
        return function
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def free_axes() -> dict[str, int]:
    """Axes of the mesh in context over which nothing is split by hand yet, with more than one device."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types)
    return {name: mesh.shape[name] for name, kind in kinds if kind != AxisType.Manual and mesh.shape[name] > 1}


def parameter_parts(rows: int, axes: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the axes that tokens are split over which split `rows` rows of a parameter too."""
    parts, sizes = tuple(axis for axis in axes if axis in PARAMETER_AXES), free_axes()
    return parts if rows % math.prod(sizes[axis] for axis in parts) == 0 else ()


def sum_onto_parts(gradient: jax.Array, axes: tuple[str, ...], parts: tuple[str, ...]) -> jax.Array:
    """Inside `over_mesh`: the sum of a gradient over `axes`, in float32; of its rows those of this part."""
    total = gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32))
    if parts:
        total = jax.lax.psum_scatter(total, parts, scatter_dimension=0, tiled=True)
    rest = tuple(axis for axis in axes if axis not in parts)
    return (jax.lax.psum(total, rest) if rest else total).astype(gradient.dtype)
