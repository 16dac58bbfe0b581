import jax.numpy as jnp
import numpy as np
import pytest

from model import transformer
from model.config import ModelConfig
from model.generate import generate

CONFIG = ModelConfig(
    vocab_size=32, num_layers=2, d_model=32, num_heads=2, num_kv_heads=1, head_dim=16, d_ff=32, init_std=0.5
)
WINDOW = 16


@pytest.fixture(scope="module")
def params():
    return transformer.init(CONFIG, 1)


def run(params, prompts, **settings):
    settings = {"window": WINDOW, "max_tokens": 20, **settings}
    steps = list(generate(CONFIG, params, prompts, **settings))
    return [[step[row] for step in steps] for row in range(len(prompts))]


def greedy_by_hand(params, ids, count):
    ids = list(ids)
    for _ in range(count):
        visible = jnp.array([ids[-WINDOW:]])
        hidden = transformer.apply(
            CONFIG, params, visible, jnp.ones_like(visible), jnp.arange(visible.shape[1])[None]
        ).hidden_BTD
        ids.append(int(jnp.argmax(transformer.logits(CONFIG, params, hidden[0, -1]))))
    return ids[-count:]


def test_greedy_takes_the_likeliest_even_beyond_the_window(params):
    prompts = [[1, 5, 9], [3], list(range(12))]
    found = run(params, prompts, temperature=0)
    for prompt, ids in zip(prompts, found):
        assert ids == greedy_by_hand(params, prompt, 20)


def test_sampling_is_a_function_of_the_seed(params):
    first, again, other = (run(params, [[1]], temperature=1.0, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_top_k_of_one_is_greedy(params):
    assert run(params, [[4, 2]], temperature=2.0, top_k=1) == run(params, [[4, 2]], temperature=0)


def test_sampling_follows_the_distribution(params):
    """4,000 draws of one next token: each frequency within 5 standard deviations of its probability."""
    draws = 4000
    (first,) = list(
        generate(CONFIG, params, [[7, 3]] * draws, window=WINDOW, max_tokens=1, temperature=1.0, top_k=32)
    )
    prompt = jnp.array([[7, 3]])
    hidden = transformer.apply(CONFIG, params, prompt, jnp.ones_like(prompt), jnp.arange(2)[None]).hidden_BTD
    logits = np.array(transformer.logits(CONFIG, params, hidden[0, -1]), np.float64)
    expected = np.exp(logits - logits.max())
    expected /= expected.sum()
    frequency = np.bincount(first, minlength=32) / draws
    assert (np.abs(frequency - expected) < 5 * np.sqrt(expected * (1 - expected) / draws) + 1e-3).all()


def test_a_stop_token_ends_its_row_only(params):
    free = run(params, [[1], [2]], temperature=0)
    stop = free[0][3]
    stopped = run(params, [[1], [2]], temperature=0, stop_id=stop)
    first_stop = free[0].index(stop)
    assert stopped[0][:first_stop] == free[0][:first_stop]
    assert all(token is None for token in stopped[0][first_stop:])
