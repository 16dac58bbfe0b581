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
    assert shards.document_ids[51] == "d1"


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
