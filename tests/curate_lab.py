"""Steps of curation that do little, documents for them, and tasks for its workers."""

import dataclasses
import io
import json
import os
import random
import re
import tarfile
import time
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from data.curate.step import Outcome, TextRule, replace, texts
from data.curate.url import ARCHIVE
from data.workers import advance

# Not those of `lab`, which imports JAX: a worker needs half a minute for that where another works too.
WORDS = "the river rises in the hills north of a town and flows past mills and fields until it meets the sea".split()

# The text of a module with a user's own step.
OWN_STEP = """
import dataclasses
from typing import ClassVar

from data.curate.step import TextRule


@dataclasses.dataclass(frozen=True)
class Shouting(TextRule):
    version: ClassVar[int] = 1
    most: float = 0.3

    def reason(self, text):
        return "shouting" if sum(map(str.isupper, text)) > self.most * len(text) else None
"""


@dataclasses.dataclass(frozen=True)
class Questions(TextRule):
    """Drops what asks, for two reasons."""

    version: ClassVar[int] = 1

    def reason(self, text: str) -> str | None:
        return "asks" if text.endswith("?") else "asks twice" if text.count("?") > 1 else None


@dataclasses.dataclass(frozen=True)
class Shorten:
    """Takes digits out of texts, and finds a score."""

    version: ClassVar[int] = 1

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        batch = replace(batch, "text", [re.sub(r"\d", "", text) for text in texts(batch)])
        batch = replace(batch, "tidy_score", [len(text) % 10 / 10 for text in texts(batch)])
        return Outcome(replace(batch, "language", ["en"] * batch.num_rows), [None] * batch.num_rows)


@dataclasses.dataclass(frozen=True)
class Digest:
    """Adds bytes, for which JSON has no word."""

    version: ClassVar[int] = 1

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        return Outcome(replace(batch, "digest", [text.encode() for text in texts(batch)]), [None] * batch.num_rows)


def make_documents(folder: Path, count: int = 300) -> Path:
    """JSON lines in three files, some of which ask, some copies of others, some that cannot be read."""
    folder.mkdir()
    rows = []
    for number in range(count):
        words = " ".join(random.Random(number % 100).choices(WORDS, k=9))  # three say the same
        ending = "?" if number % 7 == 0 else "? no?!" if number % 11 == 0 else f" {number % 40}."
        url = f"https://www.host{number % 5}.org/{number}" if number % 3 else f"file {number}"
        licence = "CC0" if number % 2 else ""
        rows.append({"id": f"d{number}", "text": words + ending, "url": url, "license": licence})
    rows.append({"id": "tiny", "text": "tiny"})
    third = len(rows) // 3
    for part in range(3):
        lines = "".join(
            json.dumps(row) + "\n" for row in rows[part * third : (part + 1) * third if part < 2 else None]
        )
        (folder / f"{part}.jsonl").write_text(lines + "{not json\n" * part)
    return folder


def write_lists(folder: Path, domains: str, urls: str) -> None:
    """Small lists of addresses, as datatrove's are."""
    write_archive(folder, domains=domains, urls=urls)
    for name, words in (
        ("banned_words", "casino"),
        ("soft_banned_words", "poker\nbet\nluck"),
        ("banned_subwords", "free-stuff"),
    ):
        (folder / f"{name}.txt").write_text(f"{words}\n")


def write_archive(folder: Path, **texts: str) -> None:
    """Those that come in an archive."""
    with tarfile.open(folder / ARCHIVE, "w:gz") as archive:
        for name, text in texts.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))


def square(number: int) -> int:
    """Advances by its number."""
    for _ in range(number):
        advance(1)
    return number * number


def wait_for_file(path: str) -> str:
    """Advances by 5, and is done when there is such a file."""
    advance(5)
    while not Path(path).exists():
        time.sleep(0.01)
    return path


def die(number: int) -> int:
    """Number 1 is killed."""
    advance(1)
    if number == 1:
        os.kill(os.getpid(), 9)
    return number
