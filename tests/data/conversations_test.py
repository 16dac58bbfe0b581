"""Conversations from records to batches: what is trained on is what the assistant said."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.files import read_json
from data.config import BatchConfig, DataConfig, StageConfig, TokenizerConfig
from data.conversations import encode_document, from_record, is_conversation, plain_text
from data.curate.engine import curate
from data.document import Document, Dropped, read_documents
from data.sources import folder, jsonl, parquet, python_chat
from data.tokenize import open_chat_template, open_split, open_tokenizer, require_tokenized, tokenize
from lab import WORDS, ByteTokenizer, FakeShards, make_batches

pytest.importorskip("jinja2")

TALK = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "Four.", "reasoning": "Two and two."},
]
SPECIAL = ("<|im_start|>", "<|im_end|>")


def test_a_record_of_messages_becomes_a_document():
    given = {
        "messages": TALK,
        "tools": [{"name": "add"}],
        "chat_template_kwargs": {"date": "today", "eos_token": "x"},
    }
    text, meta = from_record(given)
    assert text == "user: What is 2 + 2?\n\nassistant: (Two and two.)\nFour.\n"
    assert meta == {
        "messages": [TALK[0], {"role": "assistant", "content": "Four.", "reasoning_content": "Two and two."}],
        "variables": {"date": "today", "tools": [{"name": "add"}]},
    }


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "not_messages"),
        ("hello", "not_messages"),
        ([{"role": "user"}], "not_messages"),
        ([{"content": "x"}], "not_messages"),
        ([{"role": "user", "content": [{"type": "image"}]}], "not_messages"),
        (TALK[:1], "no_assistant"),
        ([TALK[0], {"role": "assistant", "content": ""}], "no_assistant"),
        ([TALK[0], {"role": "assistant", "content": "\ud800"}], "undecodable"),
    ],
)
def test_what_is_no_conversation_is_dropped_with_a_reason(tmp_path, messages, reason):
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}) + "\n" + json.dumps({"messages": TALK}))
    dropped, kept = jsonl.read(tmp_path / "a.jsonl", "a")
    assert (dropped.id, dropped.reason) == ("a:1", reason)
    assert is_conversation(kept)


def test_a_text_beside_messages_is_the_document_as_ever(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": TALK, "text": "plain"}))
    assert list(jsonl.read(tmp_path / "a.jsonl", "a")) == [Document("a:1", "plain", "jsonl", url="a:1")]


def test_json_lines_and_parquet_give_the_same_conversations(tmp_path):
    records = [{"messages": TALK, "id": "one"}, {"messages": TALK * 2, "license": "CC0-1.0"}]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))
    pq.write_table(pa.Table.from_pylist(records, schema=None), tmp_path / "b.parquet")
    found = [list(folder.read(tmp_path, [name])) for name in ("a.jsonl.gz", "b.parquet")]
    assert [item.meta for item in found[0]] == [item.meta for item in found[1]]
    assert [item.text for item in found[0]] == [item.text for item in found[1]]
    assert [item.id for item in found[1]] == ["one", "b.parquet:2"]


def test_a_row_of_parquet_that_is_not_utf8_is_not_the_file(tmp_path):
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xff"], pa.binary()).buffers())
    roles = pa.array(["assistant", "assistant"])
    messages = pa.ListArray.from_arrays([0, 1, 2], pa.StructArray.from_arrays([roles, bad], ["role", "content"]))
    pq.write_table(pa.table({"messages": messages}), tmp_path / "a.parquet")
    first, second = parquet.read(tmp_path / "a.parquet", "a")
    assert first.meta["messages"] == [{"role": "assistant", "content": "ok"}]
    assert second == Dropped("a:2", "parquet", "undecodable", 0)


def test_a_text_that_a_step_changed_is_refused():
    text, meta = from_record({"messages": TALK})
    with pytest.raises(UserError, match=r"document x is a conversation whose text a step of data.recipe has changed"):
        encode_document(ByteTokenizer(), None, Document("x", text.replace("Four", "[REMOVED]"), "s", meta=meta))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Curated and tokenized: texts, and conversations of the same words."""
    place = tmp_path_factory.mktemp("conversations")
    random = np.random.default_rng(0)

    def words():
        return " ".join(random.choice(WORDS, random.integers(3, 30)))

    records = []
    for number in range(60):
        turns = [{"role": role, "content": words()} for _ in range(1 + number % 3) for role in ("user", "assistant")]
        head = [{"role": "system", "content": "/no_think"}] if number % 2 else []
        records.append({"messages": head + turns, "id": str(number)})
    (place / "talk").mkdir()
    (place / "talk" / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    (place / "text").mkdir()
    (place / "text" / "a.jsonl").write_text("\n".join(json.dumps({"text": words()}) for _ in range(60)))
    sources = {"text": str(place / "text"), "chat": str(place / "talk")}
    curate(DataConfig(sources=sources, heldout_fraction=0.2, workers=1), place / "work")
    tokenize(TOKENIZER, place / "work", workers=1)
    return place / "work"


TOKENIZER = TokenizerConfig(vocab_size=330, special=SPECIAL)


def said(document):
    """What a model is to learn of a conversation."""
    return "".join(m["content"] + "<|im_end|>" for m in document.meta["messages"] if m["role"] == "assistant")


def test_shards_hold_what_the_assistant_said(workdir):
    tokenizer, conversations = open_tokenizer(workdir), 0
    for split, name in (("heldout", "heldout-00000"), ("train", "train-*")):
        shards = open_split(workdir, split)
        for path in sorted((workdir / "curated").glob(f"{name}.parquet")):
            for document in read_documents(path):
                number = shards.find(document.id)
                (tokens,) = shards.read_tokens(np.array([number]))
                assert shards.masked[number] == is_conversation(document) == (document.source == "chat")
                if not shards.masked[number]:
                    assert tokens.trained is None
                    assert tokenizer.decode(tokens.ids.tolist()) == document.text
                    continue
                conversations += 1
                learnt = tokens.ids[tokens.trained].tolist()
                assert tokenizer.decode(learnt, special=True) == said(document)
                assert shards.predicted_bytes[number] == len(said(document).replace("<|im_end|>", "").encode())
                assert shards.predicted[number] == tokens.trained.sum()
                text = tokenizer.decode(tokens.ids.tolist(), special=True)
                assert text == open_chat_template(workdir, "2025-06-30").render(document.meta["messages"])
                assert "Today Date: 30 June 2025" in text
                assert document.text == plain_text(document.meta["messages"])
    assert conversations == 60
    summary = read_json(workdir / "tokens" / "manifest.json")["summary"]
    assert summary["not_lossless"] == 0
    assert read_json(workdir / "curated" / "manifest.json")["summary"]["conversations"] == 60


@given(st.sampled_from(["split", "best_fit"]), st.integers(8, 70), st.integers(0, 3))
@settings(max_examples=12, deadline=None)
def test_weights_of_batches_are_the_masks_one_token_on(workdir, packing, row_length, seed):
    """And ordinary documents are predicted as ever, in one mixture with conversations."""
    shards = open_split(workdir, "train")
    config = BatchConfig(rows=4, row_length=row_length, packing=packing, mixture={"chat": 0.5, "text": 0.5})
    batches = make_batches(shards, config, seed)
    for k in (0, 5):
        batch, expected = batches.batch(k), np.zeros((4, row_length))
        for row, _, _, piece in batches.documents(k):
            (tokens,) = shards.read_tokens(np.array([piece.document]))
            trained = np.ones(len(tokens.ids), bool) if tokens.trained is None else tokens.trained
            targets = slice(piece.begin + 1, piece.begin + 1 + piece.predicted)
            expected[row, piece.start : piece.start + piece.predicted] = trained[targets]
            inside = batch.targets_BT[row, piece.start : piece.start + piece.predicted]
            assert inside.tolist() == tokens.ids[targets].tolist()
        np.testing.assert_array_equal(batch.weights_BT, expected)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_masks_follow_their_tokens_through_stages(seed):
    """Stages with other rows read the rest of a window; all but the weights is as without masks."""
    random = np.random.default_rng(seed)
    lengths, sources = random.integers(1, 40, 60).tolist(), random.choice(["a", "b"], 60).tolist()
    stages = tuple(
        StageConfig(int(random.integers(100, 600)), 2, int(random.integers(5, 30)), packing, {"a": 0.5, "b": 0.5})
        for packing in ("split", "best_fit", "split")
    )
    plain, masked = FakeShards(lengths, sources), FakeShards(lengths, sources)
    masked.trained = {d: random.random(n) < 0.5 for d, n in enumerate(lengths)}
    expected, found = (make_batches(shards, BatchConfig(stages=stages)) for shards in (plain, masked))
    assert len(expected) == len(found)
    for k in range(len(expected)):
        batch, other = expected.batch(k), found.batch(k)
        for field, same in zip(batch[:-1], other[:-1]):
            np.testing.assert_array_equal(field, same)
        document, place = np.divmod(batch.targets_BT, 1000)
        trained = [masked.trained[d][t] for d, t in zip(document.ravel().tolist(), place.ravel().tolist())]
        weights = batch.weights_BT * np.reshape(trained, batch.weights_BT.shape)
        np.testing.assert_array_equal(other.weights_BT, weights)


def test_another_template_makes_the_tokens_stale(workdir, tmp_path):
    require_tokenized(TOKENIZER, workdir)
    other = tmp_path / "other.jinja"
    other.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    config = TokenizerConfig(vocab_size=330, special=SPECIAL, template=str(other))
    for refused in (require_tokenized, tokenize):
        with pytest.raises(UserError, match=r"tokens was made from something else .template was"):
            refused(config, workdir)


def test_a_conversation_that_the_template_refuses_is_named(workdir):
    text, meta = from_record({"messages": [*TALK, {"role": "judge", "content": "Right."}]})
    document, template = Document("chat/7", text, "chat", meta=meta), open_chat_template(workdir)
    with pytest.raises(UserError, match=r"chat/7: .*chat_template.jinja refuses the conversation: the role judge is"):
        encode_document(open_tokenizer(workdir), template, document)


def test_conversations_about_python_have_two_modes():
    documents = [
        item for item in python_chat.read(None, python_chat.partitions(None)[2]) if isinstance(item, Document)
    ]
    assert len(documents) > 50
    assert len({document.id for document in documents}) == len(documents)
    modes = [any("reasoning_content" in message for message in item.meta["messages"]) for item in documents]
    quiet = ["/no_think" in item.meta["messages"][0]["content"] for item in documents]
    assert [not mode for mode in modes] == quiet
    assert 0.3 < np.mean(modes) < 0.7
    again = python_chat.read(None, python_chat.partitions(None)[2])
    assert [item for item in again if isinstance(item, Document)] == documents
