import os
import subprocess
import sys

import pytest

from core.errors import UserError
from core.files import Stage, allocate, atomic_write, fingerprint, read_stage, write_json


def test_atomic_write_leaves_the_old_file_when_the_block_fails(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})

    def fail_half_way():
        with atomic_write(path) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_text() == '{\n "x": 1\n}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_fingerprint_ignores_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def make(folder, spec, content="x", stale="refuse"):
    stage = Stage(folder, spec, stale=stale)
    if not stage.finished:
        path = stage.folder / "out"
        path.write_text(content)
        stage.finish([path], {"content": content})
    return stage


def test_a_finished_stage_is_skipped(tmp_path):
    make(tmp_path / "s", {"a": 1})
    stage = Stage(tmp_path / "s", {"a": 1})
    assert stage.finished
    assert stage.summary == {"content": "x"}


def test_a_stale_stage_is_refused_naming_the_difference(tmp_path):
    make(tmp_path / "s", {"data": {"shards": 4}})
    with pytest.raises(UserError, match=r"data\.shards was 4, is 8"):
        Stage(tmp_path / "s", {"data": {"shards": 8}})
    assert (tmp_path / "s" / "out").read_text() == "x"


def test_a_stale_stage_can_be_set_aside(tmp_path):
    make(tmp_path / "s", {"a": 1}, "old")
    make(tmp_path / "s", {"a": 2}, "new", stale="set_aside")
    assert (tmp_path / "s.stale-1" / "out").read_text() == "old"
    assert (tmp_path / "s" / "out").read_text() == "new"


def test_a_derived_stage_is_made_over(tmp_path):
    make(tmp_path / "s", {"a": 1}, "old")
    make(tmp_path / "s", {"a": 2}, "new", stale="replace")
    assert (tmp_path / "s" / "out").read_text() == "new"
    assert [path.name for path in tmp_path.glob("*stale*")] == []


def test_a_stage_that_made_nothing_yet_takes_another_spec(tmp_path):
    Stage(tmp_path / "s", {"a": 1})
    assert not Stage(tmp_path / "s", {"a": 2}).finished


def test_a_file_of_another_size_is_not_trusted(tmp_path):
    make(tmp_path / "s", {"a": 1})
    (tmp_path / "s" / "out").write_text("")
    assert not Stage(tmp_path / "s", {"a": 1}).finished


def test_an_unfinished_stage_is_named_with_its_verb(tmp_path):
    Stage(tmp_path / "tokens", {"a": 1})
    with pytest.raises(UserError, match=r"tokens is not finished; run `launch.py tokenize`"):
        read_stage(tmp_path / "tokens", "tokenize")


def test_a_damaged_manifest_is_named(tmp_path):
    make(tmp_path / "s", {"a": 1})
    (tmp_path / "s" / "manifest.json").write_text('{"spec": ')
    with pytest.raises(UserError, match=r"manifest.json is not readable JSON"):
        Stage(tmp_path / "s", {"a": 1})


def test_a_second_process_is_kept_out(tmp_path):
    stage = Stage(tmp_path / "s", {"a": 1})
    code = f"""
from pathlib import Path
from core.errors import UserError
from core.files import Stage
try:
    Stage(Path({str(stage.folder)!r}), {{"a": 1}})
except UserError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "is being made by process" in result.stdout


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system has no posix_fallocate")
def test_what_is_allocated_has_room_on_the_disk(tmp_path):
    """A sparse file would end whoever writes to its mapping by SIGBUS when the disk is full."""
    with (tmp_path / "table").open("wb") as file:
        allocate(file, 1 << 20)
    status = (tmp_path / "table").stat()
    assert status.st_size == 1 << 20
    assert status.st_blocks * 512 >= 1 << 20


def test_a_stage_whose_spec_has_lost_a_key_is_stale_too(tmp_path):
    stage = Stage(tmp_path / "s", {"a": 1, "files": {"list": "x"}})
    (tmp_path / "s" / "out").write_text("x")
    stage.finish([tmp_path / "s" / "out"], {})
    stage.lock.close()
    with pytest.raises(UserError, match=r"files was .*, is null"):
        Stage(tmp_path / "s", {"a": 1})
