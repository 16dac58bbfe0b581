"""What Newton-Schulz costs a TPU, counted without one: ours beside plain products, one bfloat16 matrix of each shape.

    python benchmarks/newton_schulz_static.py [--steps=5]

Our symmetric products are called with `pl.pallas_call` replaced by a counter (benchmarks/attention_static.py) that
walks the grid and adds the bytes of every block that is not the one of the step before. Products are those that the
kernel issues, with padding and with what a slab on the diagonal computes behind it. Beside them: plain products,
unpadded, and the bytes that the symmetric two would move if every block of them were computed, cut alike. The third
product, of the polynomial with x, is XLA's and the same for both; the bytes leave it out.
"""

import argparse
from unittest import mock

import jax
import jax.numpy as jnp
from attention_static import fetched
from jax.experimental import pallas as pl

from kernels.newton_schulz import tpu

SHAPES = {  # rows (the shorter side), columns
    "SmolLM3-3B feed-forward": (2048, 11008),
    "SmolLM3-3B query, output": (2048, 2048),
    "SmolLM3-3B key, value": (512, 2048),
    "Llama-2-7B feed-forward": (4096, 11008),
    "Gemma-2-2B feed-forward": (2304, 9216),
    "SmolLM2-360M feed-forward": (960, 2560),
    "SmolLM2-135M feed-forward": (576, 1536),
}


class Counter:
    """Stands in for `pl.pallas_call`; its kernel computes nothing."""

    def __init__(self):
        self.flops, self.bytes, self.bytes_plain = 0, 0, 0

    def __call__(self, kernel, *, grid_spec, out_shape, **_):
        slab = kernel.args[1]

        def call(*arrays):
            count = grid_spec.num_scalar_prefetch
            scalars, arrays = [jnp.asarray(a) for a in arrays[:count]], arrays[count:]
            (_, size, steps), (_, t, k) = grid_spec.grid, grid_spec.in_specs[0].block_shape
            for spec, array in zip([*grid_spec.in_specs, grid_spec.out_specs], [*arrays, out_shape], strict=True):
                self.bytes += fetched(spec, array, grid_spec.grid, scalars)
            blocks = out_shape.shape[1] // t
            of_diagonal = sum(2 * min(end, t) * k * (min(end, t) - end + slab) for end in range(slab, t + slab, slab))
            self.flops += (steps - 1) * (blocks * of_diagonal + (size - blocks) * 2 * t * t * k)
            inputs = blocks**2 * 2 * t * k * (steps - 1) + (len(arrays) - 1) * blocks**2 * t * t
            self.bytes_plain += (inputs - t * t * blocks**2 * (len(arrays) == 2)) * 2 + blocks**2 * t * t * 2
            return jnp.zeros(out_shape.shape, out_shape.dtype)

        return call


def count(R: int, C: int) -> tuple[Counter, int, int]:
    """Of one step: the counter, floating point operations of all three products, and of plain ones."""
    counter = Counter()
    rows, columns = tpu.padded(R, C, jnp.bfloat16)
    with mock.patch.object(pl, "pallas_call", counter), jax.disable_jit():
        gram = tpu.symmetric_product(jnp.zeros((1, rows, columns), jnp.bfloat16))
        tpu.symmetric_product(gram, (1.0, 1.0))
    return counter, counter.flops + 2 * rows * rows * columns, 4 * R * R * C + 2 * R**3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    steps = parser.parse_args().steps
    print("| matrix | | GFLOP issued | plain | ratio | MB moved by the symmetric two | all blocks |")
    print("|---" * 7 + "|", flush=True)
    for name, (R, C) in SHAPES.items():
        counter, ours, plain = count(R, C)
        shown = [f"{steps * flops / 1e9:,.1f}" for flops in (ours, plain)] + [f"{plain / ours:.2f}"]
        shown += [f"{steps * moved / 1e6:,.0f}" for moved in (counter.bytes, counter.bytes_plain)]
        print("| " + " | ".join([name, f"{R:,} x {C:,}", *shown]) + " |", flush=True)


if __name__ == "__main__":
    main()
