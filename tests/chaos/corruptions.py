"""Corruptions of every file in a folder, and a table of what became of them: noticed, without effect, or silent."""

import itertools
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

Corrupt = Callable[[Path], None]


class Case(NamedTuple):
    """One corruption of one folder."""

    kind: str
    what: str  # file and place
    corrupt: Corrupt


class Row(NamedTuple):
    """What became of the cases of one kind."""

    kind: str
    cases: int
    detected: int
    harmless: int
    silent: int  # wrong values without a word, or an error of another type


def cases(folder: Path, seed: int) -> Iterator[Case]:
    """Endless corruptions of what lies in `folder`: round after round of every kind for every file."""
    chance = random.Random(seed)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    while True:
        for name in names:
            size, other = (folder / name).stat().st_size, chance.choice([n for n in names if n != name])
            places = [chance.randrange(size * 8) for _ in range(chance.choice([1, 1, 1, 2, 8]))]
            start, length = chance.randrange(size), chance.choice([1, 16, 512])
            yield Case("flipped bits", f"{name} {places}", edit(name, lambda data, p=places: flip(data, p)))
            yield Case("zeroed", f"{name} {start}+{length}", edit(name, lambda d, s=start, n=length: blank(d, s, n)))
            junk = chance.randbytes(length)
            yield Case("junk", f"{name} {start}+{length}", edit(name, lambda d, s=start, j=junk: splice(d, s, j)))
            yield Case("swapped", f"{name} {other}", lambda at, a=name, b=other: swap(at / a, at / b))
            yield Case("overwritten", f"{other} -> {name}", lambda at, a=other, b=name: shutil.copy(at / a, at / b))
            for keep in chance.sample([0, size - 1, size // 2, chance.randrange(size)], 2):
                yield Case("truncated", f"{name} {keep}", lambda at, n=name, keep=keep: os.truncate(at / n, keep))
            yield Case("appended", name, edit(name, lambda data, junk=junk: data + junk))
            yield Case("deleted", name, lambda at, n=name: (at / n).unlink())
            copy = str(Path(name).with_name(chance.choice(["process_1", "0" * 32, "copy", ".lock"])))
            yield Case("duplicated", f"{name} -> {copy}", lambda at, a=name, b=copy: shutil.copy(at / a, at / b))


def edit(name: str, change: Callable[[bytes], bytes]) -> Corrupt:
    """Rewrites one file."""

    def corrupt(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return corrupt


def flip(data: bytes, places: list[int]) -> bytes:
    """With the bits at `places` inverted."""
    changed = bytearray(data)
    for place in places:
        changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def blank(data: bytes, start: int, length: int) -> bytes:
    """With a run of zeros, as of a sector that was never written."""
    return splice(data, start, bytes(min(length, len(data) - start)))


def splice(data: bytes, start: int, junk: bytes) -> bytes:
    """With a run of other bytes; the size stays."""
    return (data[:start] + junk + data[start + len(junk) :])[: len(data)]


def swap(a: Path, b: Path) -> None:
    """Exchanges the bytes of two files."""
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


def run(folder: Path, outcome: Callable[[Path], str], seed: int, count: int) -> tuple[list[Row], list[str]]:
    """Tries `count` corruptions on copies of a folder; a table, and what went wrong.

    `outcome` opens a copy and says `detected`, `harmless`, or what went wrong.
    """
    counts, wrong = Counter(), []
    for case in sample(folder, seed, count):
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / folder.name
            shutil.copytree(folder, copy)
            case.corrupt(copy)
            result = outcome(copy)
        counts[case.kind, result if result in ("detected", "harmless") else "silent"] += 1
        if result not in ("detected", "harmless"):
            wrong.append(f"{case.kind} {case.what}: {result}")
    kinds = sorted({kind for kind, _ in counts})
    rows = [[counts[kind, name] for name in ("detected", "harmless", "silent")] for kind in kinds]
    return [Row(kind, sum(row), *row) for kind, row in zip(kinds, rows)], wrong


def sample(folder: Path, seed: int, count: int) -> list[Case]:
    """`count` cases from several rounds, so that all kinds and files are among them."""
    several = list(itertools.islice(cases(folder, seed), max(4 * count, 1000)))
    return random.Random(seed).sample(several, count)


def table(rows: list[Row]) -> str:
    """As Markdown."""
    total = Row("all", *(sum(row[column] for row in rows) for column in range(1, 5)))
    lines = ["| corruption | cases | detected | harmless | silent |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in [*rows, total]]
    return "\n".join(lines)
