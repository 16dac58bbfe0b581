"""Which implementation of an op runs, and on which part of the arrays.

An op has implementations by name: `reference` (the plain one), `xla` (blocked, for any platform), `tpu` and `gpu`
(kernels), `tpu_interpret` and `gpu_interpret` (those kernels on any platform, step by step and slowly). Unless one is
asked for, the platform's kernel runs and, where there is none or it cannot take the arguments, `xla`, with a warning.
"""

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
from absl import logging
from jax.sharding import AxisType

from core.errors import UserError

# Mesh axes (train/sharding.py) that split a batch, and those that split heads or a vocabulary.
BATCH_AXES = ("replica", "fsdp")
TENSOR_AXES = ("tensor",)
KERNELS = ("tpu", "gpu")


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


def choose(op: str, known: tuple[str, ...], asked: str | None, refusals: Mapping[str, str | None]) -> str:
    """The name of the implementation that runs.

    `refusals` says for some implementations what it is in the arguments that they cannot take, or None. Raises
    ValueError on an unknown name, UserError where the one asked for cannot run.
    """
    if asked is not None and asked not in known:
        raise ValueError(f"{op}: unknown implementation {asked!r}; choose from {', '.join(sorted(known))}")
    platform, kind = target()
    if asked is not None:
        if asked in KERNELS and asked != platform:
            others = ", ".join(sorted(name for name in known if name not in KERNELS))
            raise UserError(f"{op}: implementation {asked!r} does not run on {platform}; choose from {others}")
        if refusals.get(asked):
            raise UserError(f"{op}: implementation {asked!r} {refusals[asked]}; xla takes it")
        _say(logging.INFO, f"{op}: implementation {asked!r}, as asked")
        return asked
    if platform in known and not refusals.get(platform):
        _say(logging.INFO, f"{op}: implementation {platform!r}, picked for {kind}")
        return platform
    if platform == "cpu":
        _say(logging.INFO, f"{op}: implementation 'xla', picked for cpu")
    else:
        why = f"its kernel {refusals[platform]}" if platform in known else "it has no kernel"
        _say(logging.WARNING, f"{op}: implementation 'xla' on {kind}, slower and with more memory: {why}")
    return "xla"


@functools.cache  # so that a choice is said once, not once a layer and trace
def _say(level: int, line: str) -> None:
    logging.log(level, line)


def mesh_axes(names: tuple[str, ...], size: int) -> tuple[str, ...]:
    """Those axes of the mesh in context that split an array's axis of `size`; none where they do not divide it.

    A kernel is not partitioned by XLA: where this gives any axis, it has to run inside `jax.shard_map`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = {name for name, kind in zip(mesh.axis_names, mesh.axis_types) if kind != AxisType.Manual}
    axes = tuple(name for name in names if name in free and mesh.shape[name] > 1)
    return axes if size % math.prod(mesh.shape[name] for name in axes) == 0 else ()
