"""The words of a text as datatrove counts them: spaCy's tokens, what a piece between white space became remembered.

spaCy splits a text at white space and then each piece by the rules of its language, whatever stands around it. Most
pieces of a text have been seen before, so that remembering what each became gives the same words many times as fast.
Datatrove 0.10 (utils/word_tokenizers.py) has the same tokenizers; FineWeb itself was made with NLTK's.
"""

import functools
import importlib.util
import itertools
import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from core.errors import UserError
from data.packages import package

LONGEST = 200  # characters of a piece that is split: spaCy's time is quadratic in them; what is longer is a word
REMEMBERED = 200_000  # pieces, about 130 MB; then all are forgotten, which changes nothing but the speed
RARE = 40  # characters of a piece that is not worth remembering
RECENT = 16 << 20  # characters of texts whose words are kept
TESTED = ("en", "de", "fr", "es", "it", "pt", "nl", "pl", "ru", "sv", "da", "xx")  # where plain pieces need no rules

# What Gopher's quality rules and MinHash do not count as part of a word (datatrove, utils/text.py).
CONTROL = "".join(map(chr, [*range(9), 11, 12, *range(13, 32), *range(127, 160)]))
PUNCTUATION = "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»" + CONTROL  # noqa: RUF001
# Marks that end a line there, beside those that end a sentence for spaCy's sentencizer.
TERMINALS = (
    "\u061d\u061e\u0837\u0839\u083d\u083e\u17d4\u17d5\u17d6\u17d9\u17da\u1b7d\u1b7e\u2e53\u2e54\U00010f55\U00010f56"
    "\U00010f57\U00010f58\U00010f59\U00010f86\U00010f87\U00010f88\U00010f89\U00011944\U00011946\U00011ef7\U00011ef8"
    "\U00011f43\U00011f44\U00016e98"
)
GAP = re.compile(r"\s{2,}|[^\S ]")
BASE = 0x9E3779B97F4A7C15  # of the polynomials that stand for words, modulo 2**64

PROPERTIES = {
    "length": np.int64,  # characters
    "symbol": np.bool_,  # punctuation and nothing else
    "alphabetic": np.bool_,  # has a letter
    "terminal": np.bool_,  # ends a sentence
    "plain": np.bool_,  # begins one after such a mark: neither that nor of Unicode's classes of punctuation
    "hashed": np.uint64,  # a polynomial in its characters, so that of words end to end follows from theirs
    "power": np.uint64,  # of the polynomials' base, by the length
}


class Words(NamedTuple):
    """The words of one text, by number."""

    ids: np.ndarray
    known: "Vocabulary"

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, name: str) -> np.ndarray:
        """One of `PROPERTIES` of each word."""
        return self.known.properties[name][self.ids]

    @property
    def texts(self) -> list[str]:
        """The words themselves."""
        return [self.known.texts[i] for i in self.ids]


class Vocabulary:
    """Words by number with what is asked of them, and the pieces that they came from."""

    def __init__(self, language: str):
        self.texts: list[str] = []
        self.numbers: dict[str, int] = {}
        self.pieces = _Pieces(tokenizer(language), self._number)
        self.properties = {name: np.zeros(1024, kind) for name, kind in PROPERTIES.items()}

    def split(self, pieces: list[str]) -> Words:
        """The words of pieces without white space inside, one after the other."""
        found = itertools.chain.from_iterable(map(self.pieces.__getitem__, pieces))
        return Words(np.array(list(found), np.int64), self)

    def _number(self, word: str) -> int:
        number = self.numbers.get(word)
        if number is not None:
            return number
        number = self.numbers[word] = len(self.texts)
        self.texts.append(word)
        if number == len(self.properties["length"]):
            self.properties = {name: np.concatenate([own, own]) for name, own in self.properties.items()}
        for name, value in _properties(word).items():
            self.properties[name][number] = value
        return number


class _Pieces(dict):
    """The numbers of the words that a piece becomes; one that is asked for the first time is split."""

    def __init__(self, tokens: Callable[[str], list[str]], number: Callable[[str], int]):
        super().__init__()
        self.tokens, self.number = tokens, number

    def __missing__(self, piece: str) -> tuple[int, ...]:
        found = tuple(map(self.number, self.tokens(piece)))
        if len(piece) <= RARE:
            self[piece] = found
        return found


def _properties(word: str) -> dict[str, int | bool]:
    hashed = 0
    for letter in word:
        hashed = (hashed * BASE + ord(letter) + 1) % 2**64
    return {
        "length": len(word),
        "symbol": _symbols().issuperset(word),
        "alphabetic": any(map(str.isalpha, word)),
        "terminal": word in _sentence_ends(),
        "plain": word not in _sentence_ends() and any(unicodedata.category(letter)[0] != "P" for letter in word),
        "hashed": hashed,
        "power": pow(BASE, len(word), 2**64),
    }


class Splitter:
    """Splits the texts of one language into words; those of the last texts are kept for the steps that follow."""

    def __init__(self, language: str):
        self.language, self.known = language, Vocabulary(language)
        self.recent: dict[str, Words] = {}
        self.room = RECENT

    def __call__(self, text: str) -> Words:
        """The words of a text; white space is none."""
        words = self.recent.get(text)
        if words is None:
            self.room -= len(text)
            if self.room < 0:
                self.recent, self.room = {}, RECENT
            words = self.recent[text] = self._split(text)
        return words

    def _split(self, text: str) -> Words:
        if len(self.known.pieces) > REMEMBERED:
            self.known = Vocabulary(self.language)
        return self.known.split(text.split())

    def sentences(self, line: str) -> int:
        """How many sentences spaCy's sentencizer sees in a line that begins with no white space.

        White space beyond a single space is a token to it, and begins a sentence as a word does.
        """
        return count_sentences(self._split(GAP.sub(" x ", line)))


def count_sentences(words: Words) -> int:
    """A sentence ends at a terminal mark, and the next begins with the first word after it."""
    terminal, plain = words.of("terminal"), words.of("plain")
    seen = terminal | plain
    before, after = terminal[seen][:-1], plain[seen][1:]
    return int(np.count_nonzero(before & after)) + bool(len(words))


@functools.cache
def splitter(language: str) -> Splitter:
    """The one of this process."""
    return Splitter(language)


@functools.cache
def terminals() -> frozenset[str]:
    """Marks that end a line, in many scripts."""
    return _sentence_ends().union(TERMINALS)


@functools.cache
def _sentence_ends() -> frozenset[str]:
    return frozenset(package("spacy").pipeline.Sentencizer.default_punct_chars)


@functools.cache
def _symbols() -> frozenset[str]:
    return frozenset(PUNCTUATION) | terminals()


def packages_of(language: str) -> tuple[str, ...]:
    """Packages whose versions decide its words; of `own`, the language of each document, those of every language."""
    return ("spacy", "jieba") if language in ("zh", "own") else ("spacy",)


def tokenizer(language: str) -> Callable[[str], list[str]]:
    """Splits a piece of text by the rules of a language; `xx` are those for any."""
    if language == "zh":
        jieba = package("jieba")
        jieba.setLogLevel("WARNING")
        return jieba.lcut
    spacy = package("spacy")
    if not language.isalpha() or importlib.util.find_spec(f"spacy.lang.{language}") is None:
        raise UserError(f"language={language!r} is none that spaCy knows; `xx` has the rules for any")
    try:
        pipeline = spacy.blank(language)
    except ImportError as error:
        raise UserError(f"spaCy's rules for {language!r} need a package: {str(error).splitlines()[0]}") from error
    pipeline.vocab.lex_attr_getters = {}  # what else spaCy would note of every word
    split, exceptions, tested = pipeline.tokenizer, pipeline.tokenizer.rules, language in TESTED

    def tokens(piece: str) -> list[str]:
        if len(piece) > LONGEST:
            return [piece]
        stem, mark = (piece[:-1], piece[-1]) if piece[-1] in ",." else (piece, "")
        # Most pieces, in a thirtieth of the time. A point stays with what may be an initial.
        plain = tested and stem.isalpha() and (mark != "." or "a" <= stem[-1] <= "z")
        if plain and piece not in exceptions and stem not in exceptions:
            return [stem, mark] if mark else [stem]
        return [word for token in split(piece) if (word := token.text.strip())]

    return tokens
