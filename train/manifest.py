"""What a checkpoint says of itself: its files and arrays, under a hash, so that damage is known by name."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from core.errors import UserError
from core.files import FULL, MANIFEST, fingerprint, hash_file
from optim.groups import path_name

FORMAT = 1
HASHED_BELOW = 1 << 20  # bytes; in larger files of arrays the fingerprints find what changed, without a second read
READ_LIMIT = 1 << 26  # bytes; no manifest or record is near this
PASSING = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
LOST = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO)


class DamagedCheckpoint(UserError):
    """A checkpoint that is not as it was written."""

    def __init__(self, folder: Path, reason: str):
        super().__init__(f"checkpoint {folder} is damaged ({reason})")


def describe(state: Any) -> dict[str, dict[str, Any]]:
    """Shape and dtype of every array, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {path_name(path): {"dtype": str(leaf.dtype), "shape": list(leaf.shape)} for path, leaf in leaves}


def require_same(folder: Path, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Another architecture is not damage: it is refused, naming the first array that differs."""

    def show(array: Mapping[str, Any] | None) -> str:
        return "no such array" if array is None else f"{array['dtype']}{array['shape']}"

    for name in sorted(saved.keys() | asked.keys()):
        was, wanted = show(saved.get(name)), show(asked.get(name))
        if was != wanted:
            raise UserError(
                f"checkpoint {folder} is of another model: {name} is {was} there and {wanted} by this config; "
                "use the config it was made with, or another --workdir"
            )


def seal(body: Mapping[str, Any]) -> bytes:
    """The one way of writing a manifest with its hash; any other byte gives it away."""
    return (json.dumps({**body, "hash": fingerprint(body)}, indent=1, sort_keys=True) + "\n").encode()


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `seal` wrote into a checkpoint."""
    data = read(folder, MANIFEST)
    try:
        body = {key: value for key, value in json.loads(data).items() if key != "hash"}
        unharmed = seal(body) == data
    except (ValueError, AttributeError, RecursionError):
        unharmed = False
    if not unharmed or body["step"] != int(folder.name):
        raise DamagedCheckpoint(folder, f"{MANIFEST} is not as it was written")
    if body["format"] != FORMAT:
        raise UserError(f"checkpoint {folder} has format {body['format']}, this version reads {FORMAT}")
    return body


def read(folder: Path, name: str) -> bytes:
    """A small file, whole."""
    with _told_as_damage(folder, name):
        if (size := (folder / name).stat().st_size) > READ_LIMIT:
            raise DamagedCheckpoint(folder, f"{name} has {size:,} bytes")
        return (folder / name).read_bytes()


def check_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Every file is there, with its size and, where it is recorded, its hash."""
    for name, saved in files.items():
        with _told_as_damage(folder, name):
            if (size := (folder / name).stat().st_size) != saved["size"]:
                raise DamagedCheckpoint(folder, f"{name} has {size:,} bytes instead of {saved['size']:,}")
    for name, saved in files.items():
        with _told_as_damage(folder, name):
            if "hash" in saved and hash_file(folder / name) != saved["hash"]:
                raise DamagedCheckpoint(folder, f"the bytes of {name} are not what was saved")


@contextlib.contextmanager
def _told_as_damage(folder: Path, name: str) -> Iterator[None]:
    """A file that is missing or that the disk cannot read; what may pass, such as a refused permission, is not."""
    try:
        yield
    except OSError as error:
        if error.errno not in LOST:
            raise
        raise DamagedCheckpoint(folder, f"{name}: {error.strerror}") from error


def files_of(folder: Path) -> Iterator[Path]:
    """All files below a folder, in order."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def measure(path: Path) -> dict[str, Any]:
    """Size, and the hash of all but large files of arrays."""
    size = path.stat().st_size
    large = path.parent.name == "d" and size >= HASHED_BELOW
    return {"size": size} if large else {"size": size, "hash": hash_file(path)}


def sync(folder: Path) -> None:
    """Has the disk hold everything below a folder; Orbax syncs the arrays only."""
    for path in [*folder.rglob("*"), folder]:
        sync_one(path)


def sync_one(path: Path) -> None:
    """The same for one file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_full(error: BaseException | None) -> bool:
    """Whether the disk or the quota is used up."""
    return _says(error, FULL)


def may_pass(error: BaseException | None) -> bool:
    """Whether a read failed for want of permission, memory or descriptors, which is no damage."""
    return _says(error, PASSING)


def _says(error: BaseException | None, numbers: tuple[int, ...]) -> bool:
    """Whether an error or its cause has one of these numbers, or their words, as TensorStore gives them."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in numbers:
            return True
        if any(os.strerror(number) in str(error) for number in numbers):
            return True
        error = error.__cause__ or error.__context__
    return False
