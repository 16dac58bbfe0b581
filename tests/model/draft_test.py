"""Drafts: the modules compute as in training, and the texts are the model's own, greedy and drawn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from core.errors import UserError
from model import transformer
from model.config import ModelConfig, MultiToken
from model.decode import Decoder
from model.draft import accept_drawn, acceptance, draft, leftover
from model.generate import generate
from model.multi_token import Row, one_after_another
from model.sample import Sampling, probabilities

CONFIG = ModelConfig(
    vocab_size=6, num_layers=2, d_model=16, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=24, init_std=0.3,
    no_rope_every=2, sliding_window=7, global_every=2, qk_norm=True, final_soft_cap=20.0,
)  # fmt: skip
CONTEXT, GREEDY = 40, Sampling(temperature=0)
PROMPTS = [[1, 5, 3], [2], [i % 6 for i in range(19)], [4, 4]]
KINDS = {"parallel": 2, "sequential": 3, "one": 1}  # drafts; of sequential modules
every_kind = pytest.mark.parametrize("kind", KINDS)


@functools.cache
def model(kind, tied=True):
    """No scale is 1, so that each counts."""
    tokens = MultiToken("sequential" if kind == "one" else kind, 4)
    config = dataclasses.replace(CONFIG, multi_token=tokens, tied_head=tied)
    random = np.random.default_rng(1)
    return config, jax.tree.map(
        lambda leaf: random.normal(0, 0.5, leaf.shape).astype(np.float32), transformer.abstract(config)
    )


@functools.cache
def decoder(kind, drafts=True):
    config, params = model(kind)
    return Decoder(config, params, CONTEXT, KINDS[kind] if drafts else 0)


def texts(decoder, prompts=PROMPTS, **settings):
    """The ids of every row up to its end."""
    steps = list(generate(decoder, prompts, **{"max_tokens": 30, "sampling": GREEDY, **settings}))
    return [[step[row] for step in steps if step[row] is not None] for row in range(len(prompts))]


@pytest.mark.parametrize(
    ("kind", "tied"),
    [("parallel", True), ("sequential", False), pytest.param("sequential", True, marks=pytest.mark.slow)],
)
def test_modules_compute_as_over_a_whole_row(kind, tied):
    """Their logits after every few rounds, beside those of training over the same tokens and drafts."""
    config, params = model(kind, tied)
    decoder = Decoder(config, params, CONTEXT, KINDS[kind])
    rows = decoder.begin(PROMPTS, Sampling(1.0), 0)
    drafting = jax.jit(functools.partial(draft, config, choose=lambda logits_BV, _: jnp.argmax(logits_BV, -1)))
    for more in range(12):
        found = drafting(decoder.weights, rows.memory, rows.tokens_BS, rows.last_B)
        whole_MBTV = np.asarray(logits_by_training(config, params, found.tokens_BS))
        want_MBV = whole_MBTV[: KINDS[kind], np.arange(len(PROMPTS)), rows.last_B - 1]
        np.testing.assert_allclose(found.logits_BMV, want_MBV.swapaxes(0, 1), atol=1e-5, rtol=1e-5)
        rows = decoder.advance(rows, np.array([len(prompt) + more for prompt in PROMPTS]), Sampling(1.0), 0)
    assert 0 < decoder.accepted < decoder.drafted


@functools.partial(jax.jit, static_argnums=0)
def logits_by_training(config, params, tokens_BS):
    """Of every module at every place [M, B, T, V], over rows of the cache's length."""
    T = CONTEXT
    tokens_BT = tokens_BS[:, :T]
    row = Row(jnp.ones_like(tokens_BT), jnp.broadcast_to(jnp.arange(T), tokens_BT.shape))
    residual_BTD = transformer.apply(config, params, tokens_BT, *row).residual_BTD
    ahead_MBT = jnp.stack([jnp.pad(tokens_BS, ((0, 0), (0, 3)))[:, k : T + k] for k in (1, 2, 3)])
    return one_after_another(
        config,
        params,
        residual_BTD,
        ahead_MBT,
        row,
        lambda hidden, _: transformer.logits(config, params, hidden),
        None,
    )[0]


@every_kind
def test_greedy_gives_what_it_gives_without_drafts(kind):
    """Rows of different lengths, which accept different numbers of drafts; two run into the end of the cache."""
    made = decoder(kind)
    assert texts(made) == texts(decoder(kind, drafts=False))
    assert 0 < made.accepted < made.drafted


@every_kind
@pytest.mark.parametrize("limits", [{"max_tokens": 5}, {"stop_ids": [0, 3]}, {"max_tokens": 1}, {"max_tokens": 99}])
def test_texts_end_where_they_end_without_drafts(kind, limits):
    """By max_tokens, by a stop token in the middle of accepted drafts, and with the cache."""
    assert texts(decoder(kind), **limits) == texts(decoder(kind, drafts=False), **limits)


def test_a_row_depends_neither_on_the_others_nor_on_how_many_steps_are_computed_at_once():
    made, first, sampling = decoder("sequential"), PROMPTS[0], Sampling(1.0, top_k=4)
    together, alone = made.begin(PROMPTS, sampling, 7), made.begin([first], sampling, 7)
    for step in range(10):
        together = made.advance(together, np.array([len(prompt) + step for prompt in PROMPTS]), sampling, 7)
    alone = made.advance(alone, np.array([len(first) + 9]), sampling, 7)
    assert (np.asarray(together.tokens_BS)[0] == alone.tokens_BS[0])[: len(first) + 10].all()


PROBABILITIES = st.lists(st.integers(0, 9), min_size=5, max_size=5).filter(any).map(lambda n: np.array(n) / sum(n))


@settings(deadline=None)
@given(PROBABILITIES, PROBABILITIES)
def test_the_rule_gives_every_token_its_probability(p, q):
    """A draft from q is accepted, or replaced: exactly p, by the two cases added up."""
    accepted = q * np.asarray(acceptance(p, np.where(q > 0, q, 1)))
    total = accepted + (1 - accepted.sum()) * np.asarray(leftover(p, q))
    np.testing.assert_allclose(total, p, atol=1e-6)


def test_drafts_are_taken_by_the_rule():
    """200,000 rows: the joint frequency of two tokens where drafts are bad and p depends on what came before."""
    random, N, V = np.random.default_rng(0), 200_000, 4
    p1, p3 = random.dirichlet(np.ones(V), 2)
    p2 = random.dirichlet(np.ones(V), V)  # after each first token
    q1, q2 = random.dirichlet(np.ones(V), 2)
    drafts = np.stack([random.choice(V, N, p=q1), random.choice(V, N, p=q2)], 1)
    p = jnp.asarray(np.stack([np.tile(p1, (N, 1)), p2[drafts[:, 0]], np.tile(p3, (N, 1))], 1), jnp.float32)
    q = jnp.broadcast_to(jnp.asarray([q1, q2], jnp.float32), (N, 2, V))
    keys = jax.random.split(jax.random.key(1), (N, 2))
    count, behind = map(np.asarray, jax.jit(accept_drawn)(p, q, jnp.asarray(drafts), jnp.full(N, 2), keys))
    first = np.where(count > 0, drafts[:, 0], behind)
    second = np.where(count > 1, drafts[:, 1], behind)[count > 0]
    assert stats.chisquare(np.bincount(first, minlength=V), N * p1).pvalue > 1e-3
    # Where the first draft was accepted, the second token is one of p2 whatever was drafted.
    for token in range(V):
        own = second[first[count > 0] == token]
        assert stats.chisquare(np.bincount(own, minlength=V), len(own) * p2[token]).pvalue > 1e-3
    assert stats.chisquare(np.bincount(behind[count == 2], minlength=V), (count == 2).sum() * p3).pvalue > 1e-3


@pytest.mark.parametrize(
    ("kind", "sampling"), [("parallel", Sampling(1.0)), ("sequential", Sampling(0.7, top_k=4, top_p=0.9))]
)
def test_drawn_texts_follow_the_distribution_of_the_model(kind, sampling):
    """4,000 texts of four tokens beside the exact probabilities of all, by the plain model."""
    made, draws, prompt = decoder(kind), 4000, [1, 5, 3]
    rows = np.array(texts(made, [prompt] * draws, sampling=sampling, max_tokens=4))
    want = exact(kind, prompt, sampling, 4).reshape(-1)
    found = np.bincount(np.ravel_multi_index(rows.T, (6,) * 4), minlength=want.size)
    assert found[want == 0].sum() == 0
    often = want * draws >= 5
    pooled = [np.append(a[often], a[~often].sum()) for a in (found, want * draws)]
    assert stats.chisquare(*pooled).pvalue > 1e-3
    assert made.accepted > 0


def exact(kind, prompt, sampling, length):
    """The probability of every continuation [V, ..., V], by whole rows of the plain model."""
    config, params = model(kind)
    V = config.vocab_size
    texts = np.array(list(np.ndindex((V,) * (length - 1))))
    rows = jnp.asarray(np.concatenate([np.tile(prompt, (len(texts), 1)), texts], 1))
    positions = jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape)
    hidden = transformer.apply(config, params, rows, jnp.ones_like(rows), positions).hidden_BTD[:, len(prompt) - 1 :]
    probs = np.asarray(probabilities(transformer.logits(config, params, hidden), sampling.cuts(V)), np.float64)
    earlier = np.take_along_axis(probs[:, :-1], texts[..., None], 2)[..., 0].prod(1)
    joint = earlier[:, None] * probs[:, -1]
    return (joint / joint.sum()).reshape((V,) * length)


def test_drafts_that_nobody_makes_are_refused():
    config, params = model("parallel")
    with pytest.raises(UserError, match=r"eval\.drafts=4 is more than the 3 modules"):
        Decoder(config, params, CONTEXT, 4)
    with pytest.raises(UserError, match="needs modules that predict further tokens, and this model was trained"):
        Decoder(CONFIG, {name: leaf for name, leaf in params.items() if name != "multi_token"}, CONTEXT, 1)
