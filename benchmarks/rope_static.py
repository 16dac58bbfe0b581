"""What rotating queries and keys costs a TPU, by its compiler's own estimates, without one.

    python benchmarks/rope_static.py [--chips=v5e,v4]

Compiles one attention layer (projections, rotation, attention kernel, output; rows of 4,096 tokens, 2 a chip,
bfloat16), forward alone and with its backward pass, and sums the estimated cycles of all that XLA compiled itself.
The cost of a rotation is the difference from the same layer without any. Kernels have no estimates; those of the
rotation are added as the bytes that they read and write over the chip's bandwidth, attention's are the same in all.
Bundles of the rotation's kernels are in docs/kernels.md.
"""

import argparse
from unittest import mock

import jax
import jax.numpy as jnp
from flax import nnx

from kernels.attention.api import attention
from kernels.rope import api
from model import attention as layer
from model.config import ModelConfig
from model.position import Rotation
from scaling.hlo import instructions
from scaling.topology import compile_for_chip

SHAPES = {"SmolLM3-3B": (2048, 16, 4, 128), "SmolLM2-135M": (576, 9, 3, 64)}
CYCLES_A_BYTE = {"v5e": 1.5e9 / 819e9, "v4": 1.05e9 / 1228e9}  # clock over the memory's bandwidth
B, T = 2, 4096


def none(x_BTNH, *_, dtype, **__):
    """No rotation."""
    return x_BTNH.astype(dtype)


def negated_halves(x_BTNH, cos_BTR, sin_BTR, *, dtype, **_):
    """x * cos + concatenate(-second, first) * sin, in the dtype of x."""
    cos, sin = (jnp.concatenate([a, a], -1)[:, :, None].astype(dtype) for a in (cos_BTR, sin_BTR))
    first, second = jnp.split(x_BTNH, 2, -1)
    return x_BTNH * cos + jnp.concatenate([-second, first], -1) * sin


def halves(*args, **options):
    """What runs on CPUs."""
    return api.rotate(*args, **options, implementation="xla")


def swapped_by_product(x_BTNH, cos_BTR, sin_BTR, *, dtype, **_):
    """x * cos + (x @ P) * sin, where P swaps halves and negates one; its gradient turns the other way."""

    @jax.custom_vjp
    def turned(x, sin):
        R = x.shape[-1] // 2
        swap = jnp.eye(2 * R, k=R, dtype=dtype) - jnp.eye(2 * R, k=-R, dtype=dtype)
        wide = jnp.concatenate([cos_BTR, cos_BTR], -1)[:, :, None], jnp.concatenate([sin, sin], -1)[:, :, None]
        swapped = jnp.einsum("btnh,hi->btni", x, swap, preferred_element_type="float32")
        return (x.astype("float32") * wide[0] + swapped * wide[1]).astype(dtype)

    turned.defvjp(lambda x, sin: (turned(x, sin), sin), lambda sin, dy: (turned(dy, -sin), None))
    return turned(x_BTNH, sin_BTR)


ROTATIONS = {
    "none": none,
    "halves, one negated, as `transformers` has it": negated_halves,
    "halves in float32 (`xla.py`)": halves,
    "a product with a signed permutation": swapped_by_product,
    "kernel (`tpu.py`)": api.rotate,
}


def layer_text(chip: str, D: int, N: int, K: int, H: int, rotate, backward: bool, rows=(B, T)) -> str:
    """The optimised HLO of one attention layer with this rotation."""
    config = ModelConfig(8, 1, D, N, K, H, 8, dtype="bfloat16")
    graph, params = nnx.split(nnx.eval_shape(lambda: layer.Attention(config, nnx.Rngs(0))))

    def step(params, x_BTD, dout_BTD, rotation, segment_ids_BT):
        def forward(params, x_BTD):
            def attend(*qkv):
                return attention(*qkv, segment_ids_BT=segment_ids_BT).out_BTNH, None

            return nnx.merge(graph, params)(x_BTD, rotation, attend)[0]

        if not backward:
            return forward(params, x_BTD)
        out_BTD, pull = jax.vjp(forward, params, x_BTD)
        return out_BTD, pull(dout_BTD)

    x_BTD, angles_BTR = jax.ShapeDtypeStruct((*rows, D), "bfloat16"), jax.ShapeDtypeStruct((*rows, H // 2), "float32")
    rotation = Rotation(angles_BTR, angles_BTR, jax.ShapeDtypeStruct((), "bool"))
    with mock.patch.object(layer, "rotate", rotate):
        compiled = compile_for_chip(chip, step, params, x_BTD, x_BTD, rotation, jax.ShapeDtypeStruct(rows, "int32"))
    return compiled.as_text()


def estimate(chip: str, text: str) -> tuple[int, int]:
    """Cycles of all that XLA compiled itself, and those in which the rotation's kernels move their bytes."""
    program = instructions(text)
    moved = 0
    for found in program.values():
        if found.opcode == "custom-call" and "rope_" in found.op_name:
            moved += found.bytes + sum(program[name].bytes for name in found.operands)
    return sum(found.cycles for found in program.values()), round(moved * CYCLES_A_BYTE[chip])


def projection_cycles(chip: str, D: int, N: int, H: int) -> tuple[int, int]:
    """Cycles of the products of the query projection alone, forward and backward."""
    x, w, dy = (jax.ShapeDtypeStruct(s, "bfloat16") for s in ((B * T, D), (D, N * H), (B * T, N * H)))
    products = (lambda x, w: x @ w, x, w), (lambda dy, w: dy @ w.T, dy, w), (lambda x, dy: x.T @ dy, x, dy)
    forward, *backward = (
        sum(i.cycles for i in instructions(compile_for_chip(chip, *p).as_text()).values()) for p in products
    )
    return forward, sum(backward)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", default="v5e")
    arguments = parser.parse_args()
    print("| chip | layer of | rotation | forward | backward | of it kernels | both, of the query projection |")
    print("|---" * 7 + "|", flush=True)
    for chip in arguments.chips.split(","):
        for model, (D, N, K, H) in SHAPES.items():
            query = projection_cycles(chip, D, N, H)
            print(f"| {chip} | {model} | *query projection* | {query[0]:,} | {query[1]:,} | | |", flush=True)
            plain = None
            for name, rotate in ROTATIONS.items():
                forward, both = (estimate(chip, layer_text(chip, D, N, K, H, rotate, b)) for b in (False, True))
                total = sum(forward), sum(both) - sum(forward)
                plain = plain or total
                cost = [a - b for a, b in zip(total, plain)]
                if rotate is not none:
                    shown = f"{cost[0]:+,} | {cost[1]:+,} | {both[1]:,} | {sum(cost) / sum(query):+.0%}"
                    print(f"| {chip} | {model} | {name} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
