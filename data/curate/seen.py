"""Texts that were there before: a set of digests in a file, so that memory does not grow with their number."""

import hashlib
import mmap
from pathlib import Path

from core.files import allocate

SIZE = 16  # bytes of a digest: two of 10^12 texts share one with a probability of 10^-15


class Seen:
    """Digests in a table with open addressing, at most half full, mapped into memory. The file has no name."""

    def __init__(self, path: Path, most: int):
        self.path, self.slots = path, 1 << (2 * max(most, 64)).bit_length()
        path.parent.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Seen":
        with self.path.open("w+b") as file:
            self.path.unlink()
            allocate(file, self.slots * SIZE)
            self.table = mmap.mmap(file.fileno(), 0)
        return self

    def __exit__(self, *failure: object) -> None:
        self.table.close()

    def add(self, text: str) -> bool:
        """Whether the text was not there before."""
        digest = hashlib.blake2b(text.encode(), digest_size=SIZE).digest()
        slot = int.from_bytes(digest[:8], "little") % self.slots
        while (found := self.table[slot * SIZE : slot * SIZE + SIZE]) != digest:
            if not any(found):
                self.table[slot * SIZE : slot * SIZE + SIZE] = digest
                return True
            slot = (slot + 1) % self.slots
        return False
