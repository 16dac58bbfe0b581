import errno
import gc
import os
import resource
import sys

import pyarrow.parquet as pq
import pytest

from data.document import ROW_GROUP, Document, DocumentWriter, read_documents


@pytest.fixture
def ignored(monkeypatch):
    """What Python would print as "Exception ignored in"."""
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    return seen


@pytest.fixture
def full_disk():
    """No file can grow beyond 64 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_written_is_read(tmp_path):
    documents = [Document(str(number), "text", "s", meta={"n": number}) for number in range(ROW_GROUP + 1)]
    with DocumentWriter(tmp_path / "a.parquet") as writer:
        for document in documents:
            writer.add(document)
    assert list(read_documents(tmp_path / "a.parquet")) == documents


@pytest.mark.parametrize("count", [1, ROW_GROUP])  # it fails at the end, or while documents are added
@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_nothing(tmp_path, ignored, count):
    def write():
        with DocumentWriter(tmp_path / "a.parquet") as writer:
            for number in range(count):
                writer.add(Document(str(number), os.urandom(1 << 20 if count == 1 else 1 << 12).hex(), "s"))

    with pytest.raises(OSError, match="File too large") as failure:
        write()
    assert failure.value.errno == errno.EFBIG
    del failure
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    assert ignored == []


def test_a_failure_of_the_caller_leaves_nothing(tmp_path, ignored):
    def write():
        with DocumentWriter(tmp_path / "a.parquet") as writer:
            writer.add(Document("1", "text", "s"))
            raise KeyError

    with pytest.raises(KeyError):
        write()
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    assert ignored == []


def test_long_documents_end_a_row_group_early(tmp_path):
    """A reader holds one; 64 of them are open in the merge."""
    with DocumentWriter(tmp_path / "long.parquet") as writer:
        for number in range(6):
            writer.add(Document(str(number), "x" * 600_000, "text"))
    assert pq.ParquetFile(tmp_path / "long.parquet").num_row_groups == 3
    assert [one.id for one in read_documents(tmp_path / "long.parquet")] == list("012345")
