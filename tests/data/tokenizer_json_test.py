import builtins
import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tokenizers")

from core.errors import UserError, explain
from data import tokenizer as module
from data.tokenizer import open_tokenizer_file
from tokenizer_lab import FAMILIES, HARD, TEXT, llama2, llama2_model, qwen3, write

TEXTS = st.text(st.characters(codec="utf-8"))
LOSSLESS = ("gpt2", "smollm2", "llama3")  # Qwen composes characters; Llama 2 and Gemma read U+2581 as a space


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    return open_tokenizer_file(FAMILIES[request.param](tmp_path_factory.mktemp("families") / request.param))


@pytest.fixture
def folder(tmp_path):
    return FAMILIES["gpt2"](tmp_path / "gpt2")


def changed(folder, change):
    """The folder with its tokenizer.json changed in place."""
    path = folder / "tokenizer.json"
    described = json.loads(path.read_text())
    change(described)
    path.write_text(json.dumps(described))
    return folder


def faithful(family, text):
    """Whether a family can give a text back."""
    if family.path.parent.name in LOSSLESS:
        return True
    return "\u2581" not in text if family.path.parent.name != "qwen3" else text.isascii()


@given(TEXTS)
@settings(max_examples=100, deadline=None)
def test_text_round_trips_where_the_family_allows(family, text):
    if faithful(family, text):
        assert family.decode(family.encode(text)) == text


@given(st.lists(st.integers(0, 1000), max_size=40), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_stream_of_any_ids_is_the_text_of_all(family, ids, with_special):
    stream = family.stream(with_special)
    parts = [stream.push(i) for i in ids]
    assert "".join(parts) + stream.flush() == family.decode(ids, with_special)


def test_what_a_stream_gives_is_never_taken_back(family):
    text = "😀 漢字 é\n" * 3
    stream, shown = family.stream(), ""
    for i in family.encode(text):
        shown += stream.push(i)
        assert text.startswith(shown)
    assert shown + stream.flush() == text


@pytest.mark.parametrize("text", HARD)
def test_ids_and_texts_are_the_librarys(family, text):
    import tokenizers

    plain = tokenizers.Tokenizer.from_file(str(family.path))
    assert family.encode(text, special=True) == plain.encode(text, add_special_tokens=False).ids
    assert [*family.begin, *family.encode(text, special=True)] == plain.encode(text).ids
    plain.encode_special_tokens = True
    ids = family.encode(text)
    assert ids == plain.encode(text, add_special_tokens=False).ids
    assert family.decode(ids) == plain.decode(ids)
    assert family.encode_with_offsets(text)[0] == ids


def test_text_cannot_forge_special_tokens(family):
    for name, i in family.special_tokens.items():
        text = f"a{name}b"
        assert i not in family.encode(text)
        assert i not in family.encode_with_offsets(text)[0]
        assert family.decode(family.encode(text)) == text
        assert i in family.encode(text, special=True)
        assert name not in family.decode(family.encode(text, special=True))
        assert name in family.decode(family.encode(text, special=True), special=True)


def test_offsets_cover_the_text(family):
    text = " x = 'é漢😀'\n\n  <|im_start|>tail "
    ids, spans = family.encode_with_offsets(text)
    assert len(ids) == len(spans)
    covered = {at for begin, end in spans for at in range(begin, end)}
    assert covered == set(range(len(text)))
    assert spans == sorted(spans)


def test_documents_begin_and_end_with_a_token_of_the_family(family):
    names = {i: name for name, i in family.special_tokens.items()}
    ids = family.document("x")
    expected = {
        "gpt2": ("<|endoftext|>", "<|endoftext|>"),
        "smollm2": ("<|im_end|>", "<|im_end|>"),
        "llama3": ("<|begin_of_text|>", "<|end_of_text|>"),
        "qwen3": ("<|im_end|>", "<|im_end|>"),
        "llama2": ("<s>", "</s>"),
        "gemma2": ("<bos>", "<eos>"),
    }
    assert (names.get(ids[0]), names[ids[-1]]) == expected[family.path.parent.name]
    assert family.decode(ids) == "x"
    assert family.prompt("")
    assert family.prompt("x") == ids[0 if family.begin else 1 : -1]


def test_all_that_ends_a_turn_stops(tmp_path):
    tokenizer = open_tokenizer_file(FAMILIES["llama3"](tmp_path))
    names = tokenizer.special_tokens
    assert tokenizer.stop_ids == (names["<|end_of_text|>"], names["<|eot_id|>"])


def test_added_tokens_that_are_not_special_are_vocabulary(tmp_path):
    tokenizer = open_tokenizer_file(qwen3(tmp_path))
    assert "<think>" not in tokenizer.special_tokens
    assert len(tokenizer.encode("<think>")) == 1
    assert tokenizer.decode(tokenizer.encode("<think>")) == "<think>"


def test_a_pickled_tokenizer_is_its_path(family):
    again = pickle.loads(pickle.dumps(family))
    assert again.fingerprint == family.fingerprint
    assert len(pickle.dumps(family)) < 1000


def test_ids_beyond_the_vocabulary_mean_nothing(family):
    ids = family.encode("abc")
    assert family.decode([*ids, family.vocab_size, 10**9, -1]) == "abc"


def test_the_fingerprint_follows_what_decides_the_ids(folder):
    before = open_tokenizer_file(folder).fingerprint
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": None}))
    assert open_tokenizer_file(folder).fingerprint != before


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config.json": {"eos_token": "<|endoftext|>"}}, 600),
        ({"tokenizer_config.json": {"eos_token": {"content": "<|endoftext|>"}}}, 600),
        ({"tokenizer_config.json": {}, "special_tokens_map.json": {"eos_token": "<|endoftext|>"}}, 600),
        ({"tokenizer_config.json": {}, "generation_config.json": {"eos_token_id": [600, 3]}}, 600),
        ({"tokenizer_config.json": {}, "config.json": {"eos_token_id": 600}}, 600),
        ({"tokenizer_config.json": {"pad_token": "<never>"}}, None),
    ],
)
def test_the_end_is_found_wherever_a_folder_says_it(folder, files, expected):
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    assert open_tokenizer_file(folder).eos == expected


def test_a_named_end_that_is_no_special_token_becomes_one(folder):
    def plain(described):
        described["added_tokens"][0]["special"] = False

    tokenizer = open_tokenizer_file(changed(folder, plain))
    assert tokenizer.eos not in tokenizer.encode("<|endoftext|>")


def test_merges_that_make_a_special_token_are_left_out(tmp_path):
    def join(described):
        vocab = described["model"]["vocab"]
        for piece in ("<", "/", "s", ">", "</", "s>"):
            vocab.setdefault(piece, len(vocab))
        described["model"]["merges"] = [["<", "/"], ["s", ">"], ["</", "s>"], *described["model"]["merges"]]

    tokenizer = open_tokenizer_file(changed(llama2(tmp_path), join))
    assert 2 not in tokenizer.encode("a</s>b")
    assert tokenizer.decode(tokenizer.encode("a</s>b")) == "a</s>b"


def test_a_unigram_vocabulary_cannot_forge_either(tmp_path):
    pieces = [["<unk>", 0.0], ["</s>", 0.0], *([letter, -5.0] for letter in "ab</s>"), ["\u2581", -5.0]]
    described = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": name, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False} for i, name in enumerate(("<unk>", "</s>"))
        ],
        "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False},
        "decoder": {"type": "Fuse"},
    }  # fmt: skip
    tokenizer = open_tokenizer_file(write(tmp_path, described, eos_token="</s>", unk_token="<unk>"))
    text = "a</s>b</s>" * 50
    assert tokenizer.kind == "unigram"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_with_offsets(text)[1][-1] == (len(text) - 1, len(text))
    assert tokenizer.encode("aXb").count(0) == 1


def refused(path, *words):
    """Opening ends in one line that names the file."""
    with pytest.raises(UserError) as caught:
        open_tokenizer_file(path)
    line = explain(caught.value).line
    assert str(path) in line
    assert all(word in line for word in words), line
    assert len(line) < 400


def with_vocab(**entries):
    return lambda described: described["model"]["vocab"].update(entries)


def with_added(**token):
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return lambda described: described["added_tokens"].append({**flags, **token})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_vocab(extra=5), "have the same id 5"),
        (with_vocab(extra=-1), "the id of token 'extra' is -1"),
        (with_vocab(extra=2**40), "must be 0 to 1,048,575"),
        (with_vocab(extra="7"), "the id of token 'extra' is '7'"),
        (with_vocab(extra=True), "is True"),
        (with_added(id=9999, content="<x>"), "has id 9999"),
        (with_added(id=7, content="<x>"), "have the same id 7"),
        (with_added(id=7, content="<|endoftext|>"), "has two ids"),
        (with_added(content="<x>"), "added_tokens"),
        (lambda described: described.pop("model"), "not a tokenizer"),
        (lambda described: described["model"].update(type="WordPiece"), "BPE or Unigram"),
        (lambda described: described["model"]["merges"].append(["q", "never"]), "not a usable tokenizer"),
        (lambda described: described.update(decoder={"type": "WordPiece"}), "decoder WordPiece"),
        (lambda described: described.update(decoder=None), "decoder none"),
        (lambda described: described.update(normalizer={"type": "Never"}), "not a usable tokenizer"),
    ],
)
def test_what_is_wrong_in_a_file_is_told(folder, change, words):
    refused(changed(folder, change) / "tokenizer.json", words)


def test_files_that_are_no_tokenizer_are_told(tmp_path, folder, monkeypatch):
    path = tmp_path / "tokenizer.json"
    refused(path, "does not exist")
    refused(tmp_path, "holds no tokenizer")
    whole = (folder / "tokenizer.json").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"[]", b"[" * 100_000, pickle.dumps({"vocab": {}}), b"\xff\xfe"):
        path.write_bytes(content)
        refused(path)
    path.write_bytes(b'{"model": {"type": "BPE", "vocab": {"a": 0, "a": 1}, "merges": []}}')
    refused(path, "'a' is given twice")
    monkeypatch.setattr(module, "MAX_BYTES", 1_000_000)
    path.write_bytes(b" " * 1_000_001)
    refused(path, "more than 1 MB")


def test_names_that_the_tokenizer_lacks_are_told(folder):
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": "</s>"}))
    with pytest.raises(
        UserError, match=r"tokenizer_config.json: eos_token '</s>' is not a token of .*tokenizer.json"
    ):
        open_tokenizer_file(folder)
    config.write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config.json is not readable JSON"):
        open_tokenizer_file(folder)
    config.write_text("{}")
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 10_000}))
    with pytest.raises(UserError, match=r"config.json: eos_token_id 10000 is not an id"):
        open_tokenizer_file(folder)


def test_a_pattern_that_backtracks_is_ended(folder):
    slow = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    tokenizer = open_tokenizer_file(changed(folder, lambda described: described.update(pre_tokenizer=slow)))
    with pytest.raises(UserError, match=r"tokenizer.json fails on a text of 40 characters .*retry-limit"):
        tokenizer.encode("x" * 40)


def test_half_a_surrogate_pair_is_told(family):
    with pytest.raises(UserError, match="not Unicode at character 2"):
        family.encode("a\ud800")


def test_without_the_library_the_remedy_is_named(folder, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments):
        if name == "tokenizers":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    refused(folder / "tokenizer.json", "pip install 'quintet[hf]'")


def test_llama_2_as_a_model_and_as_json_agree(tmp_path):
    of_json = open_tokenizer_file(llama2(tmp_path / "json"))
    of_model = open_tokenizer_file(llama2_model(tmp_path / "raw"))
    for text in [*HARD, TEXT[:5000]]:
        assert of_json.document(text) == of_model.document(text)
        assert of_json.decode(of_json.encode(text)) == of_model.decode(of_model.encode(text))


def test_special_tokens_of_config_must_exist(family):
    family.require_special(list(family.special_tokens)[:2])
    with pytest.raises(UserError, match=r"config tokenizer.special: '<\|tool\|>' is not a special token of"):
        family.require_special(["<|tool|>"])
