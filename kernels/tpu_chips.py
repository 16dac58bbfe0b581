"""What kernels have to know of a TPU, by JAX's device_kind."""

from typing import NamedTuple

from kernels.dispatch import target

MIB = 1 << 20


class Tpu(NamedTuple):
    """One device."""

    vmem_bytes: int  # of a core
    cores: int  # that a device has
    matrix_unit: int  # rows and columns


OLDEST = Tpu(16 * MIB, 1, 128)
TPUS = {  # jax.experimental.pallas.tpu.TpuInfo
    "TPU v4": Tpu(16 * MIB, 2, 128),
    "TPU v5 lite": Tpu(128 * MIB, 1, 128),  # v5e
    "TPU v5e": Tpu(128 * MIB, 1, 128),
    "TPU v5": Tpu(64 * MIB, 2, 128),  # v5p
    "TPU v5p": Tpu(64 * MIB, 2, 128),
    "TPU v6 lite": Tpu(128 * MIB, 1, 256),  # v6e
    "TPU v6e": Tpu(128 * MIB, 1, 256),
    "TPU7x": Tpu(64 * MIB, 1, 256),
}


def chip() -> Tpu:
    """The one that is computed for: of an unknown one what all of them have, for an interpreted kernel a v5e."""
    platform, kind = target()
    return TPUS.get(kind, OLDEST) if platform == "tpu" else TPUS["TPU v5e"]
