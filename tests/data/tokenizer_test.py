import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from data import tokenizer_sentencepiece as module
from data.config import TokenizerConfig
from data.tokenizer import open_tokenizer_file
from data.tokenizer_hf import merges, tokenizer_json
from data.tokenizer_sentencepiece import train
from lab import WORDS

TEXT = "".join(f"def {a}({b}):\n    return {a} + {b}  # {b}\n" for a in WORDS for b in WORDS)


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train([TEXT], TokenizerConfig(vocab_size=340, model=request.param), path)
    tokenizer = open_tokenizer_file(path)
    assert tokenizer.kind == request.param
    return tokenizer


@given(st.text(st.characters(codec="utf-8")))
@settings(max_examples=300, deadline=None)
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n",
        "  two  spaces  ",
        "\t\ttabs",
        "\r\n",
        "a\0b",
        "\u2581",
        "x\u2581 y",
        "<s> </s> <unk> <0x41>",
        "😀 漢字",
        "\ufeffbom",
        "e\u0301",
    ],
)
def test_the_hard_cases_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_cannot_forge_special_tokens(tokenizer):
    assert not {tokenizer.bos, tokenizer.eos} & set(tokenizer.encode("<s> hello </s>"))


def test_documents_begin_and_end(tokenizer):
    ids = tokenizer.document("a\n")
    assert (ids[0], ids[-2], ids[-1]) == (1, 3, 2)
    assert tokenizer.decode(ids) == "a\n"


def test_training_is_reproducible(tokenizer, tmp_path):
    path = tmp_path / "again.model"
    train([TEXT], TokenizerConfig(vocab_size=340, model=tokenizer.kind), path)
    assert path.read_bytes() == tokenizer.path.read_bytes()


def test_a_corpus_too_small_for_the_vocabulary_is_told(tmp_path):
    with pytest.raises(UserError, match=r"too small for tokenizer.vocab_size=3400"):
        train(["a few words, no more\n"], TokenizerConfig(vocab_size=3400), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_vocabulary_too_small_for_the_characters_is_told_the_other_way(tmp_path):
    text = "".join(chr(0x4E00 + number) + ("\n" if number % 20 == 0 else "") for number in range(800)) * 3
    with pytest.raises(
        UserError, match=r"vocab_size=500 is too small for the different characters .* raise --config"
    ):
        train([text], TokenizerConfig(vocab_size=500), tmp_path / "m")


def test_what_interrupts_training_is_not_mistaken_for_a_small_corpus(tmp_path):
    def texts():
        yield TEXT
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(texts(), TokenizerConfig(vocab_size=340), tmp_path / "m")


def test_a_damaged_model_is_named(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"tokenizer.model is not a SentencePiece model"):
        open_tokenizer_file(path)


def test_merges_make_no_special_piece(tmp_path):
    config = TokenizerConfig(vocab_size=340, special=("||", "||||"))
    train([TEXT, "||||||| |||| || |\n" * 500], config, tmp_path / "m")
    made = {left + right for left, right in tokenizer_json(open_tokenizer_file(tmp_path / "m"))["model"]["merges"]}
    assert not made & {"<s>", "</s>", "<unk>", "||", "||||"}


def test_merges_rebuild_every_piece_of_two_parts():
    pieces, scores = ["a", "b", "c", "ab", "abc"], [-9.0, -9.0, -9.0, 0.0, -1.0]
    assert merges(pieces, scores) == [["a", "b"], ["ab", "c"]]


def test_tokenizer_json_holds_the_vocabulary_in_order(tokenizer):
    described = tokenizer_json(tokenizer)
    vocab = described["model"]["vocab"]
    pieces = list(vocab) if tokenizer.kind == "bpe" else [piece for piece, _ in vocab]
    assert pieces == [tokenizer.processor.id_to_piece(i) for i in range(tokenizer.vocab_size)]
    assert {token["content"]: token["id"] for token in described["added_tokens"]}["\n"] == 3


def test_lines_too_long_and_special_characters_do_not_stop_training(tmp_path):
    texts = [TEXT, "x" * (module.MAX_LINE + 10), "\u2581\0 strange\n"]
    train(texts, TokenizerConfig(vocab_size=340, model="bpe"), tmp_path / "m")
    assert open_tokenizer_file(tmp_path / "m").vocab_size == 340
