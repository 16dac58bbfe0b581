import collections

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.curate.repetition import GopherRepetition, Runs
from data.curate.words import splitter

pytest.importorskip("spacy")
WORDS = st.lists(st.sampled_from(["a", "b", "ab", "ba", "the", "cat", ".", ".."]), min_size=1, max_size=40)


def top(words, n):
    """Characters of the most frequent n-gram, the first of several, times its count."""
    grams = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
    gram, count = collections.Counter(grams).most_common(1)[0]
    return len(gram) * count


def repeated(words, n):
    """Characters of the n-grams that were there before; each takes its words."""
    seen, chars, place = set(), 0, 0
    while place < len(words) - n + 1:
        gram = "".join(words[place : place + n])
        if gram in seen:
            chars, place = chars + len(gram), place + n
        else:
            seen.add(gram)
            place += 1
    return chars


@settings(deadline=None, max_examples=300)
@given(given=WORDS, n=st.integers(1, 6))
def test_runs_of_words_are_counted_as_strings_are(given, n):
    words = splitter("en")(" ".join(given))
    if n <= len(words):
        runs = Runs(words)
        assert runs.top(n) == top(words.texts, n)
        assert runs.repeated(n) == repeated(words.texts, n)


LINE = "A line of the text that is not like any other, number {}."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("\n".join(map(LINE.format, "abcdefghijklmnop")), "top_4_gram"),  # the line itself is the same
        ("One.\n\nTwo words here.\n\nOne.\n\nOne.\n\nAnd a third thing.", "dup_para_frac"),
        ("x" * 30 + "\n\n" + "x" * 30 + "\n\n" + "y" * 60 + "\n\nz", "dup_para_char_frac"),
        ("One.\nOne.\nTwo words.", "dup_line_frac"),
        ("x" * 30 + "\n" + "x" * 30 + "\n" + "y" * 60 + "\nz\nw", "dup_line_char_frac"),
        ("no no no no no no no", "top_2_gram"),
        (" ".join(f"word{number}" for number in range(30)), None),
    ],
)
def test_each_rule_gives_its_reason(text, reason):
    assert GopherRepetition().reason(text) == reason


def test_long_runs_that_come_again_are_found():
    filler = " ".join(f"w{number}" for number in range(200))
    run = "alpha beta gamma delta epsilon zeta eta theta iota kappa"
    text = f"{run} {filler} " + " ".join(f"{run} u{number}" for number in range(4))
    rule = GopherRepetition(top_n_grams=())
    assert rule.reason(text) == "duplicated_5_n_grams"
    assert GopherRepetition(top_n_grams=(), dup_n_grams=((10, 0.1),)).reason(text) == "duplicated_10_n_grams"
