import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from core.errors import UserError
from model import transformer
from model.config import ModelConfig
from optim.build import build
from optim.config import ClipConfig, GroupConfig, OptimConfig, QKClipConfig
from optim.groups import groups, label
from optim.matrices import from_matrices, layout_of, to_matrices
from optim.metrics import Metrics, collect
from optim.schedule import warmup_stable_decay

MODEL = ModelConfig(vocab_size=64, num_layers=2, d_model=32, num_heads=2, num_kv_heads=1, head_dim=16, d_ff=32)


def test_warmup_stable_decay_has_its_three_parts():
    schedule = warmup_stable_decay(OptimConfig(learning_rate=1.0, warmup_steps=4, decay_fraction=0.25), 16)
    rates = [float(schedule(step)) for step in range(17)]
    np.testing.assert_allclose(rates[:4], [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(rates[4:13], 1.0)
    np.testing.assert_allclose(rates[13:], [0.75, 0.5, 0.25, 0.0])


def test_a_schedule_that_does_not_fit_is_refused():
    with pytest.raises(
        UserError, match=r"warmup_steps=90 and a decay over the last 20 do not fit into train.steps=100"
    ):
        warmup_stable_decay(OptimConfig(warmup_steps=90, decay_fraction=0.2), 100)


def test_every_parameter_has_one_group():
    labels = label(transformer.init(MODEL, 0))
    assert labels["embedding"] == "embedding"
    assert label(transformer.init(dataclasses.replace(MODEL, tied_head=False), 0))["head"] == "head"
    assert labels["final_norm"]["scale"] == labels["layers"]["attention_norm"]["scale"] == "norm"
    assert set(jax.tree.leaves(labels["layers"]["attention"])) == {"matrix"}
    with pytest.raises(AssertionError, match=r"parameter surprise is in no group"):
        label({"surprise": 0})


def test_a_group_takes_what_its_pattern_matches_and_has_settings_of_its_own():
    """The up projections at twice the rate, the embedding with decay, key and value without."""
    own = {
        "up": GroupConfig(pattern="layers/feed_forward/up", multiplier=2.0, weight_decay=0.0),
        "embedding": GroupConfig(weight_decay=0.5),
    }
    config = OptimConfig(learning_rate=0.1, warmup_steps=1, decay_fraction=0.0, weight_decay=0.0)
    params = transformer.init(MODEL, 0)
    ones = jax.tree.map(jnp.ones_like, params)
    moved = []
    for chosen in (config, dataclasses.replace(config, groups=own)):
        chain, _ = build(chosen, 10)
        moved.append(chain.update(ones, chain.init(params), params)[0])
    plain, grouped = moved
    np.testing.assert_allclose(grouped["layers"]["feed_forward"]["up"], 2 * plain["layers"]["feed_forward"]["up"])
    np.testing.assert_array_equal(grouped["layers"]["feed_forward"]["down"], plain["layers"]["feed_forward"]["down"])
    np.testing.assert_allclose(
        grouped["embedding"], plain["embedding"] - 0.1 * 0.5 * params["embedding"], rtol=1e-5, atol=1e-7
    )


def test_what_a_group_leaves_out_is_as_where_its_parameters_come_from():
    """Matrices keep optimiser and decay, norms theirs, in one group of the config's own."""
    own = {"quick": GroupConfig(pattern="layers/(attention/(query|key)|attention_norm/scale)", multiplier=2.0)}
    config = OptimConfig(optimizer="soap", weight_decay=0.3, groups=own)
    params = transformer.init(MODEL, 0)
    labels, found = label(params, config)["layers"], groups(config)
    query, scale = found[labels["attention"]["query"]], found[labels["attention_norm"]["scale"]]
    assert (query.direction.optimizer, query.weight_decay, query.multiplier) == ("soap", 0.3, 2.0)
    assert (scale.direction.optimizer, scale.weight_decay, scale.multiplier) == ("adamw", 0.0, 2.0)
    kept = {"norm": GroupConfig(multiplier=0.5), "first": GroupConfig(pattern="layers/attention_norm/scale", b1=0.8)}
    assert groups(OptimConfig(groups=kept))["first/norm"].multiplier == 0.5
    chain, _ = build(config, 10_000)
    chain.update(params, chain.init(params), params, loss=jnp.zeros(()))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (OptimConfig(optimizer="adamv"), r"optim.optimizer='adamv' is not known.*adamw"),
        (
            OptimConfig(groups={"norm": GroupConfig(optimizer="mun")}),
            r"groups.norm.optimizer='mun' is not known",
        ),
        (
            OptimConfig(optimizer="muon", groups={"ups": GroupConfig(pattern="layers/.*/up", b1=0.8)}),
            r"groups.ups.b1: Muon has none; optim.muon.momentum",
        ),
        (
            OptimConfig(clip=ClipConfig(kind="agc", agc_exempt=("hed",))),
            r"agc_exempt: 'hed' is no group of parameters; did you mean head",
        ),
        (
            OptimConfig(groups={"bias": GroupConfig(multiplier=2.0)}),
            r"config optim.groups.bias matches no parameter; there are embedding, ",
        ),
        (OptimConfig(groups={"ups": GroupConfig()}), r"groups.ups is none of embedding, head, .* needs a pattern"),
        (
            OptimConfig(groups={"ups": GroupConfig(pattern="layers/ups")}),
            r"groups.ups.pattern='layers/ups' matches no parameter; there are embedding, ",
        ),
        (
            OptimConfig(groups={"matrix": GroupConfig(pattern="layers/attention/query")}),
            r"parameter layers/attention/key is in no group",
        ),
        (
            OptimConfig(groups={name: GroupConfig(pattern="layers/.*/query") for name in ("one", "two")}),
            r"parameter layers/attention/query is in the groups one and two",
        ),
        (
            OptimConfig(
                qk_clip=QKClipConfig(100.0), groups={"still": GroupConfig(pattern="layers/.*/key", multiplier=0.0)}
            ),
            r"groups.still.multiplier=0 leaves layers/attention/key as it is, and optim.qk_clip.threshold scales it",
        ),
    ],
)
def test_groups_that_cannot_be_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        build(config, 10_000)[0].init(transformer.init(MODEL, 0))


@pytest.mark.parametrize(("split", "stacks"), [("projection", (2,)), ("head", (2, 2))])
def test_parameters_as_matrices_and_back(split, stacks):
    params = transformer.init(MODEL, 0)["layers"]
    for name in ("attention/query", "attention/output", "feed_forward/gate", "feed_forward/down"):
        room, _, one = name.partition("/")
        x = params[room][one]
        layout = layout_of(f"layers/{name}", x.shape, split)
        x_SIO = to_matrices(x, layout)
        if room == "attention":
            assert x_SIO.shape[:-2] == stacks
        np.testing.assert_array_equal(from_matrices(x_SIO, layout, x.shape), x)
    query_LDNH = params["attention"]["query"]
    x_LDM = to_matrices(query_LDNH, layout_of("layers/attention/query", query_LDNH.shape))
    hidden_D = np.arange(32.0)
    np.testing.assert_allclose(
        hidden_D @ x_LDM[1], np.einsum("D,DNH->NH", hidden_D, query_LDNH[1]).ravel(), rtol=1e-5, atol=1e-5
    )


def test_a_pattern_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"pattern='embedding\(' is no regular expression"):
        GroupConfig(pattern="embedding(")


def test_a_vector_is_no_matrix():
    with pytest.raises(UserError, match=r"layers/attention_norm/scale of shape \(2, 32\) is no matrix .*'adamw'"):
        layout_of("layers/attention_norm/scale", (2, 32))


def test_metrics_are_collected_from_anywhere_in_a_state():
    state = ((Metrics({"clipped": jnp.ones(())}), optax.EmptyState()), {"inner": Metrics({"skipped": jnp.zeros(())})})
    assert {name: float(value) for name, value in collect(state).items()} == {"clipped": 1.0, "skipped": 0.0}
    with pytest.raises(AssertionError, match="two transformations measure"):
        collect((state, Metrics({"clipped": jnp.ones(())})))


def test_the_chain_is_adamw_with_clipping_and_masked_decay():
    """Three steps beside optax.adamw on gradients clipped by hand."""
    config = OptimConfig(learning_rate=0.1, warmup_steps=1, decay_fraction=0.0, weight_decay=0.3, clip_norm=0.5)
    params = transformer.init(MODEL, 0)
    chain, _ = build(config, 10)
    state = chain.init(params)
    matrix = jax.tree.map(lambda group: group == "matrix", label(params))
    reference = optax.adamw(0.1, config.b1, config.b2, config.epsilon, weight_decay=0.3, mask=matrix)
    reference_state, reference_params = reference.init(params), params
    for step in range(3):
        keys = jax.random.split(jax.random.key(step), len(jax.tree.leaves(params)))
        leaves, tree = jax.tree.flatten(params)
        grads = tree.unflatten([jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)])
        updates, state = chain.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        norm = np.sqrt(sum(float(jnp.square(g).sum()) for g in jax.tree.leaves(grads)))
        clipped = jax.tree.map(lambda g, scale=0.5 / norm: g * scale, grads)
        updates, reference_state = reference.update(clipped, reference_state, reference_params)
        reference_params = optax.apply_updates(reference_params, updates)
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(reference_params)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_norms_and_embedding_do_not_decay():
    config = OptimConfig(learning_rate=0.1, warmup_steps=1, decay_fraction=0.0, weight_decay=0.5)
    params = transformer.init(MODEL, 0)
    chain, _ = build(config, 10)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = chain.update(zeros, chain.init(params), params)
    assert not np.any(updates["embedding"])
    assert not np.any(updates["final_norm"]["scale"])
    np.testing.assert_allclose(
        updates["layers"]["feed_forward"]["up"], -0.05 * params["layers"]["feed_forward"]["up"], rtol=1e-5
    )
