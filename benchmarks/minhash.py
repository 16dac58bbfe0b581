"""MinHash signatures and clusters beside datatrove's: equal or not, megabytes a second of one process.

    make bench-minhash DOCUMENTS=documents.jsonl.gz

A line of the file is a document: `id`, `text`, and `language`, one of en, de, es, fr, it, pt. The two sides run one
after the other, round after round. Seconds are of the processor. `known words`: what pieces of the text become is
remembered from a run before, as in all but the first minutes of a large corpus.
"""

import argparse
import collections
import gzip
import hashlib
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from data.curate import clusters, minhash
from data.curate.minhash import MinHash
from data.curate.partition import to_batch
from data.curate.signatures import SignatureWriter
from data.document import Document

ROWS = 256
WARM = "It's a warm-up (e.g. of 3 words)..."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", required=True)
    parser.add_argument("--peer-python", required=True, help="of an environment with datatrove[processing] and spacy")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rows = collections.defaultdict(list)
    with gzip.open(arguments.documents, "rt") as file:
        for line in file:
            row = json.loads(line)
            rows[row["language"]].append(Document(row["id"], row["text"], ""))
    peer, rounds = Path(__file__).parent / "minhash_datatrove.py", []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            found = Path(folder) / "found.json"
            subprocess.run([arguments.peer_python, peer, arguments.documents, found], check=True)
            rounds.append((json.loads(found.read_text()), ours(rows, Path(folder))))
    report(rows, rounds)


def ours(rows: dict[str, list[Document]], folder: Path) -> dict:
    """What `minhash_datatrove.py` finds, and the time of the variants."""
    answer = {"signatures": {}, "seconds": collections.defaultdict(dict)}
    minhash._spacy_words.cache_clear()
    minhash._hashed_words.cache_clear()
    files = []
    for language, own in sorted(rows.items()):
        step = MinHash(language=language)
        batches = [to_batch(own[i : i + ROWS]) for i in range(0, len(own), ROWS)]
        for name, made in {"": step, "known words": step, "fast": MinHash(method="fast")}.items():
            if name != "known words":
                made(to_batch([Document("", WARM, "")]))
            began = time.process_time()
            signed = [made(batch).batch for batch in batches]
            answer["seconds"][name][language] = time.process_time() - began
            if not name:
                files.append(folder / f"{language}.parquet")
                with SignatureWriter(files[-1], step) as writer:
                    for batch in signed:
                        writer.take(batch)
                        pairs = zip(*(batch.column(column).to_pylist() for column in ("id", "minhash")))
                        hashes = {key: hashlib.blake2b(one, digest_size=16).hexdigest() for key, one in pairs if one}
                        answer["signatures"] |= hashes
    for name in ("start", "clusters"):  # the first loads Daft
        began, found = time.process_time(), collections.defaultdict(list)
        for member in clusters.members(files, [], folder):
            found[member.kept].append(member.id)
        answer["seconds"][name] = time.process_time() - began
    answer["clusters"] = sorted(map(sorted, found.values()))
    return answer


def report(rows: dict[str, list[Document]], rounds: list[tuple[dict, dict]]) -> None:
    sizes = {language: sum(len(one.text.encode()) for one in own) / 1e6 for language, own in rows.items()}
    print("| | documents | MB | equal signatures | datatrove MB/s | Quintet MB/s | ratio | known words | fast |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, languages in {**{language: [language] for language in sizes}, "all": list(sizes)}.items():
        size = sum(sizes[language] for language in languages)
        speeds = collections.defaultdict(list)
        for theirs, own in rounds:
            speeds["datatrove"].append(size / sum(theirs["seconds"][language] for language in languages))
            for variant in ("", "known words", "fast"):
                speeds[variant].append(size / sum(own["seconds"][variant][language] for language in languages))
        ids = [one.id for language in languages for one in rows[language]]
        equal = all(
            own["signatures"].get(one) == theirs["signatures"].get(one) for one in ids for theirs, own in rounds
        )
        ratios = [mine / other for mine, other in zip(speeds[""], speeds["datatrove"])]
        middle = {variant: statistics.median(values) for variant, values in speeds.items()}
        print(
            f"| {name} | {len(ids):,} | {size:.2f} | {'all' if equal else 'NOT ALL'} | {middle['datatrove']:.2f} "
            f"| {middle['']:.1f} | {statistics.median(ratios):.0f} ({min(ratios):.0f}-{max(ratios):.0f}) "
            f"| {middle['known words']:.1f} | {middle['fast']:.1f} |"
        )
    theirs, own = rounds[-1]
    same = "the same" if theirs["clusters"] == own["clusters"] else "NOT THE SAME"
    print(
        f"\n{len(own['clusters'])} clusters of {sum(map(len, own['clusters']))} documents, {same}; datatrove "
        f"{theirs['seconds']['clusters']:.2f} s, Quintet {own['seconds']['clusters']:.2f} s"
    )


if __name__ == "__main__":
    main()
