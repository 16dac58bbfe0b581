"""NVIDIA GPUs on a CPU host: XLA's own compiler for them, no GPU.

    compiled = compile_for_gpu("h200", function, jax.ShapeDtypeStruct((8, 128), "bfloat16"))

`pip install jax-cuda13-plugin jax-cuda13-pjrt`, in JAX's version, brings the compiler (Linux). What XLA would time on
a GPU, such as variants of matrix products, it leaves at its defaults.
"""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from core.errors import UserError
from train.sharding import make_mesh, on_mesh


class Chip(NamedTuple):
    """What the compiler has to know, from NVIDIA's data sheets and the CUDA programming guide."""

    name: str
    capability: tuple[int, int]
    cores: int
    shared_memory: int  # bytes that a block may have; a core has 1,024 more
    l2: int
    bandwidth: float  # bytes a second


CHIPS = {
    "a100": Chip("NVIDIA A100-SXM4-80GB", (8, 0), 108, 166_912, 40 << 20, 2.04e12),
    "l4": Chip("NVIDIA L4", (8, 9), 58, 101_376, 48 << 20, 0.3e12),
    "h200": Chip("NVIDIA H200", (9, 0), 132, 232_448, 50 << 20, 4.8e12),
    "b200": Chip("NVIDIA B200", (10, 0), 148, 232_448, 126 << 20, 8e12),
}


def gpu_device(chip: str) -> Any:
    """A GPU to build a mesh on, a name in CHIPS; it can be compiled for, not run on."""
    if not all(importlib.util.find_spec(name) for name in ("jax_plugins", "jax_plugins.xla_cuda13")):
        packages = "jax-cuda13-plugin and jax-cuda13-pjrt"
        raise UserError(f"the CUDA compiler is not installed; install {packages} in version {jax.__version__}")
    return topologies.get_topology_desc("", "cuda", target_config=_target(CHIPS[chip]), topology="1x1x1").devices[0]


def compile_for_gpu(chip: str, function: Callable[..., Any], *shapes: Any) -> jax.stages.Compiled:
    """A function of arrays compiled for one GPU, a name in CHIPS; its arguments as pytrees of shapes."""
    mesh = make_mesh(devices=[gpu_device(chip)])
    jitted = jax.jit(on_mesh(function, mesh), in_shardings=NamedSharding(mesh, PartitionSpec()))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # Pallas, too, asks for the chip when it lowers
        return jitted.lower(*shapes).compile()


def _target(chip: Chip) -> str:
    """XLA's description of a GPU, stream_executor.GpuTargetConfigProto as text."""
    major, minor = chip.capability
    accelerated = "feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    return f"""
        platform_name: "CUDA" device_description_str: "{chip.name}" dnn_version_info {{ major: 9 minor: 10 }}
        gpu_device_info {{
          name: "{chip.name}" cuda_compute_capability {{ major: {major} minor: {minor} {accelerated} }}
          core_count: {chip.cores} fpus_per_core: 128 threads_per_warp: 32
          threads_per_block_limit: 1024 threads_per_core_limit: {1536 if chip.capability == (8, 9) else 2048}
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          shared_memory_per_block: 49152 shared_memory_per_block_optin: {chip.shared_memory}
          shared_memory_per_core: {chip.shared_memory + 1024}
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
          l2_cache_size: {chip.l2} memory_bandwidth: {int(chip.bandwidth)} device_memory_size: 24000000000
          clock_rate_ghz: 1.8 driver_version: "13.0.0" runtime_version: "13.0.0"
          compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
        }}"""
