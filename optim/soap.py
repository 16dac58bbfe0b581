"""SOAP (Vyas et al. 2024, arXiv 2409.11321): Adam in the eigenbasis of Shampoo's statistics.

A gradient is rotated by the eigenvectors of both sides, Adam works there, and its direction is rotated back. The
eigenvectors follow the statistics by one power iteration and a QR decomposition every `interval` steps; of the
moments there the first is then rotated into the new basis, the second stays. A gradient enters statistics and basis
only after the step in which it decided the direction. So the first step moves nothing by it: it begins statistics and
basis, as the authors' program does. Without sides (`max_dimension=0`) this is Adam from the second step on.

Shapes as in `optim/kronecker.py`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim.config import SoapConfig
from optim.groups import Direction
from optim.kronecker import Sides, averaged, by_matrix, dot, empty, has, multiply, over_sides, rotate


class SoapMatrices(NamedTuple):
    """For each parameter; sides that are not rotated have no arrays."""

    mu: Any  # [L, I, O], first moment in the rotated space
    nu: Any  # [L, I, O], second moment there
    left: Any  # [L, I, I], average of G G^T
    right: Any  # [L, O, O], average of G^T G
    left_basis: Any  # [L, I, I], eigenvectors in columns, the largest eigenvalue first
    right_basis: Any  # [L, O, O]


def soap(config: SoapConfig, own: Direction) -> optax.GradientTransformation:
    """The direction of SOAP, of parameters that are matrices by `optim/matrices.py`."""
    decay = own.b2 if config.statistics_decay is None else config.statistics_decay

    def begin(L: int, I: int, O: int) -> SoapMatrices:  # noqa: E741
        return SoapMatrices(*empty(L, I, O, config.max_dimension, config.one_sided))

    def one(count: jax.Array, g_LIO: jax.Array, of: SoapMatrices) -> tuple[jax.Array, SoapMatrices]:
        """A step in the basis that there is."""
        bases = Sides(of.left_basis, of.right_basis)
        rotated_LIO = rotate(jnp.where(count == 0, 0, g_LIO), bases)
        mu_LIO = own.b1 * of.mu + (1 - own.b1) * rotated_LIO
        nu_LIO = own.b2 * of.nu + (1 - own.b2) * jnp.square(rotated_LIO)
        direction_LIO = multiply(adam(mu_LIO, nu_LIO, jnp.maximum(count, 1), own), bases)
        if config.normalize:
            rms_L11 = jnp.sqrt(jnp.mean(jnp.square(direction_LIO), (1, 2), keepdims=True))
            direction_LIO = direction_LIO / jnp.maximum(rms_L11, 1e-30)
        sides = averaged(Sides(of.left, of.right), g_LIO, decay)
        return direction_LIO, SoapMatrices(mu_LIO, nu_LIO, *sides, *bases)

    def step(
        count: jax.Array, gradients: list[jax.Array], matrices: list[SoapMatrices]
    ) -> tuple[list[jax.Array], list[SoapMatrices]]:
        directions, matrices = zip(*(one(count, g_LIO, of) for g_LIO, of in zip(gradients, matrices)))
        which = jnp.where(count == 0, 0, jnp.where(count % config.interval == 0, 1, 2))
        return list(directions), jax.lax.switch(which, (begun, followed, lambda same: same), list(matrices))

    return by_matrix(begin, step)


def adam(mu: jax.Array, nu: jax.Array, count: jax.Array, own: Direction) -> jax.Array:
    """Adam's direction from its moments after `count` updates."""
    mu, nu = optax.tree.bias_correction(mu, own.b1, count), optax.tree.bias_correction(nu, own.b2, count)
    return mu / (jnp.sqrt(nu) + own.epsilon)


def begun(matrices: list[SoapMatrices]) -> list[SoapMatrices]:
    """With the eigenvectors of their statistics."""
    bases = over_sides(eigenvectors, [Sides(of.left, of.right) for of in matrices])
    bases = [basis.map(lambda found: found[0]) for basis in bases]
    return [of._replace(left_basis=basis.left, right_basis=basis.right) for of, basis in zip(matrices, bases)]


def followed(matrices: list[SoapMatrices]) -> list[SoapMatrices]:
    """With bases after one power iteration; the moments along."""
    statistics, bases = ([Sides(*of[at : at + 2]) for of in matrices] for at in (2, 4))
    found = over_sides(power_iteration, statistics, bases)
    after = []
    for of, old, pairs in zip(matrices, bases, found):
        new, orders = pairs.map(lambda pair: pair[0]), pairs.map(lambda pair: pair[1])
        nu_LIO = jnp.take_along_axis(of.nu, orders.left[:, :, None], 1) if has(orders.left) else of.nu
        nu_LIO = jnp.take_along_axis(nu_LIO, orders.right[:, None, :], 2) if has(orders.right) else nu_LIO
        mu_LIO = rotate(multiply(of.mu, old), new)
        after.append(of._replace(mu=mu_LIO, nu=nu_LIO, left_basis=new.left, right_basis=new.right))
    return after


def eigenvectors(of_LSS: jax.Array) -> tuple[jax.Array]:
    """In columns, those of the largest eigenvalues first."""
    return (jnp.linalg.eigh(of_LSS)[1][..., ::-1],)


def power_iteration(of_LSS: jax.Array, basis_LSS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The basis multiplied once and made orthogonal again, columns by estimated eigenvalue; their old order."""
    product_LSS = dot("LST,LTU->LSU", of_LSS, basis_LSS)
    order_LS = jnp.argsort(-dot("LSU,LSU->LU", basis_LSS, product_LSS), axis=-1)
    return jnp.linalg.qr(jnp.take_along_axis(product_LSS, order_LS[:, None, :], 2))[0], order_LS
