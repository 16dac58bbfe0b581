import lzma
import math
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.shards import TokenDocument, TokenShards, write_shard
from evals import perplexity


@given(st.integers(2, 300), st.integers(1, 40), st.floats(0, 0.95))
def test_every_token_is_predicted_once_in_the_first_window_that_holds_it(tokens, length, overlap):
    predicted = []
    for begin, first in perplexity.windows(tokens, length, overlap):
        assert first >= begin
        predicted += range(first, min(begin + length, tokens - 1))
    assert predicted == list(range(tokens - 1))


def test_overlap_gives_context():
    windows = perplexity.windows(1000, 100, 0.5)
    assert all(first - begin >= 50 for begin, first in windows[1:])


@pytest.fixture
def shards(tmp_path):
    random = np.random.default_rng(0)
    texts = [
        TokenDocument(str(i), "s", random.integers(0, 50, n).tolist(), 3 * n) for i, n in enumerate([2, 30, 7, 64])
    ]
    return TokenShards(tmp_path, [write_shard(tmp_path / "h.array_record", texts, np.dtype("<u2"))], "<u2")


def target_nats(params, batch):
    """A stand-in model whose nats for a token are its id: sums are known exactly."""
    return batch.targets_BT * batch.weights_BT * params


@pytest.mark.parametrize(("length", "overlap", "rows"), [(8, 0.5, 3), (100, 0.0, 2), (5, 0.8, 16)])
def test_nats_of_a_document_are_the_sum_over_its_tokens(shards, length, overlap, rows):
    nats = perplexity.evaluate(target_nats, 1.0, shards, length=length, overlap=overlap, rows=rows)
    expected = [ids[1:].sum(dtype=float) for ids in shards.read(np.arange(4))]
    np.testing.assert_allclose(nats, expected)


@pytest.mark.parametrize(("length", "overlap"), [(8, 0.5), (100, 0.0), (3, 0.4)])
def test_of_a_conversation_only_what_the_assistant_said_is_predicted(tmp_path, length, overlap):
    random, documents = np.random.default_rng(1), []
    for number in range(4):
        ids, trained = random.integers(0, 50, 30), random.random(30) < 0.4
        documents.append(TokenDocument(str(number), "s", ids.tolist(), 90, trained if number else None, 7))
    manifest = write_shard(tmp_path / "h.array_record", documents, np.dtype("<u2"))
    shards = TokenShards(tmp_path, [manifest], "<u2")
    nats = perplexity.evaluate(target_nats, 1.0, shards, length=length, overlap=overlap, rows=3)
    asked = [np.ones(29, bool) if found.trained is None else found.trained[1:] for found in documents]
    expected = [np.array(found.ids[1:])[which].sum(dtype=float) for found, which in zip(documents, asked)]
    np.testing.assert_allclose(nats, expected)
    assert shards.predicted_bytes.tolist() == [90, 7, 7, 7]


def test_a_quick_evaluation_reads_the_first_documents(shards):
    nats = perplexity.evaluate(target_nats, 1.0, shards, length=8, overlap=0.0, rows=4, max_bytes=50)
    assert len(nats) == 2


def test_bits_per_byte():
    assert perplexity.bits_per_byte(8 * math.log(2), 4) == pytest.approx(2.0)


def test_compressors_are_measured_on_the_same_bytes():
    texts = [b"the same words again and again. " * 20, bytes(range(256)) * 2]
    found = perplexity.compressors(texts)
    size = sum(map(len, texts))
    assert found["zlib -9"]["one_stream"] == 8 * len(zlib.compress(b"".join(texts), 9, wbits=-15)) / size
    assert found["xz -9e"]["each_document"] < 8
    # what is counted decodes to what went in
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    packed = lzma.compress(texts[0], lzma.FORMAT_RAW, filters=filters)
    assert lzma.decompress(packed, lzma.FORMAT_RAW, filters=filters) == texts[0]


def test_sources_add_up():
    rows = dict(perplexity.by_source(["a", "b", "a"], np.array([10, 20, 30]), np.array([1.0, 2.0, 3.0])))
    assert rows["a"] == {"documents": 2, "bytes": 40, "bits_per_byte": pytest.approx(4 / math.log(2) / 40)}
    assert rows["b"]["bytes"] == 20
