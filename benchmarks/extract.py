"""Main text of gold pages: precision, recall and pages a second of each method, beside datatrove's.

    make bench-extract PAGES=article-extraction-benchmark

`PAGES` is a clone of scrapinghub/article-extraction-benchmark (MIT): `ground-truth.json` and `html/*.html.gz`. Texts
are compared by their runs of four words; each page weighs the same. Of two texts with no run in common, precision and
recall are 0. Seconds are of the processor, the child's included, for batches of pages as a worker has them, after a
first pass that does not count; one process at a time, round after round. `times trafilatura`: the median of the
rounds' ratios to our trafilatura, and their range.
"""

import argparse
import collections
import gzip
import json
import re
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import harmonic_mean, mean, median

from data.curate.extract import Extract
from data.curate.partition import to_batch
from data.curate.step import texts as in_batch
from data.document import Document
from data.parser import Parser, parser
from data.sources.page import HTML, MEDIA_TYPE

ROWS = 32  # of a batch

PEER = """
import json, sys, time
from datatrove.pipeline.extractors import Trafilatura
pages = json.load(open(sys.argv[1]))
extractor = Trafilatura(favour_precision=True)
extractor.extract(next(iter(pages.values())))
began = time.process_time()
texts = {name: extractor.extract(page) or "" for name, page in pages.items()}
json.dump({"texts": texts, "seconds": time.process_time() - began}, open(sys.argv[2], "w"))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", required=True, type=Path)
    parser.add_argument("--peer-python", help="of an environment with datatrove[processing]")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    gold = json.loads((arguments.pages / "ground-truth.json").read_text())
    pages = {name: read(arguments.pages / "html" / f"{name}.html.gz") for name in gold}
    wanted = {name: shingles(entry["articleBody"]) for name, entry in gold.items()}
    print(f"{len(pages)} pages, {sum(map(len, pages.values())) / 1e6:.1f} million characters")
    print("| | precision | recall | F1 | pages a second | times trafilatura |")
    print("|---|---|---|---|---|---|")
    rounds = [run(pages, arguments.peer_python) for _ in range(arguments.rounds)]
    for name, (texts, _) in rounds[0].items():
        precision, recall = judge(texts, wanted)
        both = harmonic_mean([precision, recall])
        speed = len(pages) / median(found[name][1] for found in rounds)
        ratios = sorted(found["trafilatura"][1] / found[name][1] for found in rounds)
        times = f"{median(ratios):.1f} ({ratios[0]:.1f}-{ratios[-1]:.1f})"
        print(f"| {name} | {precision:.3f} | {recall:.3f} | {both:.3f} | {speed:.0f} | {times} |")


def run(pages: dict[str, str], peer_python: str | None) -> dict[str, tuple[dict[str, str], float]]:
    """Texts and seconds of every method."""
    found = {method: ours(pages, method) for method in ("trafilatura", "resiliparse", "visible")}
    return found | ({"datatrove": theirs(pages, peer_python)} if peer_python else {})


def read(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode("utf-8")


def shingles(text: str) -> collections.Counter:
    """Runs of four words; of a shorter text, itself."""
    words = re.findall(r"\w+", text)
    return collections.Counter(tuple(words[start : start + 4]) for start in range(max(1, len(words) - 3)))


def judge(texts: dict[str, str], wanted: dict[str, collections.Counter]) -> tuple[float, float]:
    """Mean precision and recall."""
    precision, recall = [], []
    for name, runs in wanted.items():
        own = shingles(texts[name])
        both = (own & runs).total()
        precision.append(both / own.total())
        recall.append(both / runs.total())
    return mean(precision), mean(recall)


def ours(pages: dict[str, str], method: str) -> tuple[dict[str, str], float]:
    """Texts, and seconds of a second pass over the pages."""
    step = Extract(method=method)
    documents = [Document(name, page, "", meta={MEDIA_TYPE: HTML}) for name, page in pages.items()]
    batches = [to_batch(documents[i : i + ROWS]) for i in range(0, len(documents), ROWS)]
    for batch in batches:
        step(batch)
    own = parser(method, step.seconds, step.memory_mb) if method != "visible" else None
    began = seconds(own)
    found = [step(batch) for batch in batches]
    took = seconds(own) - began
    both = (pair for batch, reasons, _ in found for pair in zip(in_batch(batch), reasons))
    return {name: "" if reason else text for name, (text, reason) in zip(pages, both)}, took


def seconds(own: Parser | None) -> float:
    """Of the processor, of this process and of a parser's child, whose clock has that number on Linux."""
    child = time.clock_gettime(~own.child.process.pid << 3 | 2) if own else 0.0
    return time.process_time() + child


def theirs(pages: dict[str, str], python: str) -> tuple[dict[str, str], float]:
    """Of datatrove's extractor, in its own process but without its sandbox."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "pages.json", Path(folder) / "found.json"
        given.write_text(json.dumps(pages))
        subprocess.run([python, "-c", PEER, given, found], check=True)
        answer = json.loads(found.read_text())
    return answer["texts"], answer["seconds"]


if __name__ == "__main__":
    main()
