"""Checkpoints: whole or not there, verified on reading, and never fewer than a fault leaves."""

import errno
import json
import os
import resource
import shutil
import subprocess
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from train import checkpoint
from train.checkpoint import Checkpoints
from train.manifest import DamagedCheckpoint, seal
from train.state import TrainState


class Moments(NamedTuple):
    mu: dict
    count: jax.Array


def make_state(seed=0, width=8):
    values = np.random.default_rng(seed)
    params = {"layers": {"query": jnp.asarray(values.normal(size=(4, width)), jnp.bfloat16)}}
    moments = Moments({"w": jnp.asarray(values.normal(size=(width,)), jnp.float32)}, jnp.int32(seed))
    return TrainState(jnp.int32(seed), params, (moments, ()))


ABSTRACT = jax.eval_shape(make_state)
SHARDINGS = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), ABSTRACT)


def same(state, expected):
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def save(folder, steps, **options):
    writer = Checkpoints(folder, **{"keep_last": 100, **options})
    for step in steps:
        writer.save(make_state(step), step, {"at": step})
    writer.close()
    return writer


def newest(folder, at_most=None, **options):
    return Checkpoints(folder, **options).restore_newest(ABSTRACT, SHARDINGS, at_most)


def damage(folder, step):
    """Flips one bit of the largest file, which holds an array."""
    path = max((folder / str(step) / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def listing(folder):
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_what_is_saved_is_restored(tmp_path):
    save(tmp_path, [3, 5])
    reader = Checkpoints(tmp_path)
    assert reader.steps == [3, 5]
    assert reader.latest == 5
    same(reader.restore(ABSTRACT, SHARDINGS, 3), make_state(3))
    assert reader.record(3) == {"at": 3}
    found = reader.restore_newest(ABSTRACT, SHARDINGS)
    assert (found.step, found.record) == (5, {"at": 5})
    same(found.state, make_state(5))
    assert newest(tmp_path, at_most=4).step == 3
    assert newest(tmp_path, at_most=2) is None
    assert {path.name for path in (tmp_path / "5").iterdir()} == {"state", "record.json", "manifest.json"}


def test_an_empty_or_missing_folder_has_no_checkpoint(tmp_path):
    assert newest(tmp_path / "nothing") is None
    assert not (tmp_path / "nothing").exists()
    assert newest(tmp_path, keep_last=1) is None


def test_arrays_may_be_donated_while_they_are_saved(tmp_path):
    step = jax.jit(lambda state: jax.tree.map(lambda array: array + 1, state), donate_argnums=0)
    writer, state = Checkpoints(tmp_path, keep_last=9), make_state(0)
    expected = []
    for number in range(6):
        expected.append(jax.tree.map(np.array, state))
        writer.save(state, number, {})
        state = step(state)
    writer.close()
    for number in range(6):
        same(Checkpoints(tmp_path).restore(ABSTRACT, SHARDINGS, number), expected[number])


def test_the_newest_and_the_multiples_are_kept(tmp_path):
    save(tmp_path, range(1, 10), keep_last=2, keep_every=4)
    assert Checkpoints(tmp_path).steps == [4, 8, 9]
    assert {path.name for path in tmp_path.iterdir()} == {"4", "8", "9"}


def test_a_kill_leaves_nothing_that_looks_whole(tmp_path):
    """At every instant of a save and of the deletion after it, what is listed can be restored."""
    save(tmp_path, [1, 2])
    killed = {}

    def snapshot(name, function):
        def wrapped(*arguments, **options):
            killed[len(killed), name] = folder = tmp_path.with_name(f"{tmp_path.name}-{len(killed)}")
            shutil.copytree(tmp_path, folder)
            return function(*arguments, **options)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for name in ("seal", "sync", "sync_one", "measure"):
            patch.setattr(checkpoint, name, snapshot(name, getattr(checkpoint, name)))
        patch.setattr(checkpoint.shutil, "rmtree", snapshot("rmtree", shutil.rmtree))
        writer = Checkpoints(tmp_path, keep_last=2)
        writer.save(make_state(3), 3, {"at": 3})
        writer.close()
    assert {name for _, name in killed} == {"seal", "sync", "sync_one", "measure", "rmtree"}
    for (_, name), folder in killed.items():
        for step in Checkpoints(folder).steps:
            same(Checkpoints(folder).restore(ABSTRACT, SHARDINGS, step), make_state(step))
        found = newest(folder, keep_last=2)
        assert found.step == (3 if name in ("sync_one", "rmtree") else 2)
        assert all(path.name.isdigit() for path in folder.iterdir())  # the next writer removed the leftovers


def test_a_damaged_newest_one_is_set_aside_and_the_older_one_used(tmp_path, capsys):
    save(tmp_path, [1, 2, 3])
    damage(tmp_path, 3)
    (tmp_path / "2" / "manifest.json").unlink()
    with pytest.raises(DamagedCheckpoint, match=r"3 is damaged \(the bytes of state/.* are not what was saved\)$"):
        Checkpoints(tmp_path).restore(ABSTRACT, SHARDINGS, 3)
    found = newest(tmp_path, keep_last=9)
    assert (found.step, found.record) == (1, {"at": 1})
    same(found.state, make_state(1))
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2.damaged-1", "3.damaged-1"}
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert told[0].endswith("; set aside as 3.damaged-1; using step 1")
    assert "manifest.json: No such file" in told[1]


def test_a_reader_changes_nothing(tmp_path, capsys):
    save(tmp_path, [1, 2])
    damage(tmp_path, 2)
    (tmp_path / ".9.part").mkdir()
    (tmp_path / ".0.deleted").mkdir()
    before = listing(tmp_path)
    assert newest(tmp_path).step == 1
    assert listing(tmp_path) == before
    assert "using step 1" in capsys.readouterr().err


def test_when_all_are_damaged_nothing_is_touched(tmp_path):
    save(tmp_path, [1, 2])
    damage(tmp_path, 1)
    damage(tmp_path, 2)
    before = listing(tmp_path)
    for _ in range(2):  # the same command says the same again
        with pytest.raises(UserError, match=r"2 is damaged .*every one of 2 in .*nothing was deleted"):
            newest(tmp_path, keep_last=1)
    assert listing(tmp_path) == before


def test_one_removed_by_the_writer_while_it_is_read_is_not_damage(tmp_path, monkeypatch, capsys):
    save(tmp_path, [1])
    verify = checkpoint.check_files

    def remove_first(folder, files):
        if folder.name == "1":
            save(tmp_path, [2], keep_last=1)
        return verify(folder, files)

    monkeypatch.setattr(checkpoint, "check_files", remove_first)
    assert newest(tmp_path).step == 2
    assert capsys.readouterr().err == ""


def test_another_architecture_is_not_damage(tmp_path):
    save(tmp_path, [1])
    before = listing(tmp_path)
    wider = jax.eval_shape(lambda: make_state(width=16))
    with pytest.raises(UserError, match=r"opt_state/0/mu/w is float32\[8\] there and float32\[16\] by") as refusal:
        Checkpoints(tmp_path, keep_last=1).restore_newest(wider, SHARDINGS)
    assert not isinstance(refusal.value, DamagedCheckpoint)
    fewer = ABSTRACT._replace(params={})
    with pytest.raises(UserError, match=r"params/layers/query is bfloat16\[4, 8\] there and no such array by"):
        Checkpoints(tmp_path, keep_last=1).restore_newest(fewer, SHARDINGS._replace(params={}))
    assert listing(tmp_path) == before


def test_another_format_is_not_damage(tmp_path):
    save(tmp_path, [1])
    path = tmp_path / "1" / "manifest.json"
    body = json.loads(path.read_text())
    del body["hash"]
    path.write_bytes(seal({**body, "format": 99}))
    with pytest.raises(UserError, match="has format 99, this version reads 1"):
        newest(tmp_path, keep_last=1)
    assert (tmp_path / "1").is_dir()


def test_a_changed_record_is_noticed(tmp_path):
    save(tmp_path, [1])
    path = tmp_path / "1" / "record.json"
    path.write_text(path.read_text().replace("1", "2"))
    with pytest.raises(DamagedCheckpoint, match=r"the bytes of record\.json are not what was saved"):
        Checkpoints(tmp_path).record(1)
    assert json.loads(path.read_text()) == {"at": 2}


def test_an_array_that_reads_well_and_differs_is_named(tmp_path):
    """Only the fingerprint can tell: the files are those of another, whole checkpoint."""
    save(tmp_path, [1, 2])
    shutil.rmtree(tmp_path / "1" / "state")
    shutil.copytree(tmp_path / "2" / "state", tmp_path / "1" / "state")
    path = tmp_path / "1" / "manifest.json"
    body = json.loads(path.read_text())
    body["files"] = {name: size for name, size in body["files"].items() if not name.startswith("state")}
    del body["hash"]
    path.write_bytes(seal(body))
    with pytest.raises(DamagedCheckpoint, match=r"\(array step is not what was saved\)"):
        Checkpoints(tmp_path).restore(ABSTRACT, SHARDINGS, 1)


def test_going_back_leaves_the_later_ones_aside(tmp_path, capsys):
    writer = save(tmp_path, [1, 2, 3, 10])
    Checkpoints(tmp_path, keep_last=9).set_aside_after(2)
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2", "3.rolled-back-1", "10.rolled-back-1"}
    assert "10 is set aside as 10.rolled-back-1" in capsys.readouterr().err
    writer = Checkpoints(tmp_path, keep_last=9)
    writer.save(make_state(3), 3, {})
    writer.set_aside_after(2)  # waits for it first
    assert writer.steps == [1, 2]
    assert (tmp_path / "3.rolled-back-2").is_dir()
    writer.close()


@pytest.fixture(params=["by the numbers", "at once", "later", "in the middle"])
def full_disk(request, tmp_path, monkeypatch):
    """A folder, and two functions that fill and empty its disk: noticed before a save, or by Orbax's own writes."""
    roomy = shutil.disk_usage(tmp_path)._replace(free=1 << 40)
    if request.param == "by the numbers":
        usage = lambda free: monkeypatch.setattr(shutil, "disk_usage", lambda _: roomy._replace(free=free))  # noqa: E731
        yield tmp_path, lambda: usage(50), lambda: usage(1 << 40)
    if request.param in ("at once", "later"):  # the first files fit, or none
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        limit = lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))  # noqa: E731
        yield tmp_path, lambda: limit(64 if request.param == "at once" else 300), lambda: limit(before[0])
        limit(before[0])
    if request.param == "in the middle":
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small file system is not permitted here")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: roomy)
        ballast = tmp_path / "ballast"
        yield tmp_path / "run", lambda: fill(ballast), lambda: ballast.unlink(missing_ok=True)
        subprocess.run(["umount", str(tmp_path)], check=True)


def fill(path):
    """Takes what is left of a disk but a few kilobytes, so that some files fit."""
    disk = os.statvfs(path.parent)
    path.write_bytes(bytes(disk.f_bavail * disk.f_frsize - (1 << 14)))


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(full_disk, capsys):
    folder, fill_disk, empty_disk = full_disk
    writer = Checkpoints(folder, keep_last=2)
    writer.save(make_state(1), 1, {"at": 1})
    writer.save(make_state(2), 2, {"at": 2})
    writer.wait()
    fill_disk()
    try:
        for step in (3, 4):
            writer.save(make_state(step), step, {"at": step})
            writer.wait()
    finally:
        empty_disk()  # a limit on file sizes holds for the report of a failure too
    assert writer.steps == [1, 2]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert all("no space is left on the disk for the checkpoint of step" in line for line in told)
    writer.save(make_state(5), 5, {"at": 5})
    writer.close()
    assert {path.name for path in folder.iterdir()} == {"2", "5"}
    found = newest(folder)
    same(found.state, make_state(5))


@pytest.mark.usefixtures("capsys")  # else the warning goes to a file, of limited size as well
def test_a_last_checkpoint_that_did_not_fit_is_an_error(full_disk):
    folder, fill_disk, empty_disk = full_disk
    writer = Checkpoints(folder, keep_last=2)
    writer.save(make_state(1), 1, {"at": 1})
    writer.wait()
    fill_disk()
    writer.save(make_state(2), 2, {"at": 2})
    with pytest.raises(UserError, match=r"of step 2; make room, the same command continues from step 1"):
        writer.close()
    empty_disk()
    assert newest(folder).step == 1


def test_other_errors_of_the_background_are_raised(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.EROFS, "Read-only file system", "/somewhere")

    writer = Checkpoints(tmp_path, keep_last=2)
    monkeypatch.setattr(checkpoint, "sync", refuse)
    writer.save(make_state(1), 1, {})
    with pytest.raises(OSError, match="Read-only"):
        writer.save(make_state(2), 2, {})
    monkeypatch.undo()
    writer.save(make_state(3), 3, {})
    writer.close()
    assert {path.name for path in tmp_path.iterdir()} == {"3"}
