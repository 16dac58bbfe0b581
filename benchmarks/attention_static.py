"""What a TPU would do for attention, counted without one: ours beside JAX's splash attention, forward and backward.

    python benchmarks/attention_static.py [--length=8192] [--device-kind="TPU v5 lite"]

Both are called with their Pallas kernels replaced by a counter: it walks the grid, asks every index map for its
block, and adds the bytes of each block, read or written, that is not the one of the step before, as the pipeline
would. Steps are those of the grid, products those of the steps in which the kernel computes (2 forward, 3 for the
gradient of q, 4 for those of k and v, of all pairs of the two blocks, hidden ones included). Splash attention has
blocks of 512 queries and 512 keys and its default separate kernels; ours has those of `kernels/attention/tpu.py`.
"""

import argparse
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import AbstractDevice, AbstractMesh

from kernels.attention import tpu

SHAPES = {"SmolLM3-3B": (16, 4, 128), "SmolLM2-135M": (9, 3, 64), "Llama-2-7B": (32, 32, 128)}
BLOCK = 512
PRODUCTS = {"forward": 2, "query_gradient": 3, "key_gradient": 4, "fwd": 2, "dq": 3, "dkv": 4}


class Counter:
    """Stands in for `pl.pallas_call`; its kernels compute nothing."""

    def __init__(self):
        self.steps, self.bytes, self.flops = 0, 0, 0

    def __call__(self, kernel, *, grid_spec, out_shape, name, **_):
        del kernel

        def call(*arrays):
            scalars, arrays = arrays[: grid_spec.num_scalar_prefetch], arrays[grid_spec.num_scalar_prefetch :]
            grid = tuple(int(size) for size in grid_spec.grid)
            specs = [*grid_spec.in_specs, *grid_spec.out_specs]
            self.steps += math.prod(grid)
            for spec, array in zip(specs, [*arrays, *out_shape], strict=True):
                self.bytes += 0 if array is None else fetched(spec, array, grid, scalars)
            self.flops += issued(name, grid, grid_spec.in_specs, scalars, len(arrays[0]))
            return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), out_shape)

        return call


def places(grid: tuple[int, ...]) -> list[np.ndarray]:
    """The index of every step along each axis of the grid, in order."""
    return [axis.reshape(-1) for axis in np.indices(grid, np.int32)]


def fetched(spec: pl.BlockSpec, array, grid: tuple[int, ...], scalars) -> int:
    """Bytes of an operand's blocks that differ from the block of the step before."""
    index = jax.vmap(lambda *place: spec.index_map(*place, *scalars))(*places(grid))
    index = np.stack([np.broadcast_to(axis, (math.prod(grid),)) for axis in index])
    changes = 1 + int((index[:, 1:] != index[:, :-1]).any(0).sum())
    return changes * math.prod(size or 1 for size in spec.block_shape) * array.dtype.itemsize


def issued(name: str, grid: tuple[int, ...], in_specs, scalars, heads: int) -> int:
    """Floating point operations of the products; `heads` are those of splash attention's queries."""
    if name.startswith("attention_"):
        kernel, steps = name.removeprefix("attention_"), math.prod(grid)
        (_, _, G, t, H), (_, _, s, _) = in_specs[0].block_shape, in_specs[2].block_shape  # queries, keys
        X = G * t
    else:
        kernel = next(part for part in ("dkv", "dq", "fwd") if part in name)
        block_mask = np.asarray(scalars[1])  # 0 where nothing is computed; one for all heads, or one a head
        steps = int((block_mask != 0).sum()) * (heads // len(block_mask))
        X = s = BLOCK
        H = next(spec.block_shape[-1] for spec in in_specs if spec is not None)
    return PRODUCTS[kernel] * 2 * X * s * H * steps


def ours(q, k, v, ids):
    """Forward and backward."""
    out, pull = jax.vjp(lambda *qkv: tpu.attention(*qkv, ids, q.shape[-1] ** -0.5)[0], q, k, v)
    pull(out)


def theirs(q, k, v, ids):
    """The same by splash attention, which scales nothing."""
    N, T = q.shape[2], q.shape[1]
    attend = make_splash(T, N, ids)
    heads_first = [a[0].transpose(1, 0, 2) for a in (q, k, v)]
    out, pull = jax.vjp(attend, *heads_first)
    pull(out)


def make_splash(T: int, N: int, ids):
    """Splash attention as a function of queries, keys and values [N, T, H]."""
    sizes = {f"block_{axis}{of}": BLOCK for axis in ("q", "kv") for of in ("", "_dkv", "_dq")}
    sizes |= {"block_kv_compute": BLOCK, "block_kv_dkv_compute": BLOCK}
    mask = masks.MultiHeadMask([masks.CausalMask((T, T))] * N)
    attend = splash.make_splash_mha(mask, block_sizes=splash.BlockSizes(**sizes), head_shards=1, q_seq_shards=1)
    segments = None if ids is None else splash.SegmentIds(q=ids[0], kv=ids[0])
    return lambda *qkv: attend(*qkv, segments)


def documents(T: int) -> dict[str, jax.Array | None]:
    """Segment ids of one row."""
    lengths = np.random.default_rng(0).lognormal(math.log(800), 1.0, T).astype(int) + 1
    packed = np.repeat(np.arange(T), lengths[:T])[:T]
    return {"one document": None, f"{packed[-1] + 1} documents": jnp.asarray(packed[None], jnp.int32)}


def count(arrays, ids, device_kind: str) -> tuple[Counter, Counter]:
    """Of ours, with the blocks for that TPU, and of splash attention."""
    counters = Counter(), Counter()
    mesh = AbstractMesh((1,), ("fsdp",), abstract_device=AbstractDevice(device_kind, 1, "tpu"))
    for counter, run in zip(counters, (ours, theirs)):
        chip = jax.sharding.use_abstract_mesh(mesh)
        with mock.patch.object(pl, "pallas_call", counter), jax.disable_jit(), chip:
            run(*arrays, ids)
    return counters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--device-kind", default="TPU v5 lite", help="of the TPU whose block sizes to take")
    options = parser.parse_args()
    T = options.length
    print(f"| heads of, row of {T:,} | | grid steps | splash | MB moved | splash | TFLOP issued | splash |")
    print("|---" * 8 + "|", flush=True)
    for name, (N, K, H) in SHAPES.items():
        arrays = [jnp.zeros((1, T, heads, H), jnp.bfloat16) for heads in (N, K, K)]
        for what, ids in documents(T).items():
            counters = count(arrays, ids, options.device_kind)
            shown = [f"{c.steps:,}" for c in counters] + [f"{c.bytes / 1e6:,.0f}" for c in counters]
            shown += [f"{c.flops / 1e12:.2f}" for c in counters]
            print("| " + " | ".join([name, what, *shown]) + " |", flush=True)


if __name__ == "__main__":
    main()
