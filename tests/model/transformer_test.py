import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import transformer
from model.config import ModelConfig
from model.position import rotary_table, rotate

CONFIG = ModelConfig(
    vocab_size=64, num_layers=5, d_model=32, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=48, init_std=0.2
)
B, T = 2, 24


@pytest.fixture(scope="module")
def params():
    return transformer.init(CONFIG, 0)


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


def test_smollm3_has_its_published_size():
    smollm3 = ModelConfig(
        vocab_size=128_256,
        num_layers=36,
        d_model=2048,
        num_heads=16,
        num_kv_heads=4,
        head_dim=128,
        d_ff=11_008,
    )
    assert smollm3.num_parameters == pytest.approx(3075.1e6, abs=0.05e6)
    assert smollm3.uses_rope[:8] == (True, True, True, False) * 2


def test_no_gradient_from_later_tokens_or_other_documents(params):
    """The output at a position depends on earlier tokens of its own segment and on nothing else."""
    tokens, segments, positions = inputs(np.repeat([1, 2, 3], [7, 10, 7]))
    graph_input = params["embedding"][tokens]  # differentiate by what each position looked up

    def hidden_at(embedded, position):
        one_hot_params = {**params, "embedding": embedded.reshape(B * T, -1)}
        index = jnp.arange(B * T).reshape(B, T)
        return transformer.apply(CONFIG, one_hot_params, index, segments, positions).hidden_BTD[:, position].sum()

    for position in (0, 6, 7, 12, 16, 17, 23):
        gradient = jax.grad(hidden_at)(graph_input, position)
        touched = np.abs(np.array(gradient)).sum(axis=(0, 2)) > 0
        segment = np.array(segments[0])
        expected = (np.arange(T) <= position) & (segment == segment[position])
        np.testing.assert_array_equal(touched, expected)


def test_packing_two_documents_changes_neither(params):
    tokens, _, _ = inputs()
    lengths = (10, 14)
    segments = jnp.array(np.repeat([1, 2], lengths))[None].repeat(B, 0)
    positions = jnp.array(np.concatenate([np.arange(n) for n in lengths]))[None].repeat(B, 0)
    packed = transformer.apply(CONFIG, params, tokens, segments, positions).hidden_BTD
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        ones, counted = jnp.ones((B, length), jnp.int32), jnp.broadcast_to(jnp.arange(length), (B, length))
        alone = transformer.apply(CONFIG, params, tokens[:, part], ones, counted).hidden_BTD
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
    params = transformer.init(config, 0)
    tokens, segments, positions = inputs()
    one = transformer.apply(config, params, tokens, segments, positions).hidden_BTD
    other = transformer.apply(config, params, tokens, segments, positions * 7 + 3).hidden_BTD
    np.testing.assert_array_equal(one, other)


def test_recomputation_changes_no_gradient(params):
    def gradient(config):
        def scalar(params):
            return jnp.square(transformer.apply(config, params, *inputs()).hidden_BTD).mean()

        return jax.grad(scalar)(params)

    plain, recomputed = gradient(CONFIG), gradient(dataclasses.replace(CONFIG, remat="full"))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(recomputed)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_bfloat16_computes_close_to_float32(params):
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    full = transformer.apply(CONFIG, params, *inputs()).hidden_BTD
    half = transformer.apply(config, params, *inputs()).hidden_BTD
    assert half.dtype == jnp.bfloat16
    error = np.abs(np.array(half, np.float32) - np.array(full)).max() / np.abs(full).max()
    assert 0 < error < 0.05


def test_max_logits_are_reported_by_layer_and_head(params):
    output = transformer.apply(CONFIG, params, *inputs())
    assert output.max_logit_LN.shape == (5, 4)
    larger = jax.tree_util.tree_map_with_path(lambda path, x: 3 * x if "query" in str(path) else x, params)
    first = transformer.apply(CONFIG, larger, *inputs()).max_logit_LN[0]
    np.testing.assert_allclose(first, 3 * output.max_logit_LN[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "not a multiple"),
        ({"head_dim": 7}, "must be even"),
        ({"d_ff": 0}, "must be positive"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_flops_match_what_xla_counts():
    """XLA counts every product; the convention leaves out norms, softmax and the like."""
    config = ModelConfig(
        vocab_size=512,
        num_layers=2,
        d_model=128,
        num_heads=4,
        num_kv_heads=4,
        head_dim=32,
        d_ff=512,
        no_rope_every=0,
    )
    length = 64

    def forward(params, tokens):
        ones = jnp.ones_like(tokens)
        # unrolled by hand, since XLA counts a scan's body once
        hidden = transformer.apply(dataclasses.replace(config, num_layers=1), params, tokens, ones, ones).hidden_BTD
        return transformer.logits(config, params, hidden)

    params = transformer.init(dataclasses.replace(config, num_layers=1), 0)
    counted = jax.jit(forward).lower(params, jnp.zeros((4, length), jnp.int32)).compile().cost_analysis()["flops"]
    stated = dataclasses.replace(config, num_layers=1).flops_per_token(length) * 4 * length / 3
    assert counted == pytest.approx(stated, rel=0.1)
