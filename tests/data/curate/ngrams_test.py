import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.curate import ngrams
from data.curate.ngrams import ASSIGNED, LONE, UNSEEN, runs, words

TEXTS = st.one_of(st.text(max_size=60), st.text("ab1é中文カ',.- \n\u00ad\u0301", max_size=60))


def reference(text):
    """The words of a text, a character at a time."""
    return split_plainly(unicodedata.normalize("NFKC", text).lower())


def split_plainly(text):
    found, open_word = [], False
    for letter in text:
        if letter in UNSEEN or "\ufe00" <= letter <= "\ufe0f":
            continue
        counts = ord(letter) < ASSIGNED and (letter.isalnum() or unicodedata.category(letter)[0] == "M")
        alone = counts and any(first <= ord(letter) <= last for first, last in LONE)
        if counts and open_word and not alone:
            found[-1] += letter
        elif counts:
            found.append(letter)
        open_word = counts and not alone
    return found


def shown(split):
    """The words as strings."""
    return [split_plainly(split.span(place, 1))[0] for place in range(len(split.starts))]


@settings(deadline=None, max_examples=300, derandomize=True)
@given(text=TEXTS, piece=st.sampled_from([8, 1 << 17]))
def test_words_are_those_of_the_reference(text, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "PIECE", piece)
        ngrams._powers.cache_clear()
        split = words(text)
        ngrams._powers.cache_clear()
    whole = max(map(len, re.findall(r"\S+", split.text)), default=0) <= piece  # what is longer is parted
    if whole or piece > 60:
        assert shown(split) == reference(text)
        alike = {}
        for word, number in zip(reference(text), split.hashed.tolist()):
            assert alike.setdefault(word, number) == number
        assert len(set(alike.values())) == len(alike)


def test_case_punctuation_and_white_space_change_nothing():
    plain = words("dont stop the file 2 km").hashed
    assert np.array_equal(words("Don\u2019t STOP,\n\tthe \ufb01le (2) k\u00adm!").hashed, plain)
    assert np.array_equal(words("na\u00efve").hashed, words("nai\u0308ve").hashed)
    assert len(words("").hashed) == len(words(" .,-\u00ad ").hashed) == 0


def test_scripts_without_spaces_are_looked_at_by_characters():
    split = words("今日は3月、東京で ok")
    assert shown(split) == ["今", "日", "は", "3", "月", "東", "京", "で", "ok"]
    assert np.array_equal(words("今 日は 3 月東京でOK").hashed, split.hashed)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(numbers=st.lists(st.integers(0, 3), max_size=30), sizes=st.sets(st.integers(1, 6)))
def test_runs_are_equal_where_their_words_are(numbers, sizes):
    hashed = words(" ".join("abcd"[number] for number in numbers)).hashed
    seen = {}
    for n, keys in runs(hashed, sizes):
        assert len(keys) == max(0, len(numbers) - n + 1)
        for place, key in enumerate(keys.tolist()):
            assert seen.setdefault(tuple(numbers[place : place + n]), key) == key
    assert len(set(seen.values())) == len(seen)
    assert [n for n, _ in runs(hashed, sizes)] == sorted(sizes)


def test_a_word_longer_than_a_piece_ends():
    text = "a" * 300_000 + " b c"
    split = words(text)
    assert len(split.hashed) == 300_000 // ngrams.PIECE + 1 + 2
    assert np.array_equal(split.hashed[-2:], words("b c").hashed)


def test_lone_surrogates_are_no_words():
    assert shown(words("a \ud800 b")) == ["a", "b"]
