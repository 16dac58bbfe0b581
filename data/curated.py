"""A curated corpus as it leaves the room: its splits, cut into pieces of about one size, and their rows."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import UserError

SPLITS = ("train", "heldout")
PIECE_BYTES = 128 << 20  # of columns before compression; one is in memory while TFDS writes it


class Piece(NamedTuple):
    """Row groups of one shard or several, in order."""

    groups: list[tuple[Path, int]]
    documents: int

    def tables(self) -> Iterator[pa.Table]:
        """Rows with the columns of `data.document.SCHEMA`, a row group at a time."""
        reader: tuple[Path | None, pq.ParquetFile | None] = (None, None)
        for path, group in self.groups:
            try:
                if path != reader[0]:
                    reader = (path, pq.ParquetFile(path))
                yield reader[1].read_row_group(group, use_threads=False)
            except (pa.ArrowException, OSError) as error:
                raise UserError(_damaged(path, error)) from error


def pieces(folders: Iterable[Path]) -> dict[str, list[Piece]]:
    """Of each split that has documents, those of all folders: what was curated at first, then what was added."""
    folders = list(folders)
    found = {split: list(_cut(path for folder in folders for path in sorted(folder.glob(f"{split}-*.parquet"))))
             for split in SPLITS}  # fmt: skip
    return {split: own for split, own in found.items() if own}


def _cut(paths: Iterable[Path]) -> Iterator[Piece]:
    groups, documents, size = [], 0, 0
    for path in paths:
        try:
            described = pq.read_metadata(path)
        except (pa.ArrowException, OSError) as error:
            raise UserError(_damaged(path, error)) from error
        for number in range(described.num_row_groups):
            group = described.row_group(number)
            if groups and size + group.total_byte_size > PIECE_BYTES:
                yield Piece(groups, documents)
                groups, documents, size = [], 0, 0
            groups.append((path, number))
            documents += group.num_rows
            size += group.total_byte_size
    if groups:
        yield Piece(groups, documents)


def _damaged(path: Path, error: Exception) -> str:
    return f"{path} cannot be read ({str(error).splitlines()[0]}); curate again"
