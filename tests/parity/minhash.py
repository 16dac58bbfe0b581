"""Runs in an environment with datatrove 0.10.1: its MinHash signatures of the texts of tests/data/curate.

    .venv-datatrove/bin/python tests/parity/minhash.py    writes minhash_golden.json anew, after a change of its texts

A signature is told by a hash of its integers, little-endian, one bucket after the other, or null. Imports nothing of
ours.
"""

import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.utils.hashing import HashConfig

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "curate" / "minhash_golden.json"
LANGUAGES = {"en": "eng", "de": "deu", "fr": "fra", "es": "spa", "it": "ita", "pt": "por", "ru": "rus"}


def main() -> None:
    config = MinhashConfig(hash_config=HashConfig(precision=64, hash_fc="sha1"))
    cases = json.loads(GOLDEN.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        steps = {ours: MinhashDedupSignature(folder, config, theirs) for ours, theirs in LANGUAGES.items()}
    for case in cases:
        step = steps[case["language"]]
        runs = step.get_shingles(case["text"])
        case["signature"] = None
        if runs.size:
            numbers = np.array(step.get_signature(runs), "<u8").tobytes()
            case["signature"] = hashlib.blake2b(numbers, digest_size=16).hexdigest()
    GOLDEN.write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
