"""How often pairs of a given similarity are found to be near-duplicates, beside theory.

    python benchmarks/near_duplicates.py documents.jsonl.gz

Pieces of 300 words of real documents, and the same with some words replaced. The similarity of a pair is the share of
its runs of five words that both have, counted exactly; theory is 1 - (1 - s^8)^14 at that, the mean over the pairs of
a row. Standard errors are those of the share found.
"""

import gzip
import json
import math
import random
import sys

import numpy as np

from data.curate.minhash import COLUMN, MinHash
from data.curate.partition import to_batch
from data.document import Document

WORDS = 300
PAIRS = 3000  # of a row
CHANGED = (0.002, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.13)


def main(documents: str) -> None:
    rng = random.Random(0)
    with gzip.open(documents, "rt") as file:
        words = " ".join(row["text"] for row in map(json.loads, file) if row["language"] == "en").lower().split()
    words = [plain for word in words if (plain := "".join(filter(str.isalpha, word)))]  # one word for every method
    print("| words changed | similarity | theory | FineWeb's | fast | standard error |")
    print("|---|---|---|---|---|---|")
    for share in CHANGED:
        pieces = [words[at : at + WORDS] for at in (rng.randrange(len(words) - WORDS) for _ in range(PAIRS))]
        pairs = [(piece, edited(piece, share, rng)) for piece in pieces]
        similar = np.array([jaccard(*pair) for pair in pairs])
        theory = (1 - (1 - similar**8) ** 14).mean()
        found = {method: together(MinHash(method=method), pairs).mean() for method in ("fineweb", "fast")}
        error = math.sqrt(max(theory * (1 - theory), 1 / PAIRS) / PAIRS)
        shares = " | ".join(f"{one:.3f}" for one in (similar.mean(), theory, *found.values(), error))
        print(f"| {share:.1%} | {shares} |", flush=True)


def edited(piece: list[str], share: float, rng: random.Random) -> list[str]:
    """Other words in the place of some."""
    changed = list(piece)
    for place in rng.sample(range(len(piece)), max(1, round(share * len(piece)))):
        changed[place] = f"{rng.choice(piece)}{rng.choice('qxz')}"
    return changed


def jaccard(left: list[str], right: list[str]) -> float:
    """Of the sets of runs of five words."""
    a, b = ({tuple(words[at : at + 5]) for at in range(len(words) - 4)} for words in (left, right))
    return len(a & b) / len(a | b)


def together(step: MinHash, pairs: list[tuple[list[str], list[str]]]) -> np.ndarray:
    """Whether the two agree in a bucket."""
    texts = [" ".join(words) for pair in pairs for words in pair]
    signed = step(to_batch([Document("", text, "") for text in texts])).batch.column(COLUMN).to_pylist()
    numbers = np.frombuffer(b"".join(signed), "<u8").reshape(len(pairs), 2, step.buckets, step.hashes_per_bucket)
    return (numbers[:, 0] == numbers[:, 1]).all(-1).any(-1)


if __name__ == "__main__":
    main(*sys.argv[1:])
