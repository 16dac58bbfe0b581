"""What the TPU's compiler says of every kernel, for every chip: a part of docs/kernels.md. No TPU is needed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
from jax.experimental.pallas import tpu as pltpu

from kernels.attention.api import attention
from kernels.cross_entropy.api import linear_cross_entropy
from kernels.newton_schulz.api import newton_schulz
from kernels.rope.api import rotate
from kernels.tpu_chips import MIB, TPUS
from scaling import bundles
from scaling.topology import CHIPS, compile_for_chip, topology_devices

LIMITS = (16, 32, 64, 128)  # MiB


class Compiled(NamedTuple):
    """An op's kernels on a chip."""

    op: str
    chip: str
    vmem: int | None  # the least of LIMITS that was enough, in MiB; None where not even all of the chip's was
    kernels: dict[str, bundles.Schedule]


def ops() -> dict[str, tuple[Callable[..., Any], list[jax.ShapeDtypeStruct]]]:
    """By name: a function of one row of SmolLM3-3B's shapes, forward and backward, and its arguments."""

    def shape(*sizes, dtype="bfloat16"):
        return jax.ShapeDtypeStruct(sizes, dtype)

    def attend(q, k, v, ids):
        out, pull = jax.vjp(lambda *qkv: attention(*qkv, segment_ids_BT=ids).out_BTNH, q, k, v)
        return out, pull(out)

    def loss(x, w, targets, weights):
        return jax.value_and_grad(lambda x, w: linear_cross_entropy(x, w, targets, weights).loss, (0, 1))(x, w)

    def orthogonalize(x):
        return newton_schulz(x, [(3.4445, -4.7750, 2.0315)] * 5)

    def turn(x, cos, sin):
        y, pull = jax.vjp(lambda x: rotate(x, cos, sin), x)
        return y, pull(y)

    T, D, V = 4096, 2048, 128_256
    heads = [shape(1, T, n, 128) for n in (16, 4, 4)]
    return {
        "attention": (attend, [*heads, shape(1, T, dtype="int32")]),
        "cross_entropy": (
            loss,
            [shape(1, T, D), shape(V, D), shape(1, T, dtype="int32"), shape(1, T, dtype="float32")],
        ),
        "rope": (turn, [heads[0], *[shape(1, T, 64, dtype="float32")] * 2]),
        "newton_schulz": (orthogonalize, [shape(2, 2048, 11008)]),
    }


def compiled(folder: Path, chips=tuple(CHIPS)) -> Iterator[Compiled]:
    """Every op for every chip; `folder` is that of `bundles.listen`."""
    for op, (function, shapes) in ops().items():
        for chip in chips:
            for limit in (limit for limit in LIMITS if limit <= vmem(chip)):
                if fits(chip, limit, function, shapes):
                    yield Compiled(op, chip, limit, _of_ours(bundles.read(folder)))
                    break
                bundles.read(folder)
            else:
                yield Compiled(op, chip, None, {})


def vmem(chip: str) -> int:
    """MiB that a core of a chip has."""
    return TPUS[topology_devices(CHIPS[chip])[0].device_kind].vmem_bytes // MIB


def fits(chip: str, limit: int, function, shapes) -> bool:
    """Whether every kernel compiles within so many MiB of VMEM."""
    original = pltpu.CompilerParams

    def limited(**options):
        return original(**{**options, "vmem_limit_bytes": limit << 20})

    with mock.patch.object(pltpu, "CompilerParams", limited):
        jax.clear_caches()
        try:
            compile_for_chip(chip, function, *shapes)
        except jax.errors.JaxRuntimeError as error:
            if "vmem" not in str(error).lower():
                raise
            return False
    return True


def _of_ours(found: dict[str, bundles.Schedule]) -> dict[str, bundles.Schedule]:
    """Pallas kernels alone, by the names that we gave them: differentiation puts its own around these."""
    named = {}
    for name, schedule in found.items():
        own = name.removeprefix("transpose_").removeprefix("jvp_").rstrip("_")
        if own.startswith(("attention_", "cross_entropy_", "rope_", "newton_schulz_")):
            named[own] = schedule
    return named
