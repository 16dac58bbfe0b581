import io
import pickle

import pytest
import sentencepiece
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


@given(st.lists(st.integers(0, 345), max_size=40), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_stream_of_any_ids_is_the_text_of_all(tokenizer, ids, special):
    stream = tokenizer.stream(special)
    parts = [stream.push(i) for i in ids]
    assert "".join(parts) + stream.flush() == tokenizer.decode(ids, special)


@given(st.text(st.characters(codec="utf-8")))
@settings(max_examples=100, deadline=None)
def test_offsets_tile_the_text(tokenizer, text):
    ids, spans = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    distinct = list(dict.fromkeys(spans))
    assert "".join(text[begin:end] for begin, end in distinct) == text


def test_decoding_is_sentencepieces(tokenizer):
    for text in (TEXT[:2000], " a", "é漢😀\n"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == tokenizer.processor.decode(ids)


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


CHAT = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")


def test_special_tokens_are_learned_without_loss(tokenizer, tmp_path):
    train([TEXT], TokenizerConfig(vocab_size=340, model=tokenizer.kind, special=CHAT), tmp_path / "m")
    chat = open_tokenizer_file(tmp_path / "m")
    text = "<|im_start|>user\n\u2581<think>a</think><|im_end|>\n"
    assert list(chat.special_tokens) == ["<s>", "</s>", *CHAT]
    ids, spans = chat.encode_with_offsets(text)
    assert not set(ids) & set(chat.special_tokens.values())
    assert chat.decode(ids) == text
    ids, spans = chat.encode_with_offsets(text, special=True)
    assert ids == chat.encode(text, special=True)
    named = [(text[begin:end], i) for i, (begin, end) in zip(ids, spans) if i in chat.special_tokens.values()]
    assert named == [(name, chat.special_tokens[name]) for name in (CHAT[0], CHAT[2], CHAT[3], CHAT[1])]
    assert chat.decode(ids) == "user\n\u2581a\n"
    assert chat.decode(ids, special=True) == text
    described = {token["content"]: token for token in tokenizer_json(chat)["added_tokens"]}
    assert all(described[name]["special"] and described[name]["id"] == chat.special_tokens[name] for name in CHAT)


@pytest.mark.parametrize("name", ["", "a b", "a,b", "<s>", "<0x0A>", "\u2581", "\n"])
def test_special_tokens_that_cannot_be_are_refused(name):
    with pytest.raises(ValueError, match="special"):
        TokenizerConfig(special=(name,))


def raw_model(path, **options):
    model = io.BytesIO()
    lines = [line for line in TEXT.split("\n") if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, minloglevel=3, **options
    )
    path.write_bytes(model.getvalue())
    return path


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "bpe", "byte_fallback": True},
        {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
         "remove_extra_whitespaces": False},
        {"model_type": "unigram", "vocab_size": 60},
    ],
)  # fmt: skip
def test_a_model_of_others_is_read_as_sentencepiece_reads_it(tmp_path, options):
    path = raw_model(tmp_path / "llama.model", **{"vocab_size": 340, **options})
    tokenizer = open_tokenizer_file(path)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (1, 2, None)
    for text in ("", "the model", "  two  spaces ", "a\nb", "<s> </s>", "x\u2581y", "ﬁne", TEXT[:1000]):
        ids = processor.encode(text)
        assert tokenizer.encode(text) == ids
        assert tokenizer.document(text) == [1, *ids, 2]
        if 0 not in ids:  # SentencePiece writes the unknown with spaces around it and keeps these at the beginning
            assert tokenizer.decode(tokenizer.document(text)) == processor.decode(ids)
        assert tokenizer.encode_with_offsets(text)[0] == ids


def test_a_model_without_beginning_and_end_has_none(tmp_path):
    tokenizer = open_tokenizer_file(
        raw_model(tmp_path / "m", model_type="unigram", vocab_size=60, bos_id=-1, eos_id=-1)
    )
    assert (tokenizer.bos, tokenizer.eos, tokenizer.stop_ids) == (None, None, ())
    assert tokenizer.document("the") == tokenizer.encode("the")
    assert tokenizer.prompt("") == [0]


def test_a_damaged_model_is_named(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"not a model")
    for content in (b"not a model", b"", pickle.dumps({"pieces": []}), b"\x0a\x0a\x0a\x01a\x15\x00\x00\x00\x00"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"tokenizer.model is not a"):
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
