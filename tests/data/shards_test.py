import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from data.shards import TokenDocument, TokenShards, index_path, token_dtype, write_shard


@pytest.fixture
def shard(tmp_path):
    documents = [TokenDocument(f"d{i}", "s", list(range(i, 2 * i + 2)), 10 * i) for i in range(50)]
    return tmp_path, write_shard(tmp_path / "train-0.array_record", documents, np.dtype("<u2"))


def test_documents_come_back_in_the_order_asked(shard):
    folder, manifest = shard
    shards = TokenShards(folder, [manifest, {**manifest, "documents": 0, "name": "none"}, manifest], "<u2")
    assert len(shards) == 100
    asked = np.array([99, 3, 50, 3])
    for document, ids in zip(asked % 50, shards.read(asked)):
        assert ids.tolist() == list(range(document, 2 * document + 2))
    assert shards.bytes[1] == 10
    assert shards.document_id(51) == "d1"
    assert shards.find("d49") == 49
    assert shards.find("none") is None
    assert shards.source(99) == "s"


def test_ids_take_two_bytes_up_to_65536():
    assert token_dtype(65_536) == np.dtype("<u2")
    assert token_dtype(65_537) == np.dtype("<u4")


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_truncated_shard_is_refused(shard, keep):
    folder, manifest = shard
    path = folder / manifest["name"]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"train-0.array_record has [\d,]+ bytes, its manifest says"):
        TokenShards(folder, [manifest], "<u2")


def test_a_missing_shard_or_index_is_named(shard):
    folder, manifest = shard
    index_path(folder / manifest["name"]).unlink()
    with pytest.raises(UserError, match=r"train-0.index.parquet cannot be read"):
        TokenShards(folder, [manifest], "<u2")


def test_a_manifest_that_disagrees_is_refused(shard):
    folder, manifest = shard
    with pytest.raises(UserError, match=r"holds 50 records, its index 50, its manifest says 49"):
        TokenShards(folder, [{**manifest, "documents": 49}], "<u2")


def test_shards_that_change_places_are_refused(tmp_path):
    """Two shards of one size hold the same number of documents; their contents tell."""
    made = []
    for number in range(2):
        documents = [TokenDocument(f"{number}/{i}", "s", [number, i, i + 1], 9) for i in range(20)]
        made.append(write_shard(tmp_path / f"train-{number}.array_record", documents, np.dtype("<u2")))
    first, second = (tmp_path / shard["name"] for shard in made)
    first.rename(tmp_path / "between")
    second.rename(first)
    (tmp_path / "between").rename(second)
    shards = TokenShards(tmp_path, made, "<u2")
    with pytest.raises(UserError, match=r"train-0.array_record: document 0/\d+ is damaged; tokenize again"):
        shards.read(np.arange(20))
    index_path(first).rename(tmp_path / "between")
    index_path(second).rename(index_path(first))
    (tmp_path / "between").rename(index_path(second))
    with pytest.raises(UserError, match=r"train-0.index.parquet is not the file its manifest names"):
        TokenShards(tmp_path, made, "<u2")


def test_generations_follow_one_another(shard):
    folder, manifest = shard
    shards = TokenShards(folder, [manifest, {**manifest, "generation": 1}, {**manifest, "generation": 1}], "<u2")
    assert shards.generation_starts.tolist() == [0, 50, 150]
    assert shards.hashes == [[manifest["hash"]], [manifest["hash"]] * 2]


MASKS = st.lists(st.one_of(st.none(), st.lists(st.booleans(), min_size=1, max_size=30)), min_size=1, max_size=12)


@given(MASKS)
@settings(max_examples=30, deadline=None)
def test_conversations_come_back_with_what_is_trained_on(tmp_path_factory, masks):
    folder = tmp_path_factory.mktemp("shards")
    documents = [
        TokenDocument(f"d{i}", "s", list(range(i, i + len(mask or "four"))), 9, *given_mask(mask))
        for i, mask in enumerate(masks)
    ]
    manifest = write_shard(folder / "train-0.array_record", documents, np.dtype("<u4"))
    shards = TokenShards(folder, [manifest], "<u4")
    asked = np.arange(len(masks))
    for document, mask, tokens, alone in zip(documents, masks, shards.read_tokens(asked), shards.read(asked)):
        assert tokens.ids.tolist() == alone.tolist() == document.ids
        assert tokens.trained is None if mask is None else tokens.trained.tolist() == mask
    assert shards.masked.tolist() == [mask is not None for mask in masks]
    assert shards.predicted.tolist() == [3 if mask is None else sum(mask[1:]) for mask in masks]
    assert shards.predicted_bytes.tolist() == [9 if mask is None else 5 for mask in masks]


def test_the_licence_of_a_document_stays_with_its_tokens(tmp_path):
    licenses = ["CC-BY-4.0", "", "MIT", "MIT"]
    documents = [TokenDocument(f"d{i}", "s", [1, 2], 9, license=one) for i, one in enumerate(licenses)]
    manifest = write_shard(tmp_path / "train-0.array_record", documents, np.dtype("<u2"))
    shards = TokenShards(tmp_path, [manifest], "<u2")
    assert [shards.license(number) for number in range(4)] == licenses


def given_mask(mask):
    return () if mask is None else (np.array(mask), 5)


def test_a_shard_without_conversations_is_as_it_always_was(shard):
    """Recorded before there were conversations: runs that are under way find their shards unchanged."""
    _, manifest = shard
    assert manifest["hash"] == "fab10f0378eac4d5005c74c4cc74162d"
    assert pq.read_schema(index_path(shard[0] / manifest["name"])).names == [
        "id",
        "source",
        "license",
        "tokens",
        "bytes",
        "crc32",
    ]


def test_a_flipped_bit_of_a_mask_is_noticed(tmp_path):
    document = TokenDocument("talk", "s", [1, 2, 3], 9, np.array([False, True, True]), 5)
    path = tmp_path / "train-0.array_record"
    manifest = write_shard(path, [document], np.dtype("<u2"))
    content = path.read_bytes()
    record = document.record(np.dtype("<u2"))
    at = content.index(record) + len(record) - 1
    path.write_bytes(content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :])
    with pytest.raises(UserError, match=r"train-0.array_record( is damaged|: document talk is damaged)"):
        TokenShards(tmp_path, [manifest], "<u2").read(np.arange(1))
