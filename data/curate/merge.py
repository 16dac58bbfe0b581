"""The second half of curation: all documents in hash order of their id, without duplicates, split into shards."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import UserError
from core.files import atomic_write
from core.progress import say, track
from data.config import DataConfig
from data.curate.clusters import duplicates
from data.curate.minhash import MinHash
from data.curate.plain import ExactDuplicates
from data.curate.recipe import build_recipe, find
from data.curate.runs import merged
from data.curate.seen import Seen
from data.curate.tally import Tally
from data.document import Document, DocumentWriter, id_hash, read_documents

NEAR_ROWS = 1 << 14  # near-duplicates written and read together


class Merge(NamedTuple):
    """What is merged: the sorted runs of all partitions, and what is known of duplicates."""

    config: DataConfig
    runs: list[Path]
    known: list[Path]  # shards of earlier generations, whose texts are not taken again
    near: Path | None  # the near-duplicates, in order
    later: bool  # a generation after the first, of which none need be held out
    scratch: Path  # a folder for what is forgotten afterwards


def find_near_duplicates(
    config: DataConfig, step: MinHash, signatures: list[Path], known: list[Path], where: Path
) -> Path:
    """Writes which documents are dropped for others that are nearly the same, in the order of the merge."""
    path, found = where / "near_duplicates.parquet", 0
    schema = pa.schema([("id", pa.string()), ("kept", pa.string())])
    runner = {"on": "ray", "address": config.cluster} if config.cluster else {}
    members = duplicates(signatures, known, where, step.keep, **runner)
    with atomic_write(path) as file, pq.ParquetWriter(file, schema) as writer:
        while rows := list(itertools.islice(members, NEAR_ROWS)):
            found += len(rows)
            writer.write_table(pa.table([[one.id for one in rows], [one.kept for one in rows]], schema=schema))
    say(f"curate: {found:,} near-duplicates")
    return path


def write_splits(merge: Merge, where: Path, tally: Tally) -> list[Path]:
    """Held out by hash of id, the rest into shards by ranges of the order hash. Returns the paths."""
    config = merge.config
    heldout = where / "heldout-00000.parquet"
    shards = [where / f"train-{index:05d}.parquet" for index in range(config.shards)]
    bound = _heldout_bound(merge)
    with contextlib.ExitStack() as stack:
        writers = {path: stack.enter_context(DocumentWriter(path)) for path in [heldout, *shards]}
        for document in track(_kept(merge, tally.drop), "merge", tally.merging):
            if id_hash(document.id, "heldout") < bound:
                split, path = "heldout", heldout
            else:
                split, path = "train", shards[id_hash(document.id, "order") * config.shards >> 64]
            writers[path].add(document)
            tally.keep(document, split)
        needed = ("train",) if merge.later else ("train", "heldout")
        if not all(tally.splits[split]["documents"] for split in needed):
            raise UserError(_nothing_left(merge, tally))
    return [heldout, *shards]


def _kept(merge: Merge, drop: Callable[..., None]) -> Iterator[Document]:
    """All documents in hash order of their id, a row group of each run in memory.

    Drops all but the first of repeated ids, whatever becomes of that; near-duplicates; and, where the recipe says so,
    repeated texts, also of those in the `known` shards. `drop` is `Tally.drop`.
    """
    near, last_id = _Near(merge.near), None
    with _seen(merge) as is_new:
        for document in merged(merge.runs):
            if document.id == last_id:
                drop(document, "ids", "duplicate_id")
                continue
            last_id = document.id
            if (kept := near.kept_for(document.id)) is not None:
                drop(document, "minhash", "near_duplicate", kept=kept)
            elif not is_new(document.text):
                drop(document, "exact_duplicates", "exact_duplicate", kept="")
            else:
                yield document


@contextlib.contextmanager
def _seen(merge: Merge) -> Iterator[Callable[[str], bool]]:
    """Tells whether a text is new among those that are kept; of a recipe that does not ask, always."""
    if find(build_recipe(merge.config.recipe), ExactDuplicates) is None:
        yield lambda _: True
        return
    most = sum(pq.read_metadata(path).num_rows for path in (*merge.known, *merge.runs))
    with Seen(merge.scratch / "seen", most) as seen:
        for document in itertools.chain.from_iterable(map(read_documents, merge.known)):
            seen.add(document.text)
        yield seen.add


class _Near:
    """The near-duplicates, asked for in their order."""

    def __init__(self, path: Path | None):
        self.rows = _read_pairs(path) if path else iter(())
        self.next = next(self.rows, None)

    def kept_for(self, identifier: str) -> str | None:
        """The document that stays in the place of this one."""
        if self.next is None or self.next[0] != identifier:
            return None
        kept = self.next[1]
        self.next = next(self.rows, None)
        return kept


def _read_pairs(path: Path) -> Iterator[tuple[str, str]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=NEAR_ROWS):
            yield from zip(*(column.to_pylist() for column in batch.columns))


def _heldout_bound(merge: Merge) -> int:
    """Documents whose hash lies below are held out: the fraction asked, and of the first generation never none."""
    bound = round(merge.config.heldout_fraction * 2**64)
    if merge.later:
        return bound
    least = 2**64
    for document in _kept(merge._replace(known=[]), lambda *_, **__: None):
        least = min(least, id_hash(document.id, "heldout"))
        if least < bound:  # almost always among the first few
            return bound
    return least + 1


def _nothing_left(merge: Merge, tally: Tally) -> str:
    config = merge.config
    place = ", ".join(config.sources.values()) or config.path or "the Python installation"
    summary = tally.summary()
    reasons = ", ".join(f"{reason} {count}" for reason, count in summary["dropped"].items())
    if merge.later:
        return f"{place} adds nothing (dropped: {reasons or 'none'}); take it out of data.added, or add more to it"
    return (
        f"{place} leaves {summary['train']['documents']} documents to train on and "
        f"{summary['heldout']['documents']} held out (dropped: {reasons or 'none'}); both need one: give more "
        "text, or change data.recipe or data.heldout_fraction"
    )
