import functools
import hashlib
import json
import pydoc_data.topics
import random
import re
import struct
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.config import parse
from core.errors import UserError
from data.curate import minhash
from data.curate.minhash import MinHash
from data.curate.partition import to_batch
from data.curate.quality import C4Quality, FineWebQuality, GopherQuality
from data.curate.repetition import GopherRepetition
from data.curate.words import PUNCTUATION
from data.document import Document

spacy = pytest.importorskip("spacy")
GOLDEN = json.loads(Path(__file__).with_name("minhash_golden.json").read_text(encoding="utf-8"))
PRIME = 2**61 - 1
pipeline = functools.cache(spacy.blank)


def signatures(step, texts):
    return (
        step(to_batch([Document(str(i), text, "") for i, text in enumerate(texts)]))
        .batch.column("minhash")
        .to_pylist()
    )


@functools.cache
def words(text, language="en"):
    """As datatrove: the whole text simplified, then split."""
    text = re.sub(r"\d+([.,،\u066b⎖⎗⎘]\d+)?", "0", text.lower())
    text = re.sub(r"\s+", " ", text.translate(dict.fromkeys(map(ord, PUNCTUATION), " ")).strip())
    text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn").strip()
    return [word for token in pipeline(language)(text) if (word := token.text.strip())]


def reference(text, step):
    """The definition, in whole numbers."""
    given = words(text, step.language)
    runs = [" ".join(given[i : i + step.ngrams]).encode() for i in range(len(given) - step.ngrams + 1)]
    if not runs:
        return None
    hashes = [int.from_bytes(hashlib.sha1(run).digest()[:8], "little") for run in runs]
    generator, count = np.random.RandomState(step.seed), step.buckets * step.hashes_per_bucket
    factors = generator.randint(1, PRIME, dtype=np.uint64, size=count).tolist()
    summands = generator.randint(0, PRIME, dtype=np.uint64, size=count).tolist()
    least = [min((h * a + b) % 2**64 % PRIME for h in hashes) for a, b in zip(factors, summands)]
    return struct.pack(f"<{count}Q", *least)


@pytest.mark.parametrize("language", sorted({case["language"] for case in GOLDEN}))
def test_signatures_are_those_of_datatrove(language):
    cases = [case for case in GOLDEN if case["language"] == language]
    found = signatures(MinHash(language=language), [case["text"] for case in cases])
    hashed = [one and hashlib.blake2b(one, digest_size=16).hexdigest() for one in found]
    assert hashed == [case["signature"] for case in cases]


TEXTS = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8"), max_size=40),
        st.lists(st.text("abÀé.,'-0٣ Σσ\u0301\n\u3000漢", min_size=1, max_size=8), max_size=20).map(" ".join),
        st.lists(st.sampled_from("the cat sat don't 3,5 U.S. 10km on a mat".split()), max_size=30).map(" ".join),
    ),
    max_size=6,
)


@settings(deadline=None, max_examples=200)
@given(texts=TEXTS, block=st.integers(1, 40), group=st.integers(0, 60))
@example(texts=["one two three four", "", "a b c d e f"], block=1, group=100)
def test_signatures_follow_the_definition_whatever_goes_through_together(texts, block, group):
    step = MinHash(buckets=3, hashes_per_bucket=2, seed=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minhash, "BLOCK", block)
        patch.setattr(minhash, "GROUP", group)
        assert signatures(step, texts) == [reference(text, step) for text in texts]


@settings(deadline=None, max_examples=300)
@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
@example(text="ΟΔΥΣΣΕΥΣ.Σ \u0391Σ\u2019\u0391Σ \u0345\u0391Σ")  # an S at the end of a word has a form of its own
def test_a_piece_becomes_what_it_does_within_its_text(text):
    assert [w for piece in text.split() for w in minhash.simplify(piece).split()] == _simple(text).split()


def _simple(text):
    text = minhash.NUMBER.sub("0", text.lower()).translate(dict.fromkeys(map(ord, PUNCTUATION), " "))
    text = re.sub(r"\s+", " ", text.strip())
    return "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")


@pytest.mark.parametrize("value", [0, 1, 7, 8, PRIME - 1, PRIME, PRIME + 1, 2**61, 2**64 - 8, 2**64 - 1])
def test_the_remainder_is_exact_at_its_edges(value):
    work = np.zeros((2, 1), np.uint64)
    minhash._modular(np.array([value], np.uint64), np.uint64(1), np.uint64(0), *work)
    assert int(work[0, 0]) == value % PRIME


@pytest.mark.parametrize("method", ["fineweb", "fast"])
def test_too_few_words_have_no_signature_and_nothing_is_dropped(method):
    texts = ["", "one two three four", "one, two; three four five", "- - - - - - -", "6 7 8 9 10"]
    outcome = MinHash(method=method)(to_batch([Document(str(i), text, "") for i, text in enumerate(texts)]))
    found = outcome.batch.column("minhash")
    assert outcome.reasons == [None] * 5
    assert str(found.type) == "fixed_size_binary[896]"
    assert [one is None for one in found.to_pylist()] == [True, True, False, True, False]
    assert outcome.batch.column("text").to_pylist() == texts


@pytest.mark.parametrize("method", ["fineweb", "fast"])
def test_case_accents_punctuation_and_numbers_do_not_count(method):
    one, other, third = signatures(
        MinHash(method=method),
        [
            "In 1999 a café sold 12.50 worth of tea.",
            "in 2024, A CAFE sold 3 worth of 'tea'",
            "In 1999 no café sold tea at all",
        ],
    )
    assert one == other
    assert one != third


def test_what_is_forgotten_changes_nothing(monkeypatch):
    texts = [pydoc_data.topics.topics["with"], pydoc_data.topics.topics["while"]]
    whole = signatures(MinHash(), texts)
    monkeypatch.setattr(minhash, "REMEMBERED", 3)
    minhash._spacy_words.cache_clear()
    assert signatures(MinHash(), texts) == whole
    assert len(minhash._spacy_words("en")) <= 3


def test_hostile_texts_take_no_time():
    marks = "\u0301\u0316" * 200_000  # sorting them takes time quadratic in their number
    for text in (marks, "x" * 10**6, "(" * 10**6, "1." * 10**6, "0 " * 10**6):
        signatures(MinHash(buckets=1), [text])


def test_settings_that_mean_nothing_are_refused():
    for tree in (
        {"ngrams": 0},
        {"buckets": 0},
        {"hashes_per_bucket": 0},
        {"seed": -1},
        {"method": "slow"},
        {"keep": "last"},
    ):
        with pytest.raises(UserError, match=next(iter(tree))):
            parse(MinHash, tree, "data.recipe[0]")


def edited(text, share, rng):
    """Another word in the place of some."""
    given = text.split()
    for place in rng.sample(range(len(given)), round(share * len(given))):
        given[place] = f"{rng.choice(given)}{rng.choice('qxz')}"
    return " ".join(given)


@pytest.mark.parametrize("method", ["fineweb", "fast"])
def test_pairs_are_found_with_the_probability_of_theory(method):
    """On texts of Python's documentation with words replaced: within 0.02 of 1 - (1 - s^8)^14 all along the curve."""
    rng = random.Random(0)
    whole = " ".join(pydoc_data.topics.topics.values()).split()
    texts = [" ".join(whole[at : at + 200]) for at in rng.sample(range(len(whole) - 200), 60)]
    levels = (0.01, 0.03, 0.045, 0.06, 0.08, 0.12)
    pairs = [(text, edited(text, level, rng)) for level in levels for text in texts]
    runs = [[set(zip(*(words(text)[k:] for k in range(5)))) for text in pair] for pair in pairs]
    similar = np.array([len(a & b) / len(a | b) for a, b in runs]).reshape(len(levels), -1)
    both = signatures(MinHash(method=method, buckets=14 * 40), [text for pair in pairs for text in pair])
    numbers = np.frombuffer(b"".join(both), "<u8").reshape(*similar.shape, 2, 40, 14, 8)
    found = (numbers[:, :, 0] == numbers[:, :, 1]).all(-1).any(-1).mean(-1)  # of 40 times 14 buckets
    theory = 1 - (1 - similar**8) ** 14
    assert theory.mean(1).min() < 0.15
    assert theory.mean(1).max() > 0.99
    assert np.abs(found.mean(1) - theory.mean(1)).max() < 0.02


def test_words_of_each_document_by_the_rules_of_its_own_language():
    texts = {
        "de": "Wie geht's dir heute, fragte der Müller, und z.B. seine Frau gab's ihm zurück.",
        "en": "How don't you know, asked the miller's wife, that it isn't the river's fault at all?",
        "zh": "河水在夜里上涨,到早晨低处的田地已经淹没在水下,一直到老磨坊那里。",
        "": "How don't you know, asked the miller's wife, that it isn't the river's fault at all?",
    }
    order = ["en", "zh", "", "de", "en"]
    batch = to_batch([Document(str(i), texts[code], "", language=code) for i, code in enumerate(order)])
    own = MinHash(language="own")(batch).batch.column("minhash").to_pylist()
    for code, found in zip(order, own):
        assert [found] == signatures(MinHash(language=code or "xx"), [texts[code]])
    assert own[1] is not None
    assert signatures(MinHash(), [texts["zh"]]) == [None]
    assert len(MinHash(language="own")(batch.slice(0, 0)).batch) == 0
    with pytest.raises(UserError, match="method=fast splits words of every language alike"):
        parse(MinHash, {"language": "own", "method": "fast"}, "data.recipe[0]")


@pytest.mark.parametrize("step", [MinHash, GopherQuality, C4Quality, FineWebQuality, GopherRepetition])
def test_the_package_that_splits_chinese_words_decides(step):
    assert step(language="de").packages == ("spacy",)
    assert step(language="zh").packages == ("spacy", "jieba")
    assert MinHash(language="own").packages == ("spacy", "jieba")
