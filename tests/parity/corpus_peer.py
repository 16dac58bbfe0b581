"""Runs in the peer's environment: an exported corpus in Hugging Face datasets. Imports nothing of ours.

corpus_peer.py FOLDER CURATED CACHE     compares it, loaded and streamed, with CURATED/<split>.jsonl; 1 if others
"""

import json
import sys
from pathlib import Path

import datasets


def main(folder: str, curated: str, cache: str) -> bool:
    good = True
    print("| | split | documents | there | holds |\n|---|---|---|---|---|", flush=True)
    for way, options in {"loaded": {}, "streamed": {"streaming": True}}.items():
        found = datasets.load_dataset(folder, cache_dir=cache, **options)
        for path in sorted(Path(curated).glob("*.jsonl")):
            wanted = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")]
            rows = list(found[path.stem])
            holds = rows == wanted
            print(
                f"| {way} | {path.stem} | {len(wanted):,} | {len(rows):,} | {'yes' if holds else 'NO'} |", flush=True
            )
            good &= holds
    return good


if __name__ == "__main__":
    sys.exit(not main(*sys.argv[1:4]))
