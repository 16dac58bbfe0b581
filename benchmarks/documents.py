"""Documents for `make bench-curate` and `make bench-minhash`: the sections of Pro Git in six languages, 3 MB.

    git clone https://github.com/progit/progit
    python benchmarks/documents.py progit documents.jsonl.gz

Without listings; what is not yet translated, and what is shorter than a web page, is left out.
"""

import gzip
import json
import re
import sys
from pathlib import Path

from data.curate.language import Language
from data.curate.partition import to_batch
from data.document import Document

FOLDERS = {"en": "en", "de": "de", "es": "es", "fr": "fr", "it": "it", "pt": "pt-br"}
HEADING = re.compile(r"^#{1,3} (?=.*$)", re.MULTILINE)
LISTING = re.compile(r"^(\t| {4}).*\n?", re.MULTILINE)
LEAST = 500  # characters


def main(book: str, documents: str) -> None:
    with gzip.open(documents, "wt", encoding="utf-8") as file:
        for language, folder in FOLDERS.items():
            for document in sections(Path(book) / folder, language):
                row = {"id": document.id, "url": document.url, "text": document.text, "language": language}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def sections(folder: Path, language: str) -> list[Document]:
    """Those in the language."""
    found = []
    for path in sorted(folder.rglob("*.markdown")):
        text = LISTING.sub("", path.read_text(encoding="utf-8-sig").replace("\r\n", "\n"))
        for number, section in enumerate(HEADING.split(text)):
            name = f"{language}/{path.parent.name}/{path.stem}/{number}"
            prose = re.sub(r"\n{3,}", "\n\n", section).strip()
            if len(prose) >= LEAST:
                found.append(Document(name, prose, "", f"https://git-scm.com/book/{name}"))
    reasons = Language(languages=(language,))(to_batch(found)).reasons
    return [document for document, reason in zip(found, reasons) if reason is None]


if __name__ == "__main__":
    main(*sys.argv[1:])
