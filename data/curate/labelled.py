"""The labelled documents that a judge of quality learns from: where they lie, and the first of each kind.

A text is learnt from once. Pages count by the text that the config's recipe makes of them, which is what the judge
will see.
"""

import bisect
import collections
import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from core.errors import UserError
from core.files import hash_file
from core.progress import track
from data.config import ClassifierConfig, DataConfig
from data.curate.engine import BUILT_IN, source_of
from data.curate.extract import Extract
from data.curate.items import item_files, read_records
from data.curate.recipe import build_recipe, find
from data.document import Document, Dropped, id_hash
from data.sources.page import HTML
from data.workers import process_map


class Place(NamedTuple):
    """Where labelled documents come from."""

    name: str
    kind: str  # positive, negative or scored
    path: str

    @property
    def module(self) -> ModuleType:
        """The source that reads it."""
        return source_of(self.path)[0]

    @property
    def root(self) -> Path | str:
        """What it is told to read."""
        return source_of(self.path)[1]

    def partitions(self) -> list[Any]:
        """What a worker reads at a time."""
        if self.kind == "scored":
            return [file.path for file in item_files((self.path,))]
        return self.module.partitions(self.root)

    def inputs(self) -> Any:
        """What the documents depend on."""
        if self.kind == "scored":
            return {str(path): hash_file(path) for path in self.partitions()}
        return self.module.inputs(self.root)

    def read(self, partition: Any, columns: dict[str, str]) -> Iterator[Document | Dropped]:
        """What a folder, a file or a dataset holds."""
        options = {} if self.path in BUILT_IN else {"columns": columns}
        return self.module.read(self.root, partition, **options)


class Example(NamedTuple):
    """The beginning of a labelled document. Sorted, they are in the order of a hash of their id."""

    order: int
    id: str
    source: str
    positive: bool
    text: str

    @property
    def held_out(self) -> int:
        """Compared with a bound, whether it is."""
        return id_hash(self.id, "heldout")


class Collected(NamedTuple):
    """What there is to learn from, and what is not."""

    examples: list[Example]
    dropped: collections.Counter  # documents by their kind, true for those to be preferred, and reason

    def lost(self, *kinds: bool) -> str:
        """Those that were dropped, for the end of a line."""
        reasons: collections.Counter = collections.Counter()
        for (positive, reason), count in self.dropped.items():
            reasons[reason] += count if positive in kinds else 0
        listed = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items()) if count)
        return f"; {reasons.total():,} were dropped ({listed})" if listed else ""


def pages_of(data: DataConfig) -> Extract:
    """What makes text of pages when the corpus is curated, where the judge will see it."""
    return find(build_recipe(data.recipe), Extract) or Extract(method="visible")


def collect(config: ClassifierConfig, data: DataConfig, places: list[Place]) -> Collected:
    """The labelled documents in order: at most so many of each kind, and a text once."""
    pages = pages_of(data)
    tasks = [(config, place, partition, data.columns, pages) for place in places for partition in place.partitions()]
    first, dropped = _First(config.documents), collections.Counter()
    for own, lost in track(process_map(_read, tasks, data.workers), "train-classifier", len(tasks)):
        for example in own:
            first.add(example)
        dropped += lost
    found, seen = [], set()
    for example in first.examples():
        digest = hashlib.blake2b(example.text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest not in seen:
            found.append(example)
        seen.add(digest)
    return Collected(found, dropped)


class _First:
    """The examples that come first, at most so many of each kind."""

    def __init__(self, most: int):
        self.most = most
        self.kept: dict[bool, list[Example]] = {True: [], False: []}

    def has_room(self, positive: bool, order: int) -> bool:
        """Whether an example of this order may be among them."""
        own = self.kept[positive]
        return len(own) < self.most or order <= own[-1].order

    def add(self, example: Example) -> None:
        """One more, if it is among them."""
        if self.has_room(example.positive, example.order):
            own = self.kept[example.positive]
            bisect.insort(own, example)
            del own[self.most :]

    def examples(self) -> list[Example]:
        """All, in order."""
        return sorted(self.kept[True] + self.kept[False])


def _read(
    task: tuple[ClassifierConfig, Place, Any, dict[str, str], Extract],
) -> tuple[list[Example], collections.Counter]:
    """The documents of one partition, in a worker: those that may be among the first, and what was dropped."""
    config, place, partition, columns, pages = task
    first, dropped = _First(config.documents), collections.Counter()
    for positive, item in _labelled(config, place, partition, columns):
        if isinstance(item, Dropped):
            dropped[positive, item.reason] += 1
            continue
        name = f"{place.name}/{item.id}"
        order = id_hash(name, "classifier")
        if first.has_room(positive, order):  # before a page is parsed, which takes long
            text, reason = _text(item, pages)
            if reason:
                dropped[positive, reason] += 1
            else:
                first.add(Example(order, name, place.name, positive, text[: config.max_chars]))
    return first.examples(), dropped


def _labelled(
    config: ClassifierConfig, place: Place, partition: Any, columns: dict[str, str]
) -> Iterator[tuple[bool, Document | Dropped]]:
    """Documents one by one, with whether they are to be preferred."""
    if place.kind != "scored":
        yield from ((place.kind == "positive", item) for item in place.read(partition, columns))
        return
    for number, record in enumerate(read_records(partition), 1):
        score, text = _scored(record, partition, number)
        yield score >= config.min_score, Document(f"{partition}:{number}", text, "scored")


def _text(document: Document, pages: Extract) -> tuple[str, str | None]:
    """As the judge will see it, or why there is none."""
    is_page = document.meta.get("media_type") == HTML
    return pages.text(document.text) if is_page else (document.text, None)


def _scored(record: Any, path: Path, number: int) -> tuple[float, str]:
    score, text = (record.get(key) for key in ("score", "text")) if isinstance(record, dict) else (None, None)
    if isinstance(score, bool) or not isinstance(score, int | float) or not isinstance(text, str):
        raise UserError(f"{path}: record {number} has no `text` with a number as `score`")
    return float(score), text
