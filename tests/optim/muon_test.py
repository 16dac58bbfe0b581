"""Muon beside Optax's, on the transformer's parameters."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers
from optax.contrib import scale_by_muon as optax_muon
from optax.contrib._muon import scale_by_shape

from core.config import parse
from core.errors import UserError
from model import transformer
from model.config import ModelConfig
from optim.build import build
from optim.config import GroupConfig, MuonConfig, OptimConfig
from optim.groups import label
from optim.muon import scale_by_muon
from optim.newton_schulz import COEFFICIENTS

MODEL = ModelConfig(vocab_size=64, num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=48)
FLOAT32 = MuonConfig(coefficients="standard", dtype="float32")
# Axes that a parameter is multiplied from and gives; all others are stacks.
DIMENSIONS = {
    "projection": {
        "attention": {
            "query": MuonDimensionNumbers(1, (2, 3)),
            "key": MuonDimensionNumbers(1, (2, 3)),
            "value": MuonDimensionNumbers(1, (2, 3)),
            "output": MuonDimensionNumbers((1, 2), 3),
        },
        "feed_forward": dict.fromkeys(("gate", "up", "down"), MuonDimensionNumbers(1, 2)),
    },
    "head": {
        "attention": {
            "query": MuonDimensionNumbers(1, 3),
            "key": MuonDimensionNumbers(1, 3),
            "value": MuonDimensionNumbers(1, 3),
            "output": MuonDimensionNumbers(2, 3),
        },
        "feed_forward": dict.fromkeys(("gate", "up", "down"), MuonDimensionNumbers(1, 2)),
    },
}


def matrices(params):
    """Those of the transformer that are matrices inside layers."""
    layers = params["layers"]
    attention = {name: layers["attention"][name] for name in ("query", "key", "value", "output")}
    return {"layers": {"attention": attention, "feed_forward": layers["feed_forward"]}}


def gradients(params, seed):
    """Random, of any size: Muon sees no scale."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), params)


PARAMS = matrices(transformer.init(MODEL, 0))
FEW = {  # one of each kind
    "layers": {
        "attention": {name: PARAMS["layers"]["attention"][name] for name in ("key", "output")},
        "feed_forward": {name: PARAMS["layers"]["feed_forward"][name] for name in ("gate", "down")},
    }
}
TWO = {"layers": {"feed_forward": {name: PARAMS["layers"]["feed_forward"][name] for name in ("gate", "down")}}}


@pytest.mark.parametrize(
    ("split", "coefficients", "scaling", "nesterov"),
    [
        ("projection", "standard", "spectral", True),
        ("head", "per_step", "rms", False),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in itertools.product(
                ("projection", "head"), ("standard", "per_step"), ("spectral", "rms"), (True, False)
            )
        ),
    ],
)
def test_updates_are_those_of_optax(split, coefficients, scaling, nesterov):
    """Over steps; rounding alone puts either up to 1e-6 from float64."""
    config = dataclasses.replace(FLOAT32, split=split, coefficients=coefficients, scaling=scaling, nesterov=nesterov)
    rows = COEFFICIENTS[coefficients].rows
    rows = rows[0] if coefficients == "standard" else rows
    numbers = {
        "layers": {
            room: {name: DIMENSIONS[split][room][name] for name in FEW["layers"][room]} for room in FEW["layers"]
        }
    }
    theirs = optax.chain(
        optax_muon(rows, nesterov=nesterov, weight_dimension_numbers=numbers),
        scale_by_shape(numbers, 0.2 if scaling == "rms" else None),
    )
    ours = scale_by_muon(config)
    state, their_state = ours.init(FEW), theirs.init(FEW)
    ours_update, their_update = jax.jit(ours.update), jax.jit(theirs.update)
    for step in range(4):
        grads = gradients(FEW, step)
        updates, state = ours_update(grads, state)
        wanted, their_state = their_update(grads, their_state)
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(updates), jax.tree.leaves(wanted)):
            scale = 0.2 * np.sqrt(48) if scaling == "rms" else np.sqrt(4 if split == "head" else 1.5)  # the largest
            np.testing.assert_allclose(a / scale, b / scale, rtol=1e-6, atol=1e-6, err_msg=str(path))


def test_the_whole_chain_is_optax_muon():
    """Rate and decay included, and the embedding by AdamW (to which Optax's labels of its own would give Muon)."""
    settings = OptimConfig(
        "muon", learning_rate=0.02, warmup_steps=1, decay_fraction=0.0, b2=0.999, clip_norm=1e9, muon=FLOAT32
    )
    layers = {"attention": {"output": PARAMS["layers"]["attention"]["output"]}}
    params = {"embedding": transformer.init(MODEL, 0)["embedding"], "layers": layers}
    numbers = {"embedding": None, "layers": {"attention": {"output": MuonDimensionNumbers((1, 2), 3)}}}
    theirs = optax.contrib.muon(
        0.02, weight_decay=0.1, muon_weight_dimension_numbers=numbers, consistent_rms=0.2, nesterov=True
    )

    def train(chain):
        def step(params, state, grads):
            updates, state = chain.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        now, state, step = params, chain.init(params), jax.jit(step)
        for number in range(3):
            now, state = step(now, state, gradients(params, number))
        return now

    mine, other = train(build(settings, 10)[0]), train(theirs)
    output, wanted = (tree["layers"]["attention"]["output"] for tree in (mine, other))
    np.testing.assert_allclose(output, wanted, rtol=0, atol=1e-6)
    plain = train(optax.adam(0.02))  # Optax gives its AdamW Nesterov's step with Muon's, ours has none
    np.testing.assert_allclose(mine["embedding"], plain["embedding"], rtol=0, atol=1e-6)


def test_every_parameter_is_one_optimisers():
    """Muon's momentum covers the matrices, AdamW's moments all else, and nothing twice."""
    params = transformer.init(dataclasses.replace(MODEL, tied_head=False, qk_norm=True), 0)
    chain, _ = build(OptimConfig(optimizer="muon"), 10_000)
    held = chain.init(params).inner[1].inner_states
    momentum, moment = held["muon"].inner_state.momentum, held["adamw"].inner_state.mu
    paths = [
        {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (momentum, moment, params)
    ]
    assert not paths[0] & paths[1]
    assert paths[0] | paths[1] == paths[2]
    matrix = {
        jax.tree_util.keystr(path)
        for path, group in jax.tree_util.tree_leaves_with_path(label(params))
        if group == "matrix"
    }
    assert paths[0] == matrix


def test_bfloat16_is_near_float32():
    grads, both = gradients(TWO, 0), []
    for own in ({}, {"dtype": "bfloat16", "momentum_dtype": "bfloat16"}):
        muon = scale_by_muon(dataclasses.replace(FLOAT32, coefficients="polar_express", **own))
        updates, state = jax.jit(muon.update)(grads, muon.init(TWO))
        both.append(updates)
        kept = {leaf.dtype for leaf in jax.tree.leaves(state.momentum)}
        assert kept == {jnp.dtype(own.get("momentum_dtype", "float32"))}
        assert state.mean_square == ()
    for wide, narrow in zip(*map(jax.tree.leaves, both)):
        assert narrow.dtype == jnp.float32
        assert np.linalg.norm(wide - narrow) < 0.05 * np.linalg.norm(wide)


def test_normuon_evens_neurons_and_keeps_the_norm():
    """One step by hand, in NumPy; then gradients whose neurons differ give neurons alike."""
    config = dataclasses.replace(FLOAT32, normuon_b2=0.95, scaling="spectral")
    plain = scale_by_muon(dataclasses.replace(config, normuon_b2=0.0))
    muon = scale_by_muon(config)
    grads, state = gradients(TWO, 0), muon.init(TWO)
    o, _ = jax.jit(plain.update)(grads, plain.init(TWO))
    got, state = jax.jit(muon.update)(grads, state)
    for name, along in (("gate", -2), ("down", -1)):  # more outputs than inputs: a number an output
        o_LIO, y_LIO = (np.asarray(tree["layers"]["feed_forward"][name], np.float64) for tree in (o, got))
        scale = np.sqrt(max(1.0, o_LIO.shape[2] / o_LIO.shape[1]))
        o_LIO /= scale
        square = 0.05 * np.mean(o_LIO**2, along, keepdims=True)
        kept = state.mean_square["layers"]["feed_forward"][name]
        np.testing.assert_allclose(kept, square.squeeze(along), rtol=1e-5)
        wanted = o_LIO / np.sqrt(square)
        wanted *= np.linalg.norm(o_LIO, axis=(1, 2), keepdims=True) / np.linalg.norm(
            wanted, axis=(1, 2), keepdims=True
        )
        np.testing.assert_allclose(y_LIO, scale * wanted, rtol=1e-4, atol=1e-6)
        rms = np.sqrt(np.mean(y_LIO**2, along))
        np.testing.assert_allclose(rms, np.broadcast_to(rms.mean(-1, keepdims=True), rms.shape), rtol=1e-4)
        before, after = (np.linalg.norm(one, axis=(1, 2)) for one in (scale * o_LIO, y_LIO))
        np.testing.assert_allclose(before, after, rtol=1e-5)


def test_cautious_decay_waits_for_the_update():
    """Decay where the step shrinks the weight, nowhere else; plain decay everywhere."""
    config = OptimConfig(learning_rate=0.1, warmup_steps=1, decay_fraction=0.0, weight_decay=0.5)
    params = {"embedding": transformer.init(MODEL, 0)["embedding"], **TWO}
    grads = gradients(params, 0)
    moved = {}
    for name, own in (
        ("none", dataclasses.replace(config, weight_decay=0.0)),
        ("plain", config),
        ("cautious", dataclasses.replace(config, cautious_decay=True)),
    ):
        chain, _ = build(own, 10)
        moved[name] = jax.jit(chain.update)(grads, chain.init(params), params)[0]
    w = params["layers"]["feed_forward"]["gate"]
    none, plain, cautious = (moved[name]["layers"]["feed_forward"]["gate"] for name in ("none", "plain", "cautious"))
    shrinks = np.asarray(none * w) < 0
    assert 0.3 < shrinks.mean() < 0.7
    np.testing.assert_allclose(cautious, np.where(shrinks, plain, none), atol=1e-7)
    np.testing.assert_array_equal(moved["cautious"]["embedding"], moved["none"]["embedding"])


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (
            {"norm": GroupConfig(optimizer="muon")},
            r"final_norm/scale of shape \(32,\) is no matrix .* give that group optimizer='adamw'",
        ),
        ({"embedding": GroupConfig(optimizer="muon")}, r"embedding of shape \(64, 32\) is no matrix inside a layer"),
    ],
)
def test_muon_on_what_is_no_matrix_inside_a_layer_is_refused(groups, words):
    chain, _ = build(OptimConfig(optimizer="muon", groups=groups), 10_000)
    with pytest.raises(UserError, match=words):
        chain.init(transformer.init(MODEL, 0))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"coefficients": "polar"},
            r"config optim.muon.coefficients='polar' is not a choice; did you mean polar",
        ),
        ({"scaling": "moonlight"}, r"config optim.muon.scaling='moonlight' is not a choice"),
        ({"momentum": 1.0}, r"config optim.muon: momentum=1.0 must lie in 0..1"),
        ({"steps": -1}, r"config optim.muon: steps=-1 must be 0 or more"),
        ({"nesterof": True}, r"unknown config key optim.muon.nesterof; did you mean nesterov"),
    ],
)
def test_settings_that_cannot_be_are_refused(keys, words):
    with pytest.raises(UserError, match=words):
        parse(OptimConfig, {"muon": keys}, "optim")
