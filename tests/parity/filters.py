"""Runs in an environment with datatrove 0.10.1: what its filters decide of the texts of filter_cases.py.

    .venv-datatrove/bin/python tests/parity/filters.py    writes filter_golden.json anew, after a change of its texts

Of each text the reasons of four filters, each alone, or null; and of what C4's leaves of it a hash. Both files lie in
tests/data/curate. Imports nothing of ours.
"""

import hashlib
import json
import sys
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)

CASES = Path(__file__).resolve().parents[1] / "data" / "curate"
sys.path.insert(0, str(CASES))
import filter_cases

FILTERS = {
    "repetition": GopherRepetitionFilter(),
    "quality": GopherQualityFilter(),
    "c4": C4QualityFilter(filter_no_terminal_punct=False),
    "fineweb": FineWebQualityFilter(),
}


def decide(text: str) -> dict[str, str | None]:
    """The reason of each filter, and what is left."""
    found = {}
    for name, rule in FILTERS.items():
        document = Document(text=text, id="")
        kept = rule.filter(document)
        found[name] = None if kept is True else kept[1]
        if name == "c4" and kept is True:
            found["left"] = hashlib.blake2b(document.text.encode(), digest_size=8).hexdigest()
    return found


def main() -> None:
    decided = {name: decide(text) for name, text in filter_cases.texts().items()}
    lines = [f"{json.dumps(name)}: {json.dumps(reasons)}" for name, reasons in decided.items()]
    (CASES / "filter_golden.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
