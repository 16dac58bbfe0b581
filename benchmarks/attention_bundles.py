"""Bundles of the compiler's final schedule: what the largest logit adds, and ours beside JAX's splash attention.

    python benchmarks/attention_bundles.py [--chips=v5e,v6e]

One bundle of instructions is about a cycle. A step of ours has X queries (of all heads that share a key) and s keys;
splash attention, in blocks of 512 x 512 of one head with segment ids, is counted in as many of its own steps.
"""

import argparse
import sys
from unittest import mock

import jax
import jax.numpy as jnp
from attention_static import BLOCK, make_splash

from kernels.attention import tpu_blocks, tpu_kernels
from kernels.attention.api import attention
from scaling import bundles
from scaling.topology import CHIPS, compile_for_chip, topology_devices
from train.sharding import make_mesh

T, N, K, H = 4096, 16, 4, 128
PARTS = {"forward": "fwd", "query_gradient": "dq", "key_gradient": "dkv"}  # our names and splash attention's


def schedules(chip: str, function, folder) -> dict[str, bundles.Schedule]:
    """Of the kernels of forward and backward, by part."""
    heads = [jax.ShapeDtypeStruct((1, T, n, H), jnp.bfloat16) for n in (N, K, K)]

    def both(ids, *qkv):
        out, pull = jax.vjp(lambda *qkv: function(ids, *qkv), *qkv)
        return out, pull(out)

    jax.clear_caches()
    compile_for_chip(chip, both, jax.ShapeDtypeStruct((1, T), jnp.int32), *heads)
    found = {name: s for name, s in bundles.read(folder).items() if s.products}
    parts = {part: (part, f"_{theirs}_") for part, theirs in PARTS.items()}
    return {part: s for part, names in parts.items() for name, s in found.items() if any(n in name for n in names)}


def ours(ids, q, k, v):
    return attention(q, k, v, segment_ids_BT=ids).out_BTNH


def theirs(ids, q, k, v):
    """Splash attention over repeated keys: one step is one head's either way."""
    k, v = (jnp.repeat(a, N // K, axis=2) for a in (k, v))
    return make_splash(T, N, ids)(*(a[0].swapaxes(0, 1) for a in (q, k, v)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", default=",".join(CHIPS))
    folder = bundles.listen()
    jax.config.update("jax_enable_compilation_cache", False)
    columns = [
        "chip",
        "kernel",
        "X x s",
        "a step",
        "a masked step",
        "splash, as many",
        "all",
        "without the largest logit",
    ]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|", flush=True)
    for chip in parser.parse_args().chips.split(","):
        kernels = schedules(chip, ours, folder)
        with mock.patch.object(tpu_kernels, "write_largest", return_value=None):
            without = schedules(chip, ours, folder)
        splash = schedules(chip, theirs, folder)
        with jax.sharding.use_abstract_mesh(make_mesh(devices=topology_devices(CHIPS[chip])[:1]).abstract_mesh):
            cuts = tpu_blocks.cut(T, T, tpu_blocks.Heads(N // K, H, itemsize=2))
        for part, schedule in kernels.items():
            blocks = getattr(cuts, part)
            X, (plain, masked) = blocks.t * N // K, schedule.products
            as_many = round(sum(splash[part].products) * X * blocks.s / BLOCK**2)
            row = [chip, part, f"{X} x {blocks.s}", plain, masked, as_many, schedule.total]
            more = schedule.total / without[part].total - 1
            a_step = sum(schedule.products) / sum(without[part].products) - 1
            row.append(f"{without[part].total:,} ({more:+.2%}; steps {a_step:+.2%})" if part == "forward" else "")
            print("| " + " | ".join(f"{a:,}" if isinstance(a, int) else a for a in row) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
