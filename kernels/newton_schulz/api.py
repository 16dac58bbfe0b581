"""Newton-Schulz orthogonalisation, as Muon uses it: the public functions and the choice of implementation.

Two of its three products are symmetric: kernels compute the blocks on and above the diagonal and write each one's
mirror, so a result is symmetric to the bit. Shapes: L matrices in a stack, R rows, C columns.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from kernels.dispatch import choose, free_axes, gpu_refusal, over_mesh
from kernels.newton_schulz import gpu, reference, tpu, xla


class Implementation(NamedTuple):
    """The products x x^T and b x + c x x^T of a stack, and how the iteration is made of them."""

    symmetric_product: Callable  # (x_LRC, None or (b, c)) -> [L, R, R]
    padded: Callable[[int, int, jnp.dtype], tuple[int, int]] = lambda R, C, _: (R, C)  # the size that products take
    newton_schulz: Callable | None = None  # (x_LRC, [steps, 3]) -> [L, R, C], where it is not made of these products


IMPLEMENTATIONS = {
    "reference": Implementation(reference.symmetric_product, newton_schulz=reference.newton_schulz),
    "xla": Implementation(xla.symmetric_product),
    "tpu": Implementation(tpu.symmetric_product, tpu.padded),
    "gpu": Implementation(gpu.symmetric_product, gpu.padded),
    "tpu_interpret": Implementation(functools.partial(tpu.symmetric_product, interpret=True), tpu.padded),
    "gpu_interpret": Implementation(functools.partial(gpu.symmetric_product, interpret=True), gpu.padded),
}


def newton_schulz(
    x: jax.Array, coefficients: Sequence[tuple[float, float, float]], *, implementation: str = "auto"
) -> jax.Array:
    """The iteration on every matrix [..., R, C] of `x`: for each (a, b, c), A = x x^T, x <- a x + (b A + c A A) x.

    It moves all singular values s > 0 to a s + b s^3 + c s^5 and leaves the singular vectors; they should come in at
    most a little above 1, so divide by a norm before. `coefficients` are Python numbers, a step a row. Where R > C
    the transposed matrices are iterated. Sums are float32, and each product is rounded once to the dtype of `x`,
    float32 or bfloat16 (with `reference` the result alone is). There is no gradient. The devices of a mesh share the
    matrices; none is computed twice. `implementation` is a name in IMPLEMENTATIONS or auto, which picks by platform
    (`kernels/dispatch.py`).
    """
    _check("newton_schulz", "x", x)
    factors_S3 = _checked(coefficients)
    chosen = _chosen("newton_schulz", implementation)
    wide = x.shape[-2] <= x.shape[-1]

    def iterate(x_LRC):
        if chosen.newton_schulz is not None:
            return chosen.newton_schulz(x_LRC, factors_S3)
        R, C = x_LRC.shape[1:]
        rows, columns = chosen.padded(R, C, x_LRC.dtype)
        x_LRC = jnp.pad(x_LRC, ((0, 0), (0, rows - R), (0, columns - C)))  # zeros stay zeros
        x_LRC, _ = jax.lax.scan(functools.partial(_iteration, chosen), x_LRC, factors_S3)
        return x_LRC[:, :R, :C]

    out = _over_matrices("newton_schulz", iterate, x if wide else x.swapaxes(-1, -2))
    return out if wide else out.swapaxes(-1, -2)


def gram(x: jax.Array, *, implementation: str = "auto") -> jax.Array:
    """x x^T of every matrix [..., R, C], symmetric to the bit, in the dtype of `x`. There is no gradient."""
    _check("gram", "x", x)
    return _over_matrices("gram", _chosen("gram", implementation).symmetric_product, x)


def symmetric_polynomial(a: jax.Array, b: float, c: float, *, implementation: str = "auto") -> jax.Array:
    """b a + c a a of every matrix [..., R, R]; `a` has to be symmetric, as `gram` gives it. There is no gradient."""
    _check("symmetric_polynomial", "a", a)
    if a.shape[-2] != a.shape[-1]:
        raise ValueError(f"symmetric_polynomial: a {a.shape} should hold square matrices")
    product = _chosen("symmetric_polynomial", implementation).symmetric_product
    return _over_matrices("symmetric_polynomial", lambda a_LRR: product(a_LRR, (b, c)), a)


def _iteration(implementation: Implementation, x_LRC, factors_3):
    """One step, of `jax.lax.scan`."""
    a, b, c = factors_3
    gram_LRR = implementation.symmetric_product(x_LRC)
    polynomial_LRR = implementation.symmetric_product(gram_LRR, (b, c))
    precision = "highest" if x_LRC.dtype == jnp.float32 else None
    mixed_LRC = jnp.einsum(
        "LRS,LSC->LRC", polynomial_LRR, x_LRC, precision=precision, preferred_element_type=jnp.float32
    )
    return (a * x_LRC + mixed_LRC).astype(x_LRC.dtype), None


def _over_matrices(op: str, compute: Callable, x: jax.Array) -> jax.Array:
    """`compute` of a stack [L, R, C], applied to [..., R, C]; each device of the mesh takes some of the matrices."""
    x_LRC = _without_gradient(op, x).reshape(-1, *x.shape[-2:])
    L, axes = x_LRC.shape[0], free_axes()
    x_LRC = jnp.pad(x_LRC, ((0, -L % math.prod(axes.values())), (0, 0), (0, 0)))  # zeros, so that each gets as many
    out_LRC = over_mesh(compute, P(tuple(axes)), P(tuple(axes)))(x_LRC)[:L]
    return out_LRC.reshape(*x.shape[:-2], *out_LRC.shape[1:])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _without_gradient(op: str, x: jax.Array) -> jax.Array:
    del op
    return x


@_without_gradient.defjvp
def _(op, primals, tangents):
    raise NotImplementedError(f"{op}: it has no gradient; an optimiser needs none")


def _chosen(op: str, asked: str) -> Implementation:
    return IMPLEMENTATIONS[choose(op, tuple(IMPLEMENTATIONS), asked, {"gpu": gpu_refusal()})]


def _check(op: str, name: str, x: jax.Array) -> None:
    """What an op cannot take is refused here, where the message can still name it."""
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(f"{op}: {name} {x.shape} should have shape [..., rows, columns] and not be empty")
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"{op}: {name} should be float32 or bfloat16, not {x.dtype}")


def _checked(coefficients) -> np.ndarray:
    """The coefficients as float32 [steps, 3]."""
    factors_S3 = np.asarray(coefficients, np.float32)
    if factors_S3.ndim != 2 or factors_S3.shape[1] != 3 or not len(factors_S3):
        raise ValueError(f"newton_schulz: coefficients {factors_S3.shape} should have shape (steps, 3)")
    if not np.isfinite(factors_S3).all():
        raise ValueError("newton_schulz: coefficients should be finite")
    return factors_S3
