import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.errors import UserError
from data.curate import words
from data.curate.words import Splitter, count_sentences, splitter, tokenizer

spacy = pytest.importorskip("spacy")
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
OFTEN = ("en", "de", "fr", "xx", "ar")
LANGUAGES = [*OFTEN, *(pytest.param(one, marks=pytest.mark.slow) for one in words.TESTED if one not in OFTEN)]


@pytest.mark.parametrize("language", LANGUAGES)
@settings(deadline=None, max_examples=60, derandomize=True)  # a rare run of pieces is a special case to spaCy
@given(pieces=st.lists(PIECES, max_size=20), gap=st.sampled_from([" ", "\n", "  ", "\t\n "]))
def test_words_are_those_of_spacy(language, pieces, gap):
    text = gap.join(pieces)
    assert splitter(language)(text).texts == reference(language, text)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(pieces=st.lists(PIECES, min_size=1, max_size=20), gap=st.sampled_from([" ", "  ", "\u00a0", " \t"]))
@example(pieces=["One.", "!"], gap="  ")
@example(pieces=["He left.", ""], gap="  ")
@example(pieces=["a", "\u17d4", "b"], gap=" ")
def test_sentences_are_those_of_spacys_sentencizer(pieces, gap):
    line = gap.join(pieces).lstrip()
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
    assert len(splitter("en")("!" * (words.LONGEST + 1))) == 1
    assert len(splitter("en")("!" * words.LONGEST)) == words.LONGEST
    assert len(splitter("en")(" ".join("(" * (words.LONGEST - 3) + str(number) for number in range(50)))) > 50
    assert count_sentences(splitter("en")("")) == 0


def test_what_is_rare_is_not_remembered():
    split = Splitter("en")
    assert len(split("x" * (words.RARE + 1) + " short")) == 2
    assert list(split.known.pieces) == ["short"]


def test_chinese_is_split_into_words():
    assert splitter("zh")("我来到北京清华大学。").texts == ["我", "来到", "北京", "清华大学", "。"]


def test_languages_that_spacy_does_not_know_are_told():
    assert tokenizer("xx")("vīns,") == ["vīns", ","]
    for language in ("english", "ltg", "", "../x"):
        with pytest.raises(UserError, match="is none that spaCy knows; `xx`"):
            tokenizer(language)
