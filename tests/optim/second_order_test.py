"""SOAP and Shampoo beside their algorithms written out for one matrix in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.config import parse
from core.errors import UserError
from optim.config import OptimConfig, ShampooConfig, SoapConfig
from optim.groups import Direction
from optim.kronecker import cost, shared_out
from optim.shampoo import ROOTS, shampoo
from optim.soap import soap

OWN = Direction("", 0.9, 0.95, 1e-8)
STEPS = 12


def layers(L, I, O, count=STEPS):  # noqa: E741
    """Gradients of a feed-forward matrix, each layer with its own scales of rows and columns."""
    random = np.random.default_rng(I + O)
    rows, columns = np.exp(random.standard_normal((L, I, 1))), np.exp(random.standard_normal((L, 1, O)))
    drift = random.standard_normal((L, I, O))
    return [(0.1 * rows * columns * (0.5 * drift + random.standard_normal((L, I, O)))) for _ in range(count)]


def directions(optimizer, gradients):
    """Of every step [L, I, O], and the states after each."""
    tree = lambda g: {"layers": {"feed_forward": {"up": jnp.asarray(g, jnp.float32)}}}  # noqa: E731
    state, update, found, states = optimizer.init(tree(gradients[0])), jax.jit(optimizer.update), [], []
    for g in gradients:
        out, state = update(tree(g), state)
        found.append(np.asarray(out["layers"]["feed_forward"]["up"]))
        states.append(jax.tree.map(np.asarray, state.matrices))
    return found, states


def array_of(state, name, layer):
    return getattr(state, name)["layers"]["feed_forward"]["up"][layer].astype(np.float64)


def soap_alone(gradients, interval, sides, bases, decay=0.95, normalize=False):
    """Algorithm 3 of arXiv 2409.11321 with Adam's bias correction, the momentum in the original space.

    `bases` are those after the first step: where several gradients leave a null space, any basis of it will do.
    """
    first = gradients[0]
    statistics = [(1 - decay) * first @ first.T, (1 - decay) * first.T @ first]
    bases, found = list(bases), [np.zeros_like(first)]
    for side in range(2):
        if not sides[side]:
            bases[side] = np.eye(len(statistics[side]))
    momentum, second = np.zeros_like(first), np.zeros_like(first)
    for t, g in enumerate(gradients[1:], 1):
        rotated = bases[0].T @ g @ bases[1]
        momentum = OWN.b1 * momentum + (1 - OWN.b1) * g
        second = OWN.b2 * second + (1 - OWN.b2) * rotated**2
        mean = bases[0].T @ momentum @ bases[1] / (1 - OWN.b1**t)
        out = bases[0] @ (mean / (np.sqrt(second / (1 - OWN.b2**t)) + OWN.epsilon)) @ bases[1].T
        found.append(out / np.sqrt(np.mean(out**2)) if normalize else out)
        statistics = [decay * s + (1 - decay) * x for s, x in zip(statistics, (g @ g.T, g.T @ g))]
        if t % interval == 0:
            for side in (side for side in range(2) if sides[side]):
                estimates = np.diag(bases[side].T @ statistics[side] @ bases[side])
                order = np.argsort(-estimates)
                second = second[order] if side == 0 else second[:, order]
                bases[side] = np.linalg.qr(statistics[side] @ bases[side][:, order])[0]
    return found


@pytest.mark.parametrize(
    ("shape", "config", "sides"),
    [
        ((8, 8), SoapConfig(interval=3), (True, True)),
        ((6, 10), SoapConfig(interval=3), (True, True)),
        ((6, 10), SoapConfig(interval=1, max_dimension=8, statistics_decay=0.8), (True, False)),
        ((10, 6), SoapConfig(interval=3, one_sided=True, normalize=True), (False, True)),
        ((8, 8), SoapConfig(max_dimension=4), (False, False)),
    ],
)
def test_soap_is_its_algorithm(shape, config, sides):
    gradients = layers(3, *shape)
    found, states = directions(soap(config, OWN), gradients)
    decay = config.statistics_decay or OWN.b2
    for layer in range(3):
        own = [g[layer] for g in gradients]
        bases = []
        for side, name in enumerate(("left", "right")):
            if not sides[side]:
                assert not jax.tree.leaves(getattr(states[0], f"{name}_basis"))
                bases.append(None)
                continue
            statistics = (1 - decay) * (own[0] @ own[0].T if side == 0 else own[0].T @ own[0])
            basis = array_of(states[0], f"{name}_basis", layer)
            np.testing.assert_allclose(array_of(states[0], name, layer), statistics, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(basis.T @ basis, np.eye(len(basis)), atol=2e-6)
            rotated = basis.T @ statistics @ basis
            assert np.abs(rotated - np.diag(np.diag(rotated))).max() < 1e-5 * rotated.max()
            assert (np.diff(np.diag(rotated)) < 1e-5 * rotated.max()).all()  # the largest first
            bases.append(basis)
        wanted = soap_alone(own, config.interval, sides, bases, decay, config.normalize)
        assert not found[0][layer].any()
        for step, expected in enumerate(wanted):
            np.testing.assert_allclose(found[step][layer], expected, atol=2e-3, err_msg=f"step {step}")


def test_the_basis_of_soap_becomes_that_of_the_statistics():
    """By refreshes alone, from the eigenvectors of another gradient, of matrices that stay the same."""
    first, same = layers(1, 6, 6, 2)
    _, states = directions(soap(SoapConfig(interval=1, statistics_decay=0.5), OWN), [first] + [same] * 60)
    basis, statistics = array_of(states[-1], "left_basis", 0), array_of(states[-1], "left", 0)
    rotated = basis.T @ statistics @ basis
    np.testing.assert_allclose(np.diag(rotated), np.linalg.eigvalsh(statistics)[::-1], rtol=1e-3, atol=1e-6)


def shampoo_alone(gradients, config, sides):
    """Algorithm 1 of arXiv 1802.09568 with a moving average, momentum and grafting."""
    decay = OWN.b2 if config.statistics_decay is None else config.statistics_decay
    shape = gradients[0].shape
    statistics, roots = [np.zeros((n, n)) for n in shape], [np.eye(n) for n in shape]
    momentum, second, found = np.zeros(shape), np.zeros(shape), []
    for t, g in enumerate(gradients, 1):
        momentum, second = OWN.b1 * momentum + (1 - OWN.b1) * g, OWN.b2 * second + (1 - OWN.b2) * g**2
        products = (g @ g.T, g.T @ g)
        statistics = [decay * s + (1 - decay if decay < 1 else 1) * x for s, x in zip(statistics, products)]
        if (t - 1) % config.interval == 0:
            for side in (side for side in range(2) if sides[side]):
                values, vectors = np.linalg.eigh(statistics[side] / (1 - decay**t if decay < 1 else 1))
                values = np.maximum(values, 0) + config.ridge * values[-1]
                roots[side] = vectors @ np.diag(values ** (-0.5 / sum(sides))) @ vectors.T
        mean = momentum / (1 - OWN.b1**t)
        out = roots[0] @ mean @ roots[1]
        if config.graft != "none":
            adam = (mean if config.graft == "adam" else g) / (np.sqrt(second / (1 - OWN.b2**t)) + OWN.epsilon)
            out *= np.linalg.norm(adam) / np.linalg.norm(out)
        found.append(out)
    return found


@pytest.mark.parametrize("root", ["eigh", "newton"])
@pytest.mark.parametrize(
    ("shape", "config", "sides"),
    [
        ((8, 8), ShampooConfig(interval=3, ridge=1e-3), (True, True)),
        ((6, 10), ShampooConfig(interval=3, ridge=1e-3, graft="none", statistics_decay=1.0), (True, True)),
        ((6, 10), ShampooConfig(interval=1, ridge=1e-3, max_dimension=8, graft="rmsprop"), (True, False)),
        ((10, 6), ShampooConfig(interval=3, ridge=1e-3, one_sided=True), (False, True)),
    ],
)
def test_shampoo_is_its_algorithm(shape, config, sides, root):
    gradients = layers(3, *shape)
    found, _ = directions(shampoo(dataclasses.replace(config, root=root), OWN), gradients)
    for layer in range(3):
        for step, expected in enumerate(shampoo_alone([g[layer] for g in gradients], config, sides)):
            size = np.abs(expected).max()
            np.testing.assert_allclose(found[step][layer], expected, atol=1e-3 * size, err_msg=f"step {step}")


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("power", [2.0, 4.0])
def test_inverse_roots(root, power):
    """Of well and badly conditioned matrices of all sizes of gradient, and of zero, in one stack."""
    random = np.random.default_rng(0)
    factors = [10.0**-size * random.standard_normal((12, rank)) for size, rank in ((0, 40), (6, 40), (3, 12), (0, 3))]
    stack = np.array([f @ f.T for f in factors] + [np.zeros((12, 12))])
    found = ROOTS[root](jnp.asarray(stack, jnp.float32), jnp.full(5, power), 1e-4)
    for matrix, out in zip(stack[:-1], found):
        values, vectors = np.linalg.eigh(matrix)
        wanted = (vectors * (np.maximum(values, 0) + 1e-4 * values[-1]) ** (-1 / power)) @ vectors.T
        np.testing.assert_allclose(out, wanted, atol=2e-3 * np.abs(wanted).max())
    np.testing.assert_allclose(found[-1], np.eye(12), atol=1e-6)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"soap": {"interval": 0}}, r"optim.soap: interval=0 must be 1 or more"),
        ({"soap": {"max_dimension": -1}}, r"optim.soap: max_dimension=-1 must be 0 or more"),
        ({"soap": {"statistics_decay": 1.0}}, r"optim.soap: statistics_decay=1.0 must lie in 0..1, 1 excluded"),
        ({"soap": {"intervall": 3}}, r"optim.soap.intervall.*interval"),
        ({"shampoo": {"ridge": 0.0}}, r"optim.shampoo: ridge=0.0 must be positive"),
        ({"shampoo": {"root": "qr"}}, r"optim.shampoo.root='qr' is not a choice"),
        ({"shampoo": {"graft": "adan"}}, r"optim.shampoo.graft='adan' is not a choice.*adam"),
    ],
)
def test_settings_that_cannot_be_are_refused(tree, message):
    with pytest.raises(UserError, match=message):
        parse(OptimConfig, tree, "optim")


@pytest.mark.parametrize("config", [SoapConfig(), SoapConfig(one_sided=True), SoapConfig(max_dimension=8)])
def test_the_state_is_as_large_as_it_is_said_to_be(config):
    up = {"layers": {"feed_forward": {"up": jax.ShapeDtypeStruct((3, 6, 10), jnp.float32)}}}
    matrices = jax.eval_shape(soap(config, OWN).init, up).matrices
    said = cost(3, 6, 10, config.max_dimension, config.one_sided, config.interval)
    assert sum(4 * leaf.size for leaf in jax.tree.leaves(matrices)) == said.state_bytes
    assert said.flops > 0


def test_vectors_are_refused():
    with pytest.raises(UserError, match=r"layers/attention_norm/scale of shape \(2, 8\) is no matrix"):
        soap(SoapConfig(), OWN).init({"layers": {"attention_norm": {"scale": jnp.ones((2, 8))}}})


def test_stacks_are_laid_one_behind_the_other_over_the_devices():
    """Seven stacks of 36 matrices on 256 devices: one each, not seven; and none in two places."""
    ((size, places),) = shared_out([36] * 7, 256)
    assert size == 256
    assert [place for _, place in places] == [slice(36 * i, 36 * i + 36) for i in range(7)]
    assert [(size, len(places)) for size, places in shared_out([36] * 8, 256)] == [(256, 7), (256, 1)]
    assert [size for size, _ in shared_out([3, 10, 1, 4], 4)] == [4, 12, 4, 4]
