"""Files that are whole or absent: atomic writes, content hashes, and the manifest of a stage's folder."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

from core.errors import UserError
from core.progress import say

MANIFEST = "manifest.json"

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what the system says where there is no room

Stale = Literal["refuse", "set_aside", "replace"]


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO]:
    """Opens a file beside `path` that takes its name only when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")  # one name: what a killed process left is overwritten
    try:
        with part.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL and error.filename is None:
            error.filename = str(path)  # the system names none where a file that is open cannot grow
        raise


def allocate(file: IO[bytes], size: int) -> None:
    """Makes an empty file so long, of zeros, with room on the disk: a full one is then told here.

    A write to a mapped file for which there is no room would end the process by SIGBUS.
    """
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


def write_json(path: Path, value: Any) -> None:
    """Writes readable JSON, whole or not at all."""
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=1, sort_keys=True, ensure_ascii=False)
        file.write("\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file; a missing or damaged one is the user's to know of."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); restore it, or use another --workdir") from None


def fingerprint(value: Any) -> str:
    """A short hash of anything JSON can say; equal values give equal hashes in any process."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def hash_file(path: Path) -> str:
    """blake2b of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


class Stage:
    """A folder of the workdir, made by one verb, with a manifest that says from what.

    `spec` holds all that decides the result: the config subtree, the fingerprints of the inputs, the version of
    the code. A folder with the same spec is continued or, once finished and unharmed, skipped. What a folder with
    another spec holds is never reused: `stale` says whether it is refused, set aside under another name, or, for
    what is quickly derived from other stages, made over.
    """

    def __init__(self, folder: Path, spec: Mapping[str, Any], *, stale: Stale = "refuse"):
        self.folder, self.spec = folder, json.loads(json.dumps(spec))
        self.lock = _lock(folder)
        path = folder / MANIFEST
        self.manifest = read_manifest(path) if path.exists() and not _only_manifest(folder) else None
        if self.manifest is not None and self.manifest.get("spec") != self.spec:
            if stale == "refuse":
                # Also where only the old one has a key.
                require_spec(folder, self.manifest, dict.fromkeys(self.manifest["spec"]) | self.spec)
            if stale == "set_aside":
                difference = first_difference(self.manifest.get("spec"), self.spec)
                say(f"{folder} is stale ({difference}); set aside as {set_aside(folder)}")
            self.manifest = None
        if self.manifest is None:
            write_json(path, {"spec": self.spec, "complete": False})

    @property
    def finished(self) -> bool:
        """True when the stage completed and its files still have the sizes it recorded."""
        if self.manifest is None or not self.manifest["complete"]:
            return False
        if (damage := damaged(self.folder, self.manifest)) is not None:
            say(f"{damage}; {self.folder.name} is made again")
            return False
        return True

    def start_over(self, reason: str) -> None:
        """Sets aside what the folder holds; the stage begins anew in an empty one."""
        say(f"{self.folder} is stale ({reason}); set aside as {set_aside(self.folder)}")
        self.manifest = None
        write_json(self.folder / MANIFEST, {"spec": self.spec, "complete": False})

    def reopen(self) -> None:
        """Takes back that the stage is complete, before more is added to it."""
        if self.manifest is not None and self.manifest["complete"]:
            self.manifest = None
            write_json(self.folder / MANIFEST, {"spec": self.spec, "complete": False})

    @property
    def summary(self) -> dict[str, Any]:
        """What the finished stage said of itself."""
        return self.manifest["summary"]

    def finish(self, files: list[Path], summary: Mapping[str, Any]) -> dict[str, Any]:
        """Commits the stage: its files with their sizes, and a summary for reports."""
        self.manifest = {
            "spec": self.spec,
            "complete": True,
            "files": {str(path.relative_to(self.folder)): path.stat().st_size for path in files},
            "summary": json.loads(json.dumps(summary)),
        }
        self.manifest["fingerprint"] = fingerprint(self.manifest)
        write_json(self.folder / MANIFEST, self.manifest)
        return self.manifest["summary"]


def read_manifest(path: Path) -> dict[str, Any]:
    """A stage's manifest; one whose content is not what was written is refused."""
    manifest = read_json(path)
    own = {key: value for key, value in manifest.items() if key != "fingerprint"} if type(manifest) is dict else {}
    whole = {"spec", "complete"} <= own.keys() and own["complete"] in (True, False)
    if not whole or (own["complete"] and manifest.get("fingerprint") != fingerprint(own)):
        raise UserError(f"{path} is damaged; restore it, or use another --workdir")
    return manifest


def is_gone(source: str, folder: Path) -> bool:
    """Whether the very path that a finished stage copied from, as its summary's `source` says, is no longer there."""
    path, manifest = Path(source).expanduser(), folder / MANIFEST
    if path.exists() or not manifest.exists():
        return False
    found = read_manifest(manifest)
    return found["complete"] and found["summary"].get("source") == str(path.resolve())


def read_stage(folder: Path, verb: str) -> dict[str, Any]:
    """The manifest of a finished stage; `verb` is what makes it."""
    path = folder / MANIFEST
    manifest = read_manifest(path) if path.exists() else {"complete": False}
    if not manifest["complete"]:
        raise UserError(f"{folder} is not finished; run `launch.py {verb}` (same --config and --workdir) first")
    if (damage := damaged(folder, manifest)) is not None:
        raise UserError(f"{damage}; run `launch.py {verb}` (same --config and --workdir) to make it again")
    return manifest


def damaged(folder: Path, manifest: Mapping[str, Any]) -> str | None:
    """The first file of a finished stage that is not as its manifest says; None when all are."""
    for name, size in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{path} is missing or not {size:,} bytes"
    return None


def _lock(folder: Path) -> IO:
    """Holds a stage for this process, while the returned file is open; a second process is told so."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f".{folder.name}.lock"
    file = path.open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        file.seek(0)
        raise UserError(f"{folder} is being made by process {file.read() or '?'}; wait, or use another") from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def _only_manifest(folder: Path) -> bool:
    return not any(path.is_file() and path.name != MANIFEST for path in folder.rglob("*"))


AGAIN = "use another --workdir, or --rebuild to set it aside and make it anew"


def require_spec(folder: Path, manifest: Mapping[str, Any], spec: Mapping[str, Any], remedy: str = AGAIN) -> None:
    """Refuses a folder whose manifest has another spec, in the keys given, naming the first difference."""
    spec = json.loads(json.dumps(spec))
    made_from = {key: value for key, value in manifest["spec"].items() if key in spec}
    if made_from != spec:
        raise UserError(f"{folder} was made from something else ({first_difference(made_from, spec)}); {remedy}")


def set_aside(folder: Path) -> Path:
    """Renames a folder to the first free `<name>.stale-<n>`; nothing is deleted."""
    number = 1
    while (target := folder.with_name(f"{folder.name}.stale-{number}")).exists():
        number += 1
    return folder.rename(target)


def first_difference(old: Any, new: Any, path: str = "") -> str:
    """Names the first place where two specs differ: `data.shards was 4, is 8`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                return first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return next(first_difference(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(old, new)) if a != b)
    if isinstance(old, list) and isinstance(new, list):
        only = [item for item in old + new if (item in old) != (item in new)]
        return f"{path} had {len(old):,} entries, has {len(new):,}, first other {_short(only[0] if only else None)}"
    return f"{path or 'manifest'} was {_short(old)}, is {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
