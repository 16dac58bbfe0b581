"""Shampoo (Gupta et al. 2018, arXiv 1802.09568): a gradient between inverse fourth roots of its sides' statistics.

direction = left^(-1/4) M right^(-1/4), with one side alone its ^(-1/2), M the momentum. Statistics have the gradient
of the step; the roots are computed at the first step and every `interval` steps. Grafting (Agarwal et al. 2020) gives
each matrix's direction the norm of another optimiser's, for statistics lag behind the size of gradients. With
`statistics_decay=1` and `graft="none"` this is the paper's sum, but for its momentum and epsilon: the ridge here is
relative to the largest eigenvalue, so that it means the same for gradients of any size.

Shapes as in `optim/kronecker.py`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim.config import ShampooConfig
from optim.groups import Direction
from optim.kronecker import Sides, averaged, by_matrix, dot, empty, multiply, over_sides

SMALLEST = 1e-30  # an eigenvalue up to which gradients count as zero so far
NEWTON_STEPS, POWER_STEPS = 50, 20


class ShampooMatrices(NamedTuple):
    """For each parameter; sides that are left as they are have no arrays."""

    mu: Any  # [L, I, O], average of gradients
    nu: Any  # [L, I, O], average of their squares, for grafting
    left: Any  # [L, I, I], average or sum of G G^T
    right: Any  # [L, O, O], of G^T G
    left_root: Any  # [L, I, I], inverse root of the statistics
    right_root: Any  # [L, O, O]


def shampoo(config: ShampooConfig, own: Direction) -> optax.GradientTransformation:
    """The direction of Shampoo, of parameters that are matrices by `optim/matrices.py`."""
    decay = own.b2 if config.statistics_decay is None else config.statistics_decay

    def begin(L: int, I: int, O: int) -> ShampooMatrices:  # noqa: E741
        return ShampooMatrices(*empty(L, I, O, config.max_dimension, config.one_sided))

    def accumulated(g_LIO: jax.Array, of: ShampooMatrices) -> ShampooMatrices:
        mu_LIO = own.b1 * of.mu + (1 - own.b1) * g_LIO
        nu_LIO = own.b2 * of.nu + (1 - own.b2) * jnp.square(g_LIO)
        sides = averaged(Sides(of.left, of.right), g_LIO, decay)
        return of._replace(mu=mu_LIO, nu=nu_LIO, **sides._asdict())

    def renewed(count: jax.Array, matrices: list[ShampooMatrices]) -> list[ShampooMatrices]:
        """With the roots of statistics of `count` gradients."""
        scale = 1 - decay ** count.astype(jnp.float32) if decay < 1 else 1.0
        sides = [Sides(of.left, of.right) for of in matrices]
        powers = [of.map(lambda s_LSS, p=of.number: jnp.full(len(s_LSS), 2.0 * p, jnp.float32)) for of in sides]
        sides = [of.map(lambda s_LSS: s_LSS / scale) for of in sides]
        roots = over_sides(lambda *of: (ROOTS[config.root](*of, config.ridge),), sides, powers)
        roots = [of.map(lambda found: found[0]) for of in roots]
        return [of._replace(left_root=root.left, right_root=root.right) for of, root in zip(matrices, roots)]

    def direction(count: jax.Array, g_LIO: jax.Array, of: ShampooMatrices) -> jax.Array:
        mu_LIO = optax.tree.bias_correction(of.mu, own.b1, count)
        direction_LIO = multiply(mu_LIO, Sides(of.left_root, of.right_root))
        if config.graft == "none":
            return direction_LIO
        from_LIO = mu_LIO if config.graft == "adam" else g_LIO
        grafted_LIO = from_LIO / (jnp.sqrt(optax.tree.bias_correction(of.nu, own.b2, count)) + own.epsilon)
        return direction_LIO * (_norm(grafted_LIO) / jnp.maximum(_norm(direction_LIO), SMALLEST))

    def step(
        count: jax.Array, gradients: list[jax.Array], matrices: list[ShampooMatrices]
    ) -> tuple[list[jax.Array], list[ShampooMatrices]]:
        matrices = [accumulated(g_LIO, of) for g_LIO, of in zip(gradients, matrices)]
        matrices = jax.lax.cond(
            count % config.interval == 0, lambda of: renewed(count + 1, of), lambda same: same, matrices
        )
        return [direction(count + 1, g_LIO, of) for g_LIO, of in zip(gradients, matrices)], matrices

    return by_matrix(begin, step)


def _norm(x_LIO: jax.Array) -> jax.Array:
    """Of every matrix [L, 1, 1]."""
    return jnp.sqrt(jnp.sum(jnp.square(x_LIO), (1, 2), keepdims=True))


def root_by_eigenvalues(of_LSS: jax.Array, power_L: jax.Array, ridge: float) -> jax.Array:
    """(A + ridge max(eigenvalue) I)^(-1/power) of every symmetric A without negative eigenvalues; I where A is 0."""
    values_LS, vectors_LSS = jnp.linalg.eigh(of_LSS)
    top_L1 = values_LS[:, -1:]
    values_LS = jnp.where(top_L1 > SMALLEST, jnp.maximum(values_LS, 0) + ridge * top_L1, 1)
    return dot("LSU,LU,LTU->LST", vectors_LSS, values_LS ** (-1 / power_L[:, None]), vectors_LSS)


def root_by_newton(of_LSS: jax.Array, power_L: jax.Array, ridge: float) -> jax.Array:
    """The same by products alone, the coupled iteration of Iannazzo (2006), until each matrix stops getting better.

    With z = (1 + p) / (2 |A|_2): M = z A to I and X = z^(1/p) I to A^(-1/p), by T = ((p + 1) I - M) / p, M <- T^p M,
    X <- X T. The norm is from power iterations, 1.1 times over.
    """
    eye_SS, p_L11 = jnp.eye(of_LSS.shape[-1], dtype=jnp.float32), power_L[:, None, None]
    largest_L11 = _largest(of_LSS)
    zero_L11 = largest_L11 <= SMALLEST
    largest_L11 = jnp.where(zero_L11, 1, largest_L11)
    damped_LSS = jnp.where(zero_L11, eye_SS, of_LSS / largest_L11 + ridge * eye_SS)  # of norm 1
    z_L11 = (1 + p_L11) / (2 * (1.1 + ridge))

    def better(carry: tuple[Any, ...]) -> jax.Array:
        number, _, _, _, going_L11 = carry
        return (number < NEWTON_STEPS) & going_L11.any()

    def one(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        number, m_LSS, x_LSS, error_L11, going_L11 = carry
        t_LSS = ((p_L11 + 1) * eye_SS - m_LSS) / p_L11
        square_LSS = dot("LST,LTU->LSU", t_LSS, t_LSS)
        power_LSS = jnp.where(p_L11 == 4, dot("LST,LTU->LSU", square_LSS, square_LSS), square_LSS)
        next_LSS = dot("LST,LTU->LSU", power_LSS, m_LSS)
        after_L11 = jnp.max(jnp.abs(next_LSS - eye_SS), (1, 2), keepdims=True)
        going_L11 &= after_L11 < error_L11
        x_LSS = jnp.where(going_L11, dot("LST,LTU->LSU", x_LSS, t_LSS), x_LSS)
        return number + 1, jnp.where(going_L11, next_LSS, m_LSS), x_LSS, after_L11, going_L11

    m_LSS, x_LSS = z_L11 * damped_LSS, z_L11 ** (1 / p_L11) * jnp.broadcast_to(eye_SS, of_LSS.shape)
    started = (0, m_LSS, x_LSS, jnp.full_like(p_L11, jnp.inf), jnp.full(p_L11.shape, True))
    return jax.lax.while_loop(better, one, started)[2] * largest_L11 ** (-1 / p_L11)


def _largest(of_LSS: jax.Array) -> jax.Array:
    """About the largest eigenvalue [L, 1, 1]."""
    diagonal_LS = jnp.diagonal(of_LSS, axis1=1, axis2=2)
    unit_L1 = jnp.maximum(diagonal_LS.max(1, keepdims=True), SMALLEST)  # squares of small ones would vanish
    x_LS, norm_L1 = diagonal_LS / unit_L1, 1.0
    for _ in range(POWER_STEPS):
        x_LS = dot("LST,LT->LS", of_LSS, x_LS) / unit_L1
        norm_L1 = jnp.linalg.norm(x_LS, axis=1, keepdims=True)
        x_LS = x_LS / jnp.maximum(norm_L1, SMALLEST)
    return (norm_L1 * unit_L1)[..., None]


ROOTS = {"eigh": root_by_eigenvalues, "newton": root_by_newton}
