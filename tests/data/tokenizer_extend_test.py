"""A grown vocabulary: old ids as they were, new pieces that are used, and nothing lost."""

import io
import itertools
import json
import re

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as proto

from core.errors import UserError
from data import tokenizer_extend as module
from data.config import TokenizerConfig
from data.tokenizer_extend import extend, read_model
from data.tokenizer_hf import tokenizer_json
from data.tokenizer_sentencepiece import SentencePieceTokenizer, train
from lab import WORDS

ENGLISH = "".join(f"def {a}({b}):\n    return {a} + {b}  # {b}\n" for a in WORDS for b in WORDS)
SPANISH = "el modelo lee una fila de fichas y aprende a predecir qué sigue a cada una según el año pasado".split()
CHINESE = "模型 读取 一行 词元 学习 预测 下一个 梯度 流过 每层 直到 损失 下降".split()
NEW = [f"{a} {b} {a}; {c}{d},{c}。\n" for a in SPANISH for b in SPANISH for c, d in itertools.pairwise(CHINESE)]
SIZES = {"bpe": 420, "unigram": 400, "llama": 420}


def train_like_llama(path):
    """A space before the text, no newline piece, digits alone: as the model of Llama 2 is made."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(ENGLISH.split("\n")), model_writer=model, model_type="bpe", vocab_size=330,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, minloglevel=3, num_threads=1,
    )  # fmt: skip
    path.write_bytes(model.getvalue())


@pytest.fixture(scope="module", params=["bpe", "unigram", "llama"])
def grown(request, tmp_path_factory):
    """The tokenizers before and after, and the growth."""
    folder = tmp_path_factory.mktemp("extend")
    if request.param == "llama":
        train_like_llama(folder / "old.model")
    else:
        train([ENGLISH], TokenizerConfig(vocab_size=340, model=request.param), folder / "old.model")
    growth = extend(folder / "old.model", NEW, SIZES[request.param], folder / "new.model")
    return SentencePieceTokenizer(folder / "old.model"), SentencePieceTokenizer(folder / "new.model"), growth


def old_pieces(growth, ids):
    """The old ids of ids of the grown vocabulary."""
    for i in ids:
        index = i - growth.old_size
        begin, end = growth.offsets[index : index + 2] if index >= 0 else (0, 0)
        yield from [i] if index < 0 else growth.old_ids[begin:end].tolist()


def text_of():
    """Texts of both languages, with what neither has."""
    words = [*WORDS, *SPANISH, *CHINESE, "\n", "  ", "\u2581", "ñandú", "😀", "12", "</s>", "\t", "損"]
    return st.lists(st.one_of(st.sampled_from(words), st.text(st.characters(codec="utf-8"), max_size=3))).map(
        lambda parts: "".join(parts)
    )


def test_old_ids_are_untouched(grown):
    old, new, growth = grown
    before, after = read_model(old.path), read_model(new.path)
    assert list(after.pieces[: len(before.pieces)]) == list(before.pieces)
    assert after.normalizer_spec == before.normalizer_spec
    assert len(after.pieces) == new.vocab_size == growth.vocab_size == after.trainer_spec.vocab_size
    assert len({entry.piece for entry in after.pieces}) == len(after.pieces)
    assert growth.old_size == old.vocab_size
    assert tuple(entry.piece for entry in after.pieces[growth.old_size :]) == growth.pieces


def test_every_new_piece_is_made_of_its_own_text(grown):
    old, new, growth = grown
    before, after = (module._bare(read_model(tokenizer.path)) for tokenizer in (old, new))
    for index, piece in enumerate(growth.pieces):
        assert after.encode(piece) == [growth.old_size + index]
        assert before.encode(piece) == list(old_pieces(growth, [growth.old_size + index]))


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_any_text_round_trips_as_before(grown, data):
    old, new, _ = grown
    text = data.draw(text_of())
    assert new.decode(new.encode(text)) == old.decode(old.encode(text))
    if "\u2581" not in text:  # a model that puts a space before each text loses those after this sign
        assert new.decode(new.encode(text)) == text


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_new_bpe_tokens_are_runs_of_the_old_ones(grown, data):
    old, new, growth = grown
    text = data.draw(text_of())
    ids = new.encode(text)
    if read_model(old.path).trainer_spec.model_type == proto.TrainerSpec.BPE:
        assert list(old_pieces(growth, ids)) == old.encode(text)
    else:
        assert old.decode(old_pieces(growth, ids)) == text


def test_new_text_takes_fewer_tokens_and_old_text_as_many(grown):
    old, new, growth = grown
    fresh = "una fila sigue; 梯度下降,模型。 año pasado según el modelo"
    assert len(new.encode(fresh)) < 0.5 * len(old.encode(fresh))
    english = " ".join(WORDS)
    assert len(new.encode(english)) <= len(old.encode(english))
    assert growth.characters >= 20
    assert {"模", "ñ", "▁según"} & set(growth.pieces)


def test_the_same_text_gives_the_same_model(grown, tmp_path):
    old, new, growth = grown
    again = extend(old.path, iter(NEW), new.vocab_size, tmp_path / "again.model")
    assert (tmp_path / "again.model").read_bytes() == new.path.read_bytes()
    assert again.pieces == growth.pieces
    assert (again.old_ids == growth.old_ids).all()


def test_what_saves_most_is_chosen_character_or_not(tmp_path):
    """Without a piece a character is a token for each of its bytes; a rare one is still worth less than a word."""
    train([ENGLISH], TokenizerConfig(vocab_size=340), tmp_path / "m")
    rare = "".join(chr(0x4E00 + number) for number in range(100)) * 2
    growth = extend(tmp_path / "m", ["einmal und " * 200, "模型" * 50, rare], 350, tmp_path / "out")
    assert {"模", "型", "模型", "▁einmal", "▁und"} <= set(growth.pieces)
    assert growth.characters == 2
    growth = extend(tmp_path / "m", ["einmal und " * 200, "模型" * 50, rare], 440, tmp_path / "out")
    assert growth.characters > 80


def test_words_of_a_script_are_joined_across_no_other(tmp_path):
    train([ENGLISH], TokenizerConfig(vocab_size=340), tmp_path / "m")
    texts = ["模型reads的12个 模型reads的12个 型12\n" * 50, "e\u0301te\u0301 " * 50]
    growth = extend(tmp_path / "m", texts, 355, tmp_path / "out")
    for piece in growth.pieces:
        assert re.fullmatch(r"▁?([a-z\u0301]+|[\u4e00-\u9fff]+|\d)|▁", piece), piece
    assert {"▁模型", "▁reads", "te\u0301", "e\u0301te\u0301"} & set(growth.pieces)


def test_a_grown_model_grows_again(grown, tmp_path):
    _, new, growth = grown
    german = ["die verlorene zeile wird größer und größer, schließlich überläuft die straße\n"] * 20
    again = extend(new.path, german, new.vocab_size + 8, tmp_path / "again.model")
    assert again.old_size == growth.vocab_size
    assert {"ß", "ö", "ü"} & set(again.pieces)


def test_the_grown_model_exports_with_equal_ids(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="the Hugging Face library is not installed")
    train([ENGLISH], TokenizerConfig(vocab_size=340), tmp_path / "m")
    extend(tmp_path / "m", NEW, 420, tmp_path / "out")
    ours = SentencePieceTokenizer(tmp_path / "out")
    assert ours.kind == "bpe"
    theirs = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(ours)))
    for text in (*NEW[:20], ENGLISH[:300], "sigue  模型模型\n\n año 😀 損失"):
        assert theirs.encode(text, add_special_tokens=False).ids == ours.encode(text)


@pytest.mark.parametrize("size", [0, 300, 340])
def test_a_vocabulary_no_larger_is_refused(tmp_path, size):
    train([ENGLISH], TokenizerConfig(vocab_size=340), tmp_path / "m")
    with pytest.raises(UserError, match=rf"^vocab_size={size} adds nothing to the 340 pieces of .*; ask for more$"):
        extend(tmp_path / "m", NEW, size, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"is more than 500,000 pieces"):
        extend(tmp_path / "m", NEW, 10**9, tmp_path / "out")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("texts", [[], ["hola\n"], ["el año que viene\n"] * 50, NEW[:40]])
def test_too_little_text_is_told_with_what_it_is_enough_for(tmp_path, kind, texts):
    train([ENGLISH], TokenizerConfig(vocab_size=340, model=kind), tmp_path / "m")
    told = r"bytes of text are too few to grow .* to vocab_size=2000 \(at most (3[4-9]\d|4\d\d)\)"
    with pytest.raises(UserError, match=told) as refusal:
        extend(tmp_path / "m", texts, 2000, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    most = int(re.search(r"at most (\d+)", str(refusal.value))[1])
    assert most == 340 or extend(tmp_path / "m", texts, most, tmp_path / "out").vocab_size == most


def test_files_that_are_no_model_are_refused(tmp_path):
    (tmp_path / "broken").write_bytes(b"not a model")
    (tmp_path / "empty").write_bytes(b"")
    train([ENGLISH], TokenizerConfig(vocab_size=340), tmp_path / "whole")
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:1000])
    for name in ("broken", "empty", "cut", "missing", "."):
        with pytest.raises(UserError, match=r"is not a( whole)? SentencePiece model \(.*\); name one$"):
            extend(tmp_path / name, NEW, 2000, tmp_path / "out")


@pytest.mark.parametrize("kind", ["word", "char"])
def test_kinds_that_cannot_grow_are_refused(tmp_path, kind):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(ENGLISH.split("\n")), model_writer=model, model_type=kind, vocab_size=25,
        hard_vocab_limit=False, minloglevel=3,
    )  # fmt: skip
    (tmp_path / "m").write_bytes(model.getvalue())
    with pytest.raises(UserError, match=rf"is a {kind} model, which has no pieces to grow by"):
        extend(tmp_path / "m", NEW, 2000, tmp_path / "out")


def test_no_more_than_the_megabytes_asked_are_read(tmp_path):
    train([ENGLISH], TokenizerConfig(vocab_size=340), tmp_path / "m")
    read = []

    def texts():
        for text in NEW:
            read.append(len(text.encode()))
            yield text

    growth = extend(tmp_path / "m", texts(), 400, tmp_path / "out", train_mb=0.02)
    assert 20_000 <= growth.learned_bytes <= 20_100  # the last line may go over
    assert sum(read) < 22_000
