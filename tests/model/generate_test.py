import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decode_lab import read

from core.errors import UserError
from model import transformer
from model.config import ModelConfig
from model.decode import Decoder, _advance
from model.generate import generate
from model.sample import Sampling, probabilities, sample

CONFIG = ModelConfig(
    vocab_size=32, num_layers=4, d_model=32, num_heads=2, num_kv_heads=1, head_dim=16, d_ff=32, init_std=0.5,
    sliding_window=9, global_every=2, qk_norm=True, attention_soft_cap=5.0, final_soft_cap=20.0, tied_head=False,
)  # fmt: skip
CONTEXT = 48
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def params():
    return transformer.init(CONFIG, 1)


@pytest.fixture(scope="module")
def decoder(params):
    return Decoder(CONFIG, params, CONTEXT)


def run(decoder, prompts, **settings):
    steps = list(generate(decoder, prompts, **{"max_tokens": 20, **settings}))
    return [[step[row] for step in steps] for row in range(len(prompts))]


def logits_by_hand(params, ids):
    visible = jnp.array([ids])
    positions = jnp.arange(visible.shape[1])[None]
    hidden = transformer.apply(CONFIG, params, visible, jnp.ones_like(visible), positions).hidden_BTD
    return transformer.logits(CONFIG, params, hidden[0])


@pytest.mark.parametrize("several", [1, 4])
def test_the_cache_gives_the_logits_of_the_whole_row(params, decoder, several):
    """Prefill at odd lengths, then one or several tokens at once, for rows of different lengths."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 32, CONTEXT).tolist() for _ in range(3)]
    starts = np.array([1, 7, 17])
    whole = np.stack([logits_by_hand(params, row) for row in rows])
    logits, begun = decoder.prefill([row[:start] for row, start in zip(rows, starts)])
    np.testing.assert_allclose(logits, whole[np.arange(3), starts - 1], atol=2e-5)
    caches = begun.caches
    for number in range(0, 20, several):
        positions = starts[:, None] + np.arange(number, number + several)
        logits, caches = read(decoder, caches, np.take_along_axis(np.array(rows), positions, 1), positions)
        np.testing.assert_allclose(logits, whole[np.arange(3)[:, None], positions], atol=2e-5)


def test_greedy_takes_the_likeliest_whoever_else_is_in_the_batch(params, decoder):
    prompts = [[1, 5, 9], [3], list(range(12))]
    found = run(decoder, prompts, sampling=GREEDY)
    for prompt, ids in zip(prompts, found):
        likeliest = np.argmax(logits_by_hand(params, [*prompt, *ids]), axis=-1)
        assert ids == likeliest[len(prompt) - 1 : -1].tolist()


def test_a_row_ends_when_its_cache_is_full(params, decoder):
    short, long = run(decoder, [[1], [2] * (CONTEXT - 3)], sampling=GREEDY, max_tokens=CONTEXT + 5)
    assert len(short) == CONTEXT  # one more than slots are left: nothing follows the last, so it needs none
    assert [token is None for token in long] == [False] * 4 + [True] * (CONTEXT - 4)
    full = [1] * CONTEXT
    assert run(decoder, [full], sampling=GREEDY, max_tokens=3) == [[logits_by_hand(params, full)[-1].argmax()]]


@pytest.mark.parametrize(("prompts", "message"), [([[1] * 49], "49 tokens is longer"), ([[1], []], "empty")])
def test_prompts_that_cannot_be(decoder, prompts, message):
    with pytest.raises(UserError, match=message):
        decoder.prefill(prompts)


def test_sampling_is_a_function_of_the_seed_and_the_row(decoder):
    first, again, other = (run(decoder, [[1]], sampling=Sampling(1.0), seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert run(decoder, [[1], [5]], sampling=Sampling(1.0))[0] == first[0]


def test_few_cuts_are_compiled():
    """Whoever asks for every top_k in turn, as a client may, does not have each compiled."""
    logits, first = jnp.zeros((1, 200)), jnp.zeros(1, int)
    before = sample._cache_size()
    for top_k in range(100):
        sample(logits, Sampling(0.5 + top_k, top_k=top_k, min_p=0.01).cuts(200), 0, first)
    assert sample._cache_size() - before <= 3


def test_the_loop_is_compiled_once():
    """The rows that it gives back are of the types that it was given."""
    before, rows = _advance._cache_size(), None
    fresh = Decoder(CONFIG, transformer.init(CONFIG, 9), 24)
    rows = fresh.begin([[1, 2]], GREEDY, 0)
    for until in (4, 5, 9):
        rows = fresh.advance(rows, np.array([until]), GREEDY, 0)
    assert _advance._cache_size() == before + 1


def test_few_loops_are_compiled(params):
    """Whatever a client asks for: 1 to 5 and 8 texts, greedy or drawn by any cuts."""
    fresh, before = Decoder(CONFIG, params, 8), _advance._cache_size()
    cuts = [Sampling(t, top_k=k, top_p=p) for t in (0.0, 0.5) for k in (0, 5, 7) for p in (0.5, 1.0)]
    for number in (1, 2, 3, 4, 5, 8):
        for sampling in cuts if number == 3 else cuts[:1]:
            texts = list(generate(fresh, [[1, 2]] * number, max_tokens=3, sampling=sampling))
            assert [len(step) for step in texts] == [number] * 3
    assert _advance._cache_size() - before <= 4 + 2  # numbers of rows of greedy texts; other cuts of 4 rows


@pytest.mark.parametrize("cut", [Sampling(2.0, top_k=1), Sampling(2.0, top_p=1e-6), Sampling(2.0, min_p=1.0)])
def test_a_cut_to_one_token_is_greedy(decoder, cut):
    assert run(decoder, [[4, 2]], sampling=cut) == run(decoder, [[4, 2]], sampling=GREEDY)


def expected(logits, sampling):
    """Probabilities after the cuts, by the definitions."""
    order = np.argsort(-logits, kind="stable")
    kept = np.zeros(len(logits), bool)
    kept[order[: sampling.top_k or len(order)]] = True
    probs = np.where(kept, np.exp((logits - logits.max()) / sampling.temperature), 0)
    probs /= probs.sum()
    mass = 0.0
    for index in order:
        if mass >= sampling.top_p:
            probs[index] = 0
        mass += probs[index]
    probs = np.where(probs >= sampling.min_p * probs.max(), probs, 0)
    return probs / probs.sum()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(0.7, top_k=5),
        Sampling(1.3, top_p=0.8),
        Sampling(1.0, min_p=0.2),
        Sampling(1.5, top_k=12, top_p=0.9, min_p=0.05),
    ],
)
def test_sampling_follows_the_distribution(sampling):
    """20,000 draws: each frequency within 5 standard deviations of its probability, and nothing that was cut."""
    draws, logits = 20_000, np.random.default_rng(1).normal(size=32) * 2
    want = expected(logits, sampling)
    logits = jnp.asarray(logits, jnp.float32)
    np.testing.assert_allclose(probabilities(logits, sampling.cuts(32)), want, atol=1e-6)
    chosen = sample(jnp.broadcast_to(logits, (draws, 32)), sampling.cuts(32), 0, jnp.zeros(draws, int))
    frequency = np.bincount(chosen, minlength=32) / draws
    assert (frequency[want == 0] == 0).all()
    assert (np.abs(frequency - want) < 5 * np.sqrt(want * (1 - want) / draws) + 1e-4).all()


def test_a_stop_token_ends_its_row_only(decoder):
    free = run(decoder, [[1], [2]], sampling=GREEDY)
    stop = free[0][3]
    stopped = run(decoder, [[1], [2]], sampling=GREEDY, stop_ids=[stop])
    end = free[0].index(stop) + 1
    assert stopped[0][:end] == free[0][:end]
    assert all(token is None for token in stopped[0][end:])


def test_bfloat16_through_the_cache_is_as_near_to_float32_as_a_whole_row():
    """With biases, which stay in float32 as in training."""
    config = dataclasses.replace(CONFIG, dtype="bfloat16", qkv_bias=True, output_bias=True, feed_forward_bias=True)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: a + 0.1 * rng.standard_normal(a.shape, np.float32), transformer.init(config, 1))
    ids = rng.integers(0, 32, 20).tolist()

    def whole_row(config):
        output = transformer.apply(config, params, jnp.array([ids]), jnp.ones((1, 20), int), jnp.arange(20)[None])
        return transformer.logits(config, params, output.hidden_BTD[0])

    decoder = Decoder(config, params, CONTEXT)
    logits, begun = decoder.prefill([ids[:1]])
    found, caches = [logits], begun.caches
    for position, token in enumerate(ids[1:], 1):
        logits, caches = read(decoder, caches, [[token]], [[position]])
        found.append(logits[:, 0])
    exact = whole_row(dataclasses.replace(config, dtype="float32"))
    off = [np.linalg.norm(a - exact) / np.linalg.norm(exact) for a in (np.concatenate(found), whole_row(config))]
    assert off[0] < 1.3 * off[1] < 0.04
