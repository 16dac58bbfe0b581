"""An exported corpus beside Hugging Face datasets: the same documents, loaded and streamed.

    python tests/parity/corpus.py --peer-python=...

The corpus is the Python installation and conversations about it. Prints a table; exits 1 where documents differ.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from data.config import DataConfig
from data.curate.engine import curate
from data.document import read_documents
from data.export import export_data


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="an interpreter with datasets")
    python = parser.parse_args().peer_python
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        config = DataConfig(sources={"python": "", "chat": "python:chat"})
        curate(config, place / "work")
        folder = export_data(config, place / "work") / "parquet"
        for split in ("train", "heldout"):
            shards = sorted((place / "work" / "curated").glob(f"{split}-*.parquet"))
            documents = (document for shard in shards for document in read_documents(shard))
            lines = [json.dumps({**vars(one), "meta": json.dumps(one.meta)}) for one in documents]
            (place / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        peer = [python, Path(__file__).with_name("corpus_peer.py"), folder, place, place / "cache"]
        return subprocess.run(peer, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}).returncode


if __name__ == "__main__":
    sys.exit(main())
