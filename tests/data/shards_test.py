import numpy as np
import pytest

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
