"""Named coefficients: where singular values end (of `standard` 0.7 to 1.13 is published, else measured)."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from optim.config import MuonConfig
from optim.newton_schulz import COEFFICIENTS, coefficients, orthogonalise

# Where singular values of at least so much of the Frobenius norm end: github.com/KellerJordan/Muon for the standard
# set; for the others what their polynomials give, the Polar Express's as far down as its rows were made for.
BANDS = {
    "standard": (0.01, 0.68, 1.135),
    "per_step": (0.01, 0.977, 1.032),
    "polar_express": (0.002, 0.858, 1.142),
    "convergent": (0.01, 0.99999, 1.00001),
}


def matrix(values, C=60):
    """A matrix of these singular values, and its singular vectors."""
    rng = np.random.default_rng(0)
    left, _ = np.linalg.qr(rng.standard_normal((len(values), len(values))))
    right, _ = np.linalg.qr(rng.standard_normal((C, len(values))))
    return (left * values) @ right.T, left, right.T


def spread(least, R=40):
    """Singular values from `least` to nearly 1, of Frobenius norm 1: one large, all others small."""
    values = np.geomspace(least, 0.15, R)
    return np.append(values[:-1], np.sqrt(1 - np.sum(values[:-1] ** 2)))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("name", COEFFICIENTS)
def test_singular_values_end_in_the_band_of_their_coefficients(name, size):
    least, low, high = BANDS[name]
    x, left, right = matrix(spread(least))
    got = np.asarray(orthogonalise(jnp.asarray(size * x, jnp.float32), coefficients(name)), np.float64)
    found = np.linalg.svd(got, compute_uv=False)
    slack = 1e-3 if size < 1 else 1e-5  # epsilon counts
    assert found.min() > low - slack, found.min()
    assert found.max() < high + slack, found.max()
    aligned = left.T @ got @ right.T
    np.testing.assert_allclose(aligned, np.diag(np.diag(aligned)), atol=1e-5)  # the vectors stay


def test_polar_express_is_nearer_to_orthogonal_than_the_standard_set():
    """At five steps each: the worst singular value, and the whole matrix."""
    rng = np.random.default_rng(1)
    for x in (matrix(spread(0.002))[0], rng.standard_normal((64, 64)), rng.standard_normal((48, 200))):
        u, _, v = np.linalg.svd(x, full_matrices=False)
        error = {}
        for name in ("standard", "polar_express"):
            assert len(coefficients(name).rows) == 5
            got = np.asarray(orthogonalise(jnp.asarray(x, jnp.float32), coefficients(name)), np.float64)
            error[name] = np.linalg.norm(got - u @ v, 2), np.linalg.norm(got - u @ v)
        assert error["polar_express"] < error["standard"], error


@pytest.mark.parametrize(
    ("dtype", "atol"), [("float32", 2e-6), pytest.param("bfloat16", 0.02, marks=pytest.mark.slow)]
)
def test_transposed_is_the_same_and_stacks_are_their_matrices(dtype, atol):
    x_SRC = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 24, 40)), dtype)
    turn = jax.jit(lambda x: orthogonalise(x, coefficients("standard")).astype(jnp.float32))
    y_SRC, transposed, alone = turn(x_SRC), turn(x_SRC.mT), turn(x_SRC[1, 2])
    np.testing.assert_allclose(y_SRC, transposed.mT, atol=atol)
    np.testing.assert_allclose(y_SRC[1, 2], alone, atol=atol)


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_zeros_stay_zeros(name):
    x_SRC = jnp.zeros((2, 8, 12)).at[1, 0, 0].set(1e-30)
    y_SRC = orthogonalise(x_SRC, coefficients(name))
    assert not np.any(y_SRC[0])
    assert np.isfinite(y_SRC).all()


def test_steps_are_those_of_the_set_or_more():
    assert coefficients("standard").rows == coefficients("standard", 5).rows
    assert coefficients("standard", 3).rows == ((3.4445, -4.7750, 2.0315),) * 3
    longer = coefficients("polar_express", 7).rows
    assert longer[:5] == COEFFICIENTS["polar_express"].rows
    assert longer[5] == longer[6] == longer[4]
    with pytest.raises(UserError, match=r"optim.muon.steps=4: polar_express is made of 5 steps .* give 5 or more"):
        coefficients("polar_express", 4)


def test_an_unknown_set_is_refused():
    with pytest.raises(UserError, match=r"optim.muon.coefficients='polar' is not known; did you mean polar_express"):
        coefficients("polar")
    choices = typing.get_args(typing.get_type_hints(MuonConfig)["coefficients"])
    assert choices == tuple(COEFFICIENTS)


def test_polar_express_is_half_accurate_in_bfloat16():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 96)), jnp.bfloat16)
    got = np.asarray(jax.jit(lambda x: orthogonalise(x, coefficients("polar_express")))(x), np.float64)
    found = np.linalg.svd(got, compute_uv=False)
    assert 0.83 < found.min() <= found.max() < 1.17
