import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.curate import words
from data.curate.words import Splitter, count_sentences, splitter, tokenizer

spacy = pytest.importorskip("spacy")
LANGUAGES = ("en", "de", "fr", "es", "it", "pt")
PIECES = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12),
    st.text("abcXYZäéß.,'\"!?-()$%0129…", min_size=1, max_size=12),
    st.sampled_from(
        ["don't", "e.g.", "U.S.", "etc.", "l'eau", "can't.", ":-)", "a.m.", "Mr.", "z.B.", "10km.", "A."]
    ),
)


def reference(language, text):
    """As datatrove: spaCy over the whole text, words without white space."""
    pipeline = pipelines.setdefault(language, spacy.blank(language))
    return [word for token in pipeline(text) if (word := token.text.strip())]


pipelines = {}


@pytest.mark.parametrize("language", LANGUAGES)
@settings(deadline=None, max_examples=300)
@given(pieces=st.lists(PIECES, max_size=20), gap=st.sampled_from([" ", "\n", "  ", "\t\n "]))
def test_words_are_those_of_spacy(language, pieces, gap):
    text = gap.join(pieces)
    assert splitter(language)(text).texts == reference(language, text)


@settings(deadline=None, max_examples=300)
@given(pieces=st.lists(PIECES, min_size=1, max_size=20))
def test_sentences_are_those_of_spacys_sentencizer(pieces):
    line = " ".join(" ".join(pieces).split())
    if "sentencizer" not in pipelines:
        pipelines["sentencizer"] = spacy.blank("en")
        pipelines["sentencizer"].add_pipe("sentencizer")
    assert splitter("en").sentences(line) == len(list(pipelines["sentencizer"](line).sents))


def test_what_is_forgotten_changes_nothing(monkeypatch):
    text = "One two three, four. Five! Six?"
    one = Splitter("en")(text).texts
    monkeypatch.setattr(words, "REMEMBERED", 2)
    monkeypatch.setattr(words, "RECENT", 10)
    split = Splitter("en")
    assert [split(text).texts for _ in range(3)] == [one] * 3
    assert len(split.recent) == 1


def test_a_huge_piece_is_one_word_and_takes_no_time():
    piece = "!" * (words.LONGEST + 1)
    assert len(splitter("en")(piece)) == 1
    assert count_sentences(splitter("en")("")) == 0


def test_chinese_is_split_into_words():
    assert splitter("zh")("我来到北京清华大学。").texts == ["我", "来到", "北京", "清华大学", "。"]


def test_a_language_without_rules_has_those_of_any():
    assert tokenizer("ltg")("vīns, div") == ["vīns", ",", "div"]
