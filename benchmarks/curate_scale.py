"""Curation of 10,000 to 1,000,000 documents: seconds and memory; then two workers beside one on real documents.

    make bench-scale DOCUMENTS=documents.jsonl.gz

Synthetic documents have about 100 words, Zipf's frequencies, every fifth a copy of another with one word changed;
the recipe is fast MinHash, length and exact duplicates, two workers. Memory is that of the largest process, and of
all at once. Of real documents (see `benchmarks/documents.py`) FineWeb's whole chain is run, each copied `--copies`
times under other ids into as many files. Seconds are of the wall clock.
"""

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 10_000  # of a file
VOCABULARY = 50_000
WORDS = 100
PLAIN = ({"step": "length", "min_chars": 10}, {"step": "minhash", "method": "fast"}, {"step": "exact_duplicates"})
RULES = ("gopher_repetition", "gopher_quality", "c4_quality", "fineweb_quality", "minhash", "personal_data")
FINEWEB = ({"step": "language", "languages": ("en", "de", "es", "fr", "it", "pt")}, *({"step": one} for one in RULES))
CHILD = """
import json, sys
from pathlib import Path
from data.config import DataConfig
from data.curate.engine import curate
path, workdir, recipe, workers = sys.argv[1:]
curate(DataConfig(path=path, recipe=tuple(json.loads(recipe)), workers=int(workers)), Path(workdir))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--documents", type=Path)
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print("| documents | kept | seconds | documents a second | largest process, MB | all, MB |")
    print("|---|---|---|---|---|---|")
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            synthetic(Path(folder) / "in", size)
            seconds, largest, together, kept = curated(Path(folder), PLAIN, 2)
        print(
            f"| {size:,} | {kept:,} | {seconds:.0f} | {size / seconds:,.0f} | {largest:.0f} | {together:.0f} |",
            flush=True,
        )
    if arguments.documents:
        with tempfile.TemporaryDirectory() as folder:
            size = copies(arguments.documents, Path(folder) / "in", arguments.copies)
            for _ in range(arguments.rounds):
                one, two = (curated(Path(folder), FINEWEB, workers)[0] for workers in (1, 2))
                print(
                    f"{size / 1e6:.1f} MB: one worker {one:.1f} s, two {two:.1f} s: {one / two:.2f} times", flush=True
                )


def synthetic(folder: Path, count: int) -> None:
    """Parquet files of documents."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    words = np.array(
        [f"{number:x}".translate(str.maketrans("0123456789", "ghijklmnop")) for number in range(VOCABULARY)]
    )
    chances = 1 / np.arange(1, VOCABULARY + 1)
    bounds = np.cumsum(chances / chances.sum())
    for start in range(0, count, ROWS):
        chosen = np.searchsorted(bounds, rng.random((min(ROWS, count - start), WORDS))).clip(max=VOCABULARY - 1)
        chosen[4::5] = chosen[3::5]
        chosen[4::5, 50] = 0
        texts = [" ".join(row) for row in words[chosen]]
        ids = [f"{number}" for number in range(start, start + len(texts))]
        pq.write_table(pa.table({"id": ids, "text": texts}), folder / f"{start // ROWS:05d}.parquet")


def copies(documents: Path, folder: Path, count: int) -> int:
    """As many files with all documents; the bytes of their texts."""
    folder.mkdir()
    with gzip.open(documents, "rt") as file:
        rows = [json.loads(line) for line in file]
    for copy in range(count):
        with (folder / f"{copy}.jsonl").open("w") as file:
            for row in rows:
                file.write(json.dumps({**row, "id": f"{copy}/{row['id']}"}) + "\n")
    return count * sum(len(row["text"].encode()) for row in rows)


def curated(folder: Path, recipe: tuple[dict, ...], workers: int) -> tuple[float, float, float, int]:
    """Seconds, megabytes of the largest process and of all together, and documents kept."""
    given = [str(folder / "in"), str(folder / "out"), json.dumps(recipe), str(workers)]
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", CHILD, *given], stderr=subprocess.PIPE, text=True)
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(process.stderr))
    reader.start()
    largest = together = 0.0
    while process.poll() is None:
        sizes = [own_memory(pid) for pid in family(process.pid)]
        largest, together = max(largest, *sizes, 0), max(together, sum(sizes))
        time.sleep(0.2)
    seconds = time.monotonic() - began
    reader.join()
    if process.returncode:
        sys.exit("".join(said))
    splits = json.loads((folder / "out" / "curated" / "manifest.json").read_text())["summary"]
    shutil.rmtree(folder / "out")
    return seconds, largest / 1e6, together / 1e6, sum(splits[name]["documents"] for name in ("train", "heldout"))


def family(pid: int) -> list[int]:
    """A process and all that came of it."""
    found = [pid]
    for one in found:
        try:
            for children in Path(f"/proc/{one}/task").glob("*/children"):
                found += map(int, children.read_text().split())
        except OSError:
            continue  # it has ended
    return found


def own_memory(pid: int) -> float:
    """Bytes of a process's own in memory; not those of files, which the system takes back when it needs them."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:")), 0.0)


if __name__ == "__main__":
    main()
