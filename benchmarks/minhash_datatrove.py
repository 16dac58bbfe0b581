"""Datatrove's side of `benchmarks/minhash.py`, in an environment of its own: signatures, clusters, and their time.

python benchmarks/minhash_datatrove.py documents.jsonl.gz found.json
"""

import collections
import contextlib
import gzip
import hashlib
import json
import os
import struct
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupSignature,
)
from datatrove.utils.hashing import HashConfig
from datatrove.utils.logging import logger

LANGUAGES = {"en": "eng", "de": "deu", "fr": "fra", "es": "spa", "it": "ita", "pt": "por"}


def main(documents: str, found: str) -> None:
    logger.remove()
    config = MinhashConfig(hash_config=HashConfig(precision=64, hash_fc="sha1"))
    rows = collections.defaultdict(list)
    with gzip.open(documents, "rt") as file:
        for line in file:
            row = json.loads(line)
            rows[row["language"]].append(Document(text=row["text"], id=row["id"]))
    answer = {"signatures": {}, "seconds": {}}
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stderr(nowhere),
    ):
        for rank, (language, own) in enumerate(sorted(rows.items())):
            step = MinhashDedupSignature(f"{folder}/signatures", config, LANGUAGES[language])
            step.get_shingles("It's a warm-up (e.g. of 3 words)...")
            began = time.process_time()
            step.run(own, rank)
            answer["seconds"][language] = time.process_time() - began
        began = time.process_time()
        for bucket in range(config.num_buckets):
            step = MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/pairs", config=config)
            step.run(None, bucket, config.num_buckets)
        step = MinhashDedupCluster(f"{folder}/pairs", f"{folder}/clusters", config, save_cluster_id=True)
        step.run(None, 0, 1)
        answer["seconds"]["clusters"] = time.process_time() - began
        names = [[document.id for document in own] for _, own in sorted(rows.items())]
        answer["signatures"] = signatures(Path(folder) / "signatures", names, config)
        answer["clusters"] = clusters(Path(folder) / "clusters", names)
    Path(found).write_text(json.dumps(answer))


def signatures(folder: Path, names: list[list[str]], config: MinhashConfig) -> dict[str, str]:
    """A hash of each document's integers, one bucket after the other."""
    kind = np.dtype([("hashes", "<u8", config.hashes_per_bucket), ("document", "<u4")])
    found = collections.defaultdict(bytes)
    for bucket in range(config.num_buckets):
        for rank, own in enumerate(names):
            for record in np.fromfile(folder / f"bucket_{bucket:03d}" / f"{rank:05d}.minhash.sig", kind):
                found[own[record["document"]]] += record["hashes"].tobytes()
    return {name: hashlib.blake2b(numbers, digest_size=16).hexdigest() for name, numbers in found.items()}


def clusters(folder: Path, names: list[list[str]]) -> list[list[str]]:
    """The documents of each cluster of more than one."""
    found = collections.defaultdict(list)
    for rank, own in enumerate(names):
        path = folder / f"{rank:06d}.clusters"
        for document, cluster in struct.iter_unpack("<2I", path.read_bytes() if path.exists() else b""):
            found[cluster].append(own[document])
    return sorted(map(sorted, found.values()))


if __name__ == "__main__":
    main(*sys.argv[1:])
