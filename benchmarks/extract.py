"""Main text of gold pages: precision, recall and pages a second of each method, beside datatrove's.

    make bench-extract PAGES=article-extraction-benchmark

`PAGES` is a clone of scrapinghub/article-extraction-benchmark (MIT): `ground-truth.json` and `html/*.html.gz`. Texts
are compared by their runs of four words; each page weighs the same. Precision is that of its `evaluate.py`, the mean
over pages of which there is a text; `F1 of all` has 0 for the others, whose recall is 0 in both. Seconds are of the
processor, the child's included; one process at a time, round after round. `times trafilatura`: the median of the
rounds' ratios to our trafilatura, and their range.
"""

import argparse
import collections
import gzip
import json
import re
import resource
import subprocess
import tempfile
from pathlib import Path
from statistics import harmonic_mean, mean, median

from data.curate.extract import Extract
from data.parser import parser

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
    print("| | precision | recall | F1 | without text | F1 of all | pages a second | times trafilatura |")
    print("|---|---|---|---|---|---|---|---|")
    rounds = [run(pages, arguments.peer_python) for _ in range(arguments.rounds)]
    for name, (texts, _) in rounds[0].items():
        precision, recall = judge(texts, wanted)
        both, of_all = (harmonic_mean([mean(one), mean(recall)]) for one in (precision, pad(precision, len(recall))))
        speed = len(pages) / median(found[name][1] for found in rounds)
        ratios = sorted(found["trafilatura"][1] / found[name][1] for found in rounds)
        times = f"{median(ratios):.1f} ({ratios[0]:.1f}-{ratios[-1]:.1f})"
        empty = len(recall) - len(precision)
        shares = f"{mean(precision):.3f} | {mean(recall):.3f} | {both:.3f} | {empty} | {of_all:.3f}"
        print(f"| {name} | {shares} | {speed:.0f} | {times} |")


def run(pages: dict[str, str], peer_python: str | None) -> dict[str, tuple[dict[str, str], float]]:
    """Texts and seconds of every method."""
    found = {method: ours(pages, method) for method in ("trafilatura", "resiliparse", "visible")}
    return found | ({"datatrove": theirs(pages, peer_python)} if peer_python else {})


def read(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode("utf-8")


def shingles(text: str) -> collections.Counter:
    """Runs of four words; of a shorter text, itself; of none, none."""
    words = re.findall(r"\w+", text)
    runs = (tuple(words[start : start + 4]) for start in range(max(1, len(words) - 3)))
    return collections.Counter(filter(None, runs))


def judge(texts: dict[str, str], wanted: dict[str, collections.Counter]) -> tuple[list[float], list[float]]:
    """Precision of each page of which there is a text, and recall of each."""
    precision, recall = [], []
    for name, runs in wanted.items():
        own = shingles(texts[name])
        both = (own & runs).total()
        precision += [both / own.total()] if own else []
        recall.append(both / runs.total())
    return precision, recall


def pad(values: list[float], count: int) -> list[float]:
    """So many, with zeros."""
    return values + [0.0] * (count - len(values))


def ours(pages: dict[str, str], method: str) -> tuple[dict[str, str], float]:
    """Texts, and seconds without those of starting."""
    step = Extract(method=method)
    start = 0.0
    if method != "visible":
        began = seconds()
        step.text("")
        parser(method, step.seconds, step.memory_mb).close()
        start = seconds() - began
    began = seconds()
    texts = {name: step.text(page)[0] for name, page in pages.items()}
    if method != "visible":
        parser(method, step.seconds, step.memory_mb).close()
    return texts, seconds() - began - start


def seconds() -> float:
    """Of the processor, of this process and of children that have ended."""
    both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


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
