"""CPU time of Newton-Schulz beside plain products, float32: the two symmetric products alone, and five steps.

    python benchmarks/newton_schulz_cpu.py [--rounds=9]

Every round times each column once, one after the other; the least of the rounds is printed. It is time of the
processor, all its cores added up, so that other work on the machine counts little. Plain products are as one writes
them, symmetric up to rounding; ours are symmetric to the bit.
"""

import argparse
import os
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from kernels.newton_schulz.api import gram, newton_schulz, symmetric_polynomial

SHAPES = [(6, 128, 512), (6, 192, 512), (6, 256, 1024), (4, 512, 512), (4, 512, 2048), (1, 576, 1536), (6, 576, 1536),
          (1, 1024, 4096)]  # fmt: skip
FACTORS = (3.4445, -4.7750, 2.0315)


def plain_symmetric(x):
    _, b, c = FACTORS
    a = jnp.einsum("LRC,LSC->LRS", x, x)
    return b * a + c * jnp.einsum("LRS,LST->LRT", a, a)


def ours_symmetric(x):
    return symmetric_polynomial(gram(x, implementation="xla"), *FACTORS[1:], implementation="xla")


def plain_steps(x):
    return jax.lax.fori_loop(0, 5, lambda _, x: FACTORS[0] * x + plain_symmetric(x) @ x, x)


def ours_steps(x):
    return newton_schulz(x, [FACTORS] * 5, implementation="xla")


def milliseconds(run, x) -> float:
    start = time.process_time()
    jax.block_until_ready(run(x))
    return (time.process_time() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    print("| L x R x C | symmetric two, plain, ms | ours | ratio | five steps, plain | ours | ratio |")
    print("|---" * 7 + "|", flush=True)
    for shape in SHAPES:
        x = np.random.default_rng(0).standard_normal(shape)
        x = jnp.asarray(x / np.linalg.norm(x, axis=(1, 2), keepdims=True), jnp.float32)
        columns = [jax.jit(run) for run in (plain_symmetric, ours_symmetric, plain_steps, ours_steps)]
        times = [[milliseconds(run, x) for run in columns] for _ in range(rounds + 2)]  # two to compile and warm up
        two, our_two, five, our_five = np.min(times[2:], 0)
        shown = (
            f"{two:.1f} | {our_two:.1f} | {two / our_two:.2f} | {five:.1f} | {our_five:.1f} | {five / our_five:.2f}"
        )
        print(f"| {' x '.join(map(str, shape))} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
