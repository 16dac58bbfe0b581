"""The report of two tokenizers: its numbers are those of the tokenizers, and nothing hostile gets onto the page."""

import json
import re

import numpy as np
import pytest

from core.errors import UserError
from data.config import TokenizerConfig
from data.tokenizer_extend import extend
from data.tokenizer_sentencepiece import SentencePieceTokenizer, train
from evals import vocabulary
from evals.vocabulary import compare_tokenizers, emoji, measure, print_table, read_texts
from lab import WORDS

ENGLISH = "".join(f"{a} {b}\n" for a in WORDS for b in WORDS)
SPANISH = "".join(f"{a} {b} 😀\n" for a in "señal año según río fila".split() for b in "cada modelo lee".split())
TEXTS = {"en": [ENGLISH[:1500], ENGLISH[1500:3000]], "<b>es</b>": [SPANISH], "other": ["漢字\n", "\u2581 x\n"]}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    train([ENGLISH], TokenizerConfig(vocab_size=340), folder / "before")
    extend(folder / "before", [SPANISH] * 5, 360, folder / "after")
    return folder / "before", folder / "after"


@pytest.fixture(scope="module")
def made(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "vocabulary"
    return folder, compare_tokenizers(*models, TEXTS, folder)


def test_the_numbers_are_those_of_the_tokenizers(models, made):
    _, result = made
    before, after = map(SentencePieceTokenizer, models)
    own = result["languages"]["<b>es</b>"]
    assert own["bytes"] == len(SPANISH.encode())
    assert own["after"]["tokens"] == len(after.encode(SPANISH))
    assert own["before"]["tokens_per_byte"] == len(before.encode(SPANISH)) / len(SPANISH.encode())
    assert own["after"]["tokens_per_character"] == len(after.encode(SPANISH)) / len(SPANISH)
    ids = before.encode(SPANISH)
    assert own["before"]["byte_fraction"] == sum(map(before.processor.is_byte, ids)) / len(ids)
    assert own["after"]["byte_fraction"] == 0
    assert result["languages"]["other"]["after"]["byte_fraction"] > 0.5
    assert result["vocab_size"] == {"before": 340, "after": 360}
    assert sum(script["pieces"] for script in result["new_pieces"].values()) == 20
    values = [language["after"]["tokens_per_byte"] for language in result["languages"].values()]
    assert result["mean"]["after"]["tokens_per_byte"] == pytest.approx(np.mean(values))
    for language in result["languages"].values():
        for side in ("before", "after"):
            assert language[side]["not_lossless"] == 0
            assert language[side]["encode_mb_s"] > 0
            assert language[side]["decode_mb_s"] > 0


def test_what_changed_is_counted_in_tokens_of_before(models):
    before, after = map(SentencePieceTokenizer, models)
    result = measure([before, before], {"en": [ENGLISH[:500]]})
    assert result["languages"]["en"]["changed"] == 0
    text = after.processor.id_to_piece(359)  # one piece after; every piece of before is gone
    assert len(after.encode(text)) == 1 < len(before.encode(text))
    assert measure([before, after], {"es": [text]})["languages"]["es"]["changed"] == 1
    half = measure([before, after], {"x": [text + "\n" * 5]})["languages"]["x"]
    assert half["changed"] == pytest.approx(len(before.encode(text)) / half["before"]["tokens"])


def test_emoji_are_pictographs_and_counted_once(made):
    assert {"😀", "🚀", "☃", "🧠"} <= set(emoji())
    assert not {"a", "1", "\ufe0f", "漢"} & set(emoji())
    assert len(emoji()) == len(set(emoji())) > 1300
    counts = made[1]["emoji"]
    assert counts["before"] == {"all": len(emoji()), "one_piece": 0, "no_bytes": 0}
    assert counts["after"] == {"all": len(emoji()), "one_piece": 1, "no_bytes": 1}


def test_a_text_that_is_lost_is_told(models, tmp_path, monkeypatch):
    monkeypatch.setattr(SentencePieceTokenizer, "decode", lambda *_: "lost")
    result = compare_tokenizers(*models, {"en": ["a\n", "b\n"]}, tmp_path / "v")
    assert result["mean"]["after"]["not_lossless"] == 2
    assert "2 of 2 texts do not decode to themselves" in (tmp_path / "v" / "vocabulary.html").read_text()


def test_the_page_stands_alone(made):
    folder, result = made
    text = (folder / "vocabulary.html").read_text()
    assert not re.search(r"https?:|<script|\bsrc=|<b>", text)
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert "&lt;b&gt;es&lt;/b&gt;</text>" in text
    assert {path.stem for path in folder.glob("*.png")} == {"tokens-per-byte", "byte-pieces", "encode", "decode"}
    assert "Not measured: it takes a model trained with each tokenizer" in text
    assert json.loads((folder / "vocabulary.json").read_text()) == result


def test_bits_per_byte_have_their_place(models, tmp_path):
    bits = {"en": {"before": 1.25, "after": 1.125}}
    result = compare_tokenizers(*models, {"en": [ENGLISH[:300]]}, tmp_path / "v", bits_per_byte=bits)
    assert result["bits_per_byte"] == bits
    text = (tmp_path / "v" / "vocabulary.html").read_text()
    assert '<td>en</td><td class="number">1.250</td><td class="number">1.125</td>' in text
    assert (tmp_path / "v" / "bits-per-byte.png").exists()


def test_the_same_again_is_not_measured_again(made, models, monkeypatch):
    folder, result = made
    monkeypatch.setattr(vocabulary, "measure", None)
    assert compare_tokenizers(*models, TEXTS, folder) == result


def test_the_table_goes_to_standard_output(made, capsys):
    print_table(made[1])
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["language", *TEXTS]
    assert len({len(row) for row in rows}) == 1
    assert rows[0][3:5] == ["tokens_per_byte_before", "tokens_per_byte_after"]


def test_texts_are_read_by_language_and_bounded(tmp_path):
    (tmp_path / "de.txt").write_text("größe\r\n" * 1000)
    (tmp_path / "en.txt").write_text("x" * 5000)
    (tmp_path / "other.md").write_text("no")
    texts = read_texts(tmp_path)
    assert list(texts) == ["de", "en"]
    assert "".join(texts["de"]) == "größe\r\n" * 1000
    assert len(texts["de"]) == 4
    assert texts["en"] == ["x" * 5000]
    assert "".join(read_texts(tmp_path / "de.txt", 0.001)["de"]) == ("größe\r\n" * 112)[: 7 * 111 + 1]
    (tmp_path / "en.txt").write_text("ö" * 5000)
    assert len("".join(read_texts(tmp_path, 0.001)["en"])) == 500


def test_texts_that_cannot_be_read_are_named(tmp_path, models):
    with pytest.raises(UserError, match=r"has no .txt file; put one there for each language"):
        read_texts(tmp_path)
    with pytest.raises(UserError, match=r"none.txt cannot be read \(No such file or directory\)"):
        read_texts(tmp_path / "none.txt")
    (tmp_path / "de.txt").write_bytes(b"gr\xf6\xdfe")
    with pytest.raises(UserError, match=r"de.txt is not UTF-8 \(byte 2\)"):
        read_texts(tmp_path)
    with pytest.raises(UserError, match=r"no text of fr to compare tokenizers on"):
        compare_tokenizers(*models, {"en": ["a"], "fr": [""]}, tmp_path / "v")
    with pytest.raises(UserError, match=r"no text of any language"):
        compare_tokenizers(*models, {}, tmp_path / "v")
