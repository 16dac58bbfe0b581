import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numpy_transformer
from kernels.rope.api import rotate
from model import transformer
from model.config import ModelConfig, MultiToken, RopeScaling
from model.position import rotary_table

CONFIG = ModelConfig(
    vocab_size=64, num_layers=5, d_model=32, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=48, init_std=0.2
)
B, T = 2, 24
apply = jax.jit(transformer.apply, static_argnums=0)


@pytest.fixture(scope="module")
def params():
    return jax.jit(transformer.init, static_argnums=(0, 1))(CONFIG, 0)


def inputs(segments=None, seed=0):
    tokens = np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (B, T))
    segments = np.ones((B, T), np.int32) if segments is None else np.broadcast_to(segments, (B, T))
    return jnp.array(tokens), jnp.array(segments), jnp.broadcast_to(jnp.arange(T), (B, T))


def test_parameters_are_stacked_plain_dicts_and_counted(params):
    assert params["layers"]["attention"]["query"].shape == (5, 32, 4, 8)
    assert params["layers"]["feed_forward"]["down"].shape == (5, 48, 32)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == CONFIG.num_parameters
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_layers_start_different(params):
    query = params["layers"]["attention"]["query"]
    assert not np.allclose(query[0], query[1])
    assert np.std(query) == pytest.approx(CONFIG.init_std, rel=0.05)


def random_params(config: ModelConfig) -> transformer.Params:
    """No weight is 0 or 1, so that every bias and scale counts."""
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: random.normal(0, 0.4, leaf.shape).astype(np.float32), transformer.abstract(config)
    )


def options() -> st.SearchStrategy[ModelConfig]:
    """Models of every option of the config, which all compute on T = 12 tokens."""
    flag, maybe = st.booleans(), st.sampled_from
    return st.builds(
        lambda window, every, **rest: ModelConfig(
            **{"vocab_size": 20, "num_layers": 2, "d_model": 12, "num_heads": 4, "head_dim": 6, "d_ff": 10, **rest},
            sliding_window=window,
            global_every=every if window else 0,
        ),
        window=maybe([0, 1, 4, 30]), every=maybe([0, 2]), num_kv_heads=maybe([1, 2, 4]),
        no_rope_every=maybe([0, 1, 2]),
        rope_theta=maybe([10.0, 5e5]), rope_pairs=maybe(["half_split", "interleaved"]), qk_norm=flag, qkv_bias=flag,
        output_bias=flag, attention_scale=maybe([None, 0.7]), attention_soft_cap=maybe([None, 1.5]),
        feed_forward=maybe(["swiglu", "geglu", "relu2"]), feed_forward_bias=flag, norm=maybe(["rms", "layer"]),
        norm_position=maybe(["pre", "pre_post"]), norm_epsilon=maybe([1e-6, 0.1]), norm_plus_one=flag, tied_head=flag,
        embedding_scale=maybe([1.0, 3.5]), final_soft_cap=maybe([None, 2.0]),
    )  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(config=options())
def test_parameters_of_any_model_are_counted(config):
    leaves = jax.tree.leaves(transformer.abstract(config))
    assert sum(leaf.size for leaf in leaves) == config.num_parameters
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)


DOCUMENTS = np.repeat([1, 2, 0], [5, 6, 1])  # the last is padding
PLACES = np.array([*range(5), *range(6), 0])


@functools.partial(jax.jit, static_argnums=0)
def run(config, params, tokens_T):
    """Hidden states, largest logits and logits of a row, and which token each hidden state takes a gradient from."""
    rows = params["embedding"][tokens_T]  # differentiate by what each position looked up
    direction_TD = jax.random.normal(jax.random.key(0), rows.shape)  # the sum of a LayerNorm would be constant

    def trunk(rows):
        own = {**params, "embedding": rows}
        output = transformer.apply(config, own, jnp.arange(len(rows))[None], DOCUMENTS[None], PLACES[None])
        return output.hidden_BTD[0], output.max_logit_LN

    hidden_TD, pull, max_logit_LN = jax.vjp(trunk, rows, has_aux=True)
    gradient_TTD = jax.vmap(lambda one_T: pull(one_T[:, None] * direction_TD)[0])(jnp.eye(len(rows)))
    return hidden_TD, max_logit_LN, transformer.logits(config, params, hidden_TD), jnp.abs(gradient_TTD).sum(-1)


def check_against_numpy(config):
    params, tokens = random_params(config), np.random.default_rng(2).integers(0, config.vocab_size, 12)
    hidden, maxima, logits, gradient = run(config, params, tokens)
    expected, expected_maxima = numpy_transformer.forward(config, params, tokens, DOCUMENTS, PLACES)
    np.testing.assert_allclose(hidden, expected, atol=2e-4, rtol=2e-3)
    np.testing.assert_allclose(maxima, expected_maxima, atol=2e-4, rtol=1e-4)  # before the soft cap

    by_hand = expected @ np.float64(params["embedding" if config.tied_head else "head"]).T
    if config.final_soft_cap is not None:
        by_hand = config.final_soft_cap * np.tanh(by_hand / config.final_soft_cap)
    np.testing.assert_allclose(logits, by_hand, atol=2e-3, rtol=2e-3)

    causal = np.tril(DOCUMENTS[:, None] == DOCUMENTS)
    assert not np.any(gradient[~causal])  # nothing from later tokens and other documents, to the bit
    return gradient


@settings(max_examples=4, deadline=None)  # a second of compiling each
@given(config=options())
def test_any_model_computes_what_numpy_does_and_sees_the_past_of_its_document_only(config):
    check_against_numpy(config)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"norm": "layer", "feed_forward": "relu2", "qkv_bias": True, "output_bias": True,
         "feed_forward_bias": True},
        {"feed_forward": "geglu", "norm_position": "pre_post", "norm_plus_one": True, "embedding_scale": 3.5,
         "attention_soft_cap": 1.5, "final_soft_cap": 2.0, "sliding_window": 4, "global_every": 2,
         "tied_head": False},
        {"qk_norm": True, "rope_pairs": "interleaved", "attention_scale": 0.7, "num_kv_heads": 1},
    ],
    ids=["SmolLM3", "LayerNorm, ReLU squared, biases", "Gemma 2", "QK-norm, interleaved"],
)  # fmt: skip
def test_kinds_of_models_compute_what_numpy_does(change):
    check_against_numpy(dataclasses.replace(CONFIG, num_layers=4 if not change else 2, **change))


@pytest.mark.parametrize(("window", "every"), [(1, 0), (4, 2), (3, 1)])
def test_a_token_sees_its_window_and_nothing_further(window, every):
    """One layer, so that nothing is handed on."""
    config = dataclasses.replace(CONFIG, num_layers=1, sliding_window=window, global_every=every)
    gradient = check_against_numpy(config)
    distance = np.arange(12)[:, None] - np.arange(12)
    own = (distance >= 0) & (DOCUMENTS[:, None] == DOCUMENTS)
    np.testing.assert_array_equal(np.array(gradient) > 0, own & (distance < window) if every != 1 else own)


def test_packing_two_documents_changes_neither(params):
    tokens, _, _ = inputs()
    lengths = (10, 14)
    segments = jnp.array(np.repeat([1, 2], lengths))[None].repeat(B, 0)
    positions = jnp.array(np.concatenate([np.arange(n) for n in lengths]))[None].repeat(B, 0)
    packed = apply(CONFIG, params, tokens, segments, positions).hidden_BTD
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        ones, counted = jnp.ones((B, length), jnp.int32), jnp.broadcast_to(jnp.arange(length), (B, length))
        alone = apply(CONFIG, params, tokens[:, part], ones, counted).hidden_BTD
        np.testing.assert_allclose(packed[:, part], alone, atol=2e-5)
        start += length


def test_rope_makes_logits_depend_on_distance_only():
    random = np.random.default_rng(0)
    q, k = random.normal(size=(2, 1, 1, 1, 16)).astype(np.float32)
    logits = []
    for base in (0, 5, 1000):
        cos, sin = rotary_table(jnp.array([[base, base + 3]]), dataclasses.replace(CONFIG, head_dim=16))
        rotated_q = rotate(jnp.array(q), cos[:, 1:], sin[:, 1:])
        rotated_k = rotate(jnp.array(k), cos[:, :1], sin[:, :1])
        logits.append(float((rotated_q * rotated_k).sum()))
    np.testing.assert_allclose(logits, logits[0], rtol=2e-4)
    assert abs(logits[0] - float((q * k).sum())) > 1e-3


def test_layers_without_rope_ignore_positions():
    config = dataclasses.replace(CONFIG, no_rope_every=1)
    params = random_params(config)
    tokens, segments, positions = inputs()
    one = apply(config, params, tokens, segments, positions).hidden_BTD
    other = apply(config, params, tokens, segments, positions * 7 + 3).hidden_BTD
    np.testing.assert_array_equal(one, other)


@functools.partial(jax.jit, static_argnums=0)
def gradient_of(config, params):
    return jax.grad(lambda params: jnp.square(transformer.apply(config, params, *inputs()).hidden_BTD).mean())(params)


@pytest.fixture(scope="module")
def plain_gradient(params):
    return gradient_of(CONFIG, params)


@pytest.mark.parametrize("remat", transformer.REMAT_POLICIES)
def test_recomputation_changes_no_gradient(params, plain_gradient, remat):
    recomputed = gradient_of(dataclasses.replace(CONFIG, remat=remat), params)
    for a, b in zip(jax.tree.leaves(plain_gradient), jax.tree.leaves(recomputed)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_bfloat16_computes_close_to_float32(params):
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    full = apply(CONFIG, params, *inputs()).hidden_BTD
    half = apply(config, params, *inputs()).hidden_BTD
    assert half.dtype == jnp.bfloat16
    error = np.abs(np.array(half, np.float32) - np.array(full)).max() / np.abs(full).max()
    assert 0 < error < 0.05


def test_max_logits_are_reported_by_layer_and_head(params):
    output = apply(CONFIG, params, *inputs())
    assert output.max_logit_LN.shape == (5, 4)
    larger = jax.tree_util.tree_map_with_path(lambda path, x: 3 * x if "query" in str(path) else x, params)
    first = apply(CONFIG, larger, *inputs()).max_logit_LN[0]
    np.testing.assert_allclose(first, 3 * output.max_logit_LN[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "not a multiple"),
        ({"head_dim": 7}, "must be even"),
        ({"d_ff": 0}, "must be positive"),
        ({"num_heads": 0}, "num_heads=0 must be positive"),
        ({"num_layers": 10_001}, "num_layers=10001 is above 10000"),
        ({"head_dim": 2, "rope_scaling": RopeScaling(ntk_factor=2.0)}, "head_dim=2 is too small"),
        ({"sliding_window": -1}, "sliding_window=-1 must be 0 or more"),
        ({"global_every": 2}, "global_every needs a sliding_window"),
        ({"rope_theta": 1.0}, "rope_theta=1.0 must be above 1"),
        ({"rope_theta": float("inf")}, "rope_theta=inf must be a finite number"),
        ({"norm_epsilon": 0.0}, "norm_epsilon=0.0 must be positive"),
        ({"embedding_scale": 0.0}, "embedding_scale=0.0 must be positive"),
        ({"embedding_scale": float("nan")}, "embedding_scale=nan must be a finite number"),
        ({"init_std": -0.1}, "init_std=-0.1 must be 0 or more"),
        ({"final_soft_cap": 0.0}, "final_soft_cap=0.0 must be positive; None leaves it out"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"factor": 2.0}, "factor=2.0 needs a kind"),
        ({"kind": "interpolation", "factor": 0.5}, "factor=0.5 must be 1 or more"),
        ({"ntk_factor": float("nan")}, "ntk_factor=nan must be a finite number"),
        ({"kind": "yarn", "factor": 2.0}, "yarn needs original_length"),
        (
            {"kind": "llama3", "original_length": 8, "high_frequency_factor": 1.0},
            "must be above low_frequency_factor",
        ),
        ({"kind": "llama3", "original_length": 8, "attention_factor": 1.0}, "attention_factor belongs to yarn"),
    ],
)
def test_impossible_scalings_are_refused(scaling, message):
    with pytest.raises(ValueError, match=message):
        RopeScaling(**scaling)


@given(length=st.integers(1, 300), window=st.integers(0, 400), every=st.integers(0, 3))
def test_flops_count_the_pairs_that_attention_sees(length, window, every):
    """12 H FLOPs for each query head and pair; the diagonal, half a key a query, is not counted."""
    config = dataclasses.replace(CONFIG, sliding_window=window, global_every=every if window else 0)
    pairs = sum(min(t + 1, width or length) for width in config.windows for t in range(length))
    matmul = 6 * (config.num_layers * config.layer_matmul_parameters + config.vocab_size * config.d_model)
    counted = (config.flops_per_token(length) - matmul) / (12 * config.num_heads * config.head_dim)
    assert 0 <= pairs / length - counted <= 0.5 * config.num_layers + 1e-9


WIDE = ModelConfig(
    512, num_layers=1, d_model=128, num_heads=4, num_kv_heads=4, head_dim=32, d_ff=512, no_rope_every=0
)


@given(length=st.integers(1, 300), window=st.integers(0, 400), modules=st.integers(1, 3))
def test_flops_of_modules_are_those_of_as_many_layers_and_output_layers(length, window, modules):
    config = dataclasses.replace(CONFIG, sliding_window=window)
    parallel, sequential = (
        dataclasses.replace(config, multi_token=MultiToken(kind, 1 + modules)) for kind in ("parallel", "sequential")
    )
    longer = dataclasses.replace(config, num_layers=config.num_layers + modules).flops_per_token(length)
    heads = 6 * modules * config.vocab_size * config.d_model
    assert parallel.flops_per_token(length) == pytest.approx(longer + heads)
    assert sequential.flops_per_token(length) == pytest.approx(longer + heads + 6 * modules * 2 * config.d_model**2)


@pytest.mark.parametrize(
    ("change", "length", "passes"),
    [
        ({}, 64, 1),
        ({}, 64, 3),
        ({"feed_forward": "relu2", "norm": "layer", "num_kv_heads": 1, "tied_head": False}, 64, 1),
        ({"feed_forward": "geglu", "norm_position": "pre_post", "qk_norm": True, "final_soft_cap": 30.0}, 64, 1),
        ({"head_dim": 128, "d_ff": 128, "vocab_size": 128}, 512, 1),  # most of it in attention
    ],
)
def test_flops_match_what_xla_counts(change, length, passes):
    """The convention leaves out norms, softmax and the like. One layer, since XLA counts the body of a scan once."""
    config = dataclasses.replace(WIDE, **change)

    def forward(params, tokens):
        ones = jnp.ones_like(tokens)
        hidden = transformer.apply(config, params, tokens, ones, ones).hidden_BTD
        return transformer.logits(config, params, hidden).sum()

    run = jax.jit(forward if passes == 1 else jax.grad(forward))
    tokens = jax.ShapeDtypeStruct((4, length), jnp.int32)
    counted = run.lower(transformer.abstract(config), tokens).compile().cost_analysis()["flops"]
    stated = config.flops_per_token(length) * 4 * length * passes / 3
    assert counted == pytest.approx(stated, rel=0.12)
