"""Errors a user can cause: one line that names the thing and the remedy, exit code 2."""

import errno
import os


class UserError(Exception):
    """Something the user can mend. `launch.py` prints it as one line and exits with 2."""


_DISK = {
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.EISDIR: "a folder stands where a file is expected",
    errno.ENOTDIR: "a file stands where a folder is expected",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOENT: "there is no such file or folder",
}


def explain_os_error(error: OSError) -> str | None:
    """One line for a full disk, a read-only folder and their kind; None where it is not the user's to mend."""
    reason = _DISK.get(error.errno) if error.errno is not None else None
    if reason is None:
        return None
    name = error.filename if error.filename is not None else "the workdir"
    return f"{os.fsdecode(name)}: {reason}"
