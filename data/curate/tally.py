"""What curation counts and samples on its way, in bounded memory and the same whatever the number of workers.

A worker has a `PartTally` of what each step of its partition drops and changes. The one process that merges adds
these up in the order of partitions, and sees what stays in hash order of ids.
"""

import collections
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from data.conversations import is_conversation
from data.curate.counts import Copies, Names, Size, Steps, host, length_bin, score_bins
from data.curate.diversity import TextSample
from data.curate.samples import Firsts, Group, Samples, changed_row, digest, dropped_row, of_document, of_unread
from data.document import Document, Dropped, id_hash

NAMES, LANGUAGES = 200_000, 10_000  # that are counted apart
SCORE = "_score"  # ends the name of a column that has a histogram


class PartTally:
    """What each step does with one partition; `partition.through` shows it every batch."""

    def __init__(self, steps: Iterable[str]):
        self.steps = Steps(("", *steps))
        self.languages = Names(LANGUAGES)  # of what is dropped, as far as then known
        self.scores: dict[str, collections.Counter] = {}
        self.samples = Samples()

    def read(self, batch: pa.RecordBatch) -> None:
        """Documents as they come from the source."""
        size = _bytes(batch)
        self.steps.add("", documents_in=batch.num_rows, bytes_in=size, documents_out=batch.num_rows, bytes_out=size)

    def step(self, name: str, before: pa.RecordBatch, after: pa.RecordBatch, reasons: Sequence[str | None]) -> None:
        """A batch before a step and after it, with as many rows, and which of them it drops."""
        gone = [row for row, reason in enumerate(reasons) if reason]
        changed = []
        if not after.column("text").equals(before.column("text")):
            changed = pc.not_equal(before.column("text"), after.column("text")).to_pylist()
            changed = [row for row, differs in enumerate(changed) if differs and not reasons[row]]
        self.steps.add(
            name,
            documents_in=before.num_rows,
            bytes_in=_bytes(before),
            documents_out=before.num_rows - len(gone),
            bytes_out=_bytes(after) - (_bytes(after.take(gone)) if gone else 0),
            changed=len(changed),
        )
        ids = before.column("id").to_pylist() if gone or changed else []
        for row in gone:
            make = functools.partial(dropped_row, before, after, row)
            self.samples.offer(Group("dropped", name, reasons[row]), id_hash(ids[row], "sample"), make)
        for row in changed:
            make = functools.partial(changed_row, before, after, row)
            self.samples.offer(Group("changed", name), id_hash(ids[row], "sample"), make)
        if gone:
            self._dropped(before.take(gone), after.take(gone))

    def _dropped(self, before: pa.RecordBatch, after: pa.RecordBatch) -> None:
        """Counts dropped documents with the language and the scores that the step may have found."""
        sizes = pc.binary_length(before.column("text")).to_pylist()
        for language, size in zip(after.column("language").to_pylist(), sizes):
            self.languages.add(language, 1, size)
        for name in (name for name in after.schema.names if name.endswith(SCORE)):
            own = self.scores.setdefault(name, collections.Counter())
            own.update(score_bins(after.column(name).to_pylist()))

    def plain(self) -> dict[str, Any]:
        """As JSON says it."""
        return {
            "steps": self.steps.counts,
            "languages": self.languages.plain(),
            "scores": self.scores,
            "samples": self.samples.plain(),
        }


class Tally:
    """Counts for the report: what came in, what was dropped for which reason, what stayed."""

    def __init__(self, dropped: IO[str]):
        """Every drop is written to `dropped`, a line of JSON each."""
        self.file = dropped
        self.sources: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
        self.splits = {"train": collections.Counter(), "heldout": collections.Counter()}
        self.dropped: collections.Counter = collections.Counter()
        self.conversations = 0

        self.steps = Steps()
        self.reasons: dict[tuple[str, str], Size] = collections.defaultdict(lambda: [0, 0])  # by step and reason
        self.merged: set[str] = set()  # steps that dropped in the merge
        self.samples, self.text = Samples(), TextSample()
        self.lengths = {"kept": collections.Counter(), "dropped": collections.Counter()}
        self.languages = {"kept": Names(LANGUAGES), "dropped": Names(LANGUAGES)}
        self.scores: dict[str, dict[str, collections.Counter]] = {}
        self.licenses, self.hosts = Names(NAMES), Names(NAMES)
        self.copies: dict[str, Copies] = collections.defaultdict(Copies)
        self._firsts = Firsts()

    def add_part(self, part: Mapping[str, Any], dropped: Iterable[Dropped]) -> None:
        """Adds how the steps of one partition went, and what it dropped."""
        own = part["tally"]
        for name, counts in own["steps"].items():
            self.steps.add(name, **counts)
        for entry in dropped:
            self._count(entry)
            if not entry.step or entry.step not in own["steps"]:  # the source could not read it
                group = Group("dropped", entry.step, entry.reason)
                self.samples.offer(group, id_hash(entry.id, "sample"), functools.partial(of_unread, entry))
        self.languages["dropped"].merge(own["languages"])
        for name, bins in own["scores"].items():
            self._scores(name)["dropped"].update(bins)
        self.samples.merge(own["samples"])

    def drop(self, document: Document, step: str, reason: str, kept: str | None = None) -> None:
        """Counts a document that the merge drops.

        Of a duplicate, `kept` is the id of the one that stays, or empty where it has the same text and its id is not
        at hand.
        """
        entry = Dropped(document.id, document.source, reason, len(document.text.encode()), step, kept or "")
        self._count(entry)
        self.merged.add(step)
        self.languages["dropped"].add(document.language, 1, entry.size)
        self._add_scores(document, "dropped")
        number = id_hash(document.id, "sample")
        if kept is not None:  # a sample of the copies of each, or the text copied most would be all that is seen
            number = id_hash(kept, "sample") if kept else digest(document.text)
            self.copies[step].add(number)
            kept = kept or self._firsts.of.get(number, "")
        self.samples.offer(Group("dropped", step, reason), number, functools.partial(of_document, document, kept))

    def keep(self, document: Document, split: str) -> None:
        """Counts a document that stays."""
        size = len(document.text.encode())
        self.splits[split].update(documents=1, bytes=size)
        self.conversations += is_conversation(document)
        self.sources[document.source].update({f"{split}_documents": 1, f"{split}_bytes": size})

        self.lengths["kept"][length_bin(size)] += 1
        self.languages["kept"].add(document.language, 1, size)
        self.licenses.add(document.license, 1, size)
        self.hosts.add(host(document.url), 1, size)
        self._add_scores(document, "kept")
        number = id_hash(document.id, "sample")
        self.samples.offer(Group("kept"), number, functools.partial(of_document, document))
        self.text.add(number, document.text)
        self._firsts.add(digest(document.text), document.id)

    @property
    def merging(self) -> int:
        """Documents that went through all steps of their partitions."""
        return min((counts["documents_out"] for counts in self.steps.counts.values()), default=0)

    def summary(self) -> dict[str, Any]:
        """Plain data."""
        return {
            **{name: {"documents": c["documents"], "bytes": c["bytes"]} for name, c in self.splits.items()},
            "sources": {name: dict(counter) for name, counter in sorted(self.sources.items())},
            "dropped": dict(self.dropped.most_common()),
            **({"conversations": self.conversations} if self.conversations else {}),
        }

    def _count(self, entry: Dropped) -> None:
        self.file.write(line_of(entry))
        self.dropped[entry.reason] += 1
        self.sources[entry.source][f"dropped:{entry.reason}"] += 1
        own = self.reasons[entry.step, entry.reason]
        own[0] += 1
        own[1] += entry.size
        self.lengths["dropped"][length_bin(entry.size)] += 1

    def _scores(self, name: str) -> dict[str, collections.Counter]:
        return self.scores.setdefault(name, {"kept": collections.Counter(), "dropped": collections.Counter()})

    def _add_scores(self, document: Document, fate: str) -> None:
        for name, value in document.meta.items():
            if name.endswith(SCORE):
                self._scores(name)[fate].update(score_bins([value]))


def line_of(entry: Dropped) -> str:
    """A drop as `dropped.jsonl` has it."""
    return json.dumps(vars(entry), ensure_ascii=False) + "\n"


def _bytes(batch: pa.RecordBatch) -> int:
    return pc.sum(pc.binary_length(batch.column("text"))).as_py() or 0
