"""The card of a dataset repository: what the Hub and `datasets` read at its head, and what people read below."""

import collections
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from core.files import atomic_write
from data.document import SCHEMA

MOST = 20  # names in a table
OTHERS = "..."
SIZES = ((1000, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
         (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"), (10**11, "10B<n<100B"),
         (10**12, "100B<n<1T"))  # fmt: skip
# Licences that the Hub knows by the name that SPDX has, in lower case; the others are `other` there.
KNOWN = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "cc-by-2.0",
    "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "ecl-2.0", "epl-1.0",
    "epl-2.0", "gpl-2.0", "gpl-3.0", "isc", "lgpl-2.1", "lgpl-3.0", "mit", "mpl-2.0", "ms-pl", "ncsa", "ofl-1.1",
    "osl-3.0", "postgresql", "unlicense", "wtfpl", "zlib",
}  # fmt: skip
COLUMNS = {
    "id": "unique, the same whenever the corpus is made",
    "text": "the document",
    "source": "which of the inputs it is from",
    "url": "where it was, or the file and record that it was read from",
    "language": "ISO 639-1, empty where unknown",
    "license": "of the document, SPDX where there is one, empty where unknown",
    "meta": "JSON: what else is known, such as scores and dates; of a conversation its `messages`",
}
Reports = Iterable[Mapping[str, Any]]


class Size(NamedTuple):
    """Of a split."""

    documents: int
    bytes: int  # in memory, as Arrow holds it


Splits = Mapping[str, Size]


def write_card(path: Path, splits: Splits, reports: Reports, recipe: list[str]) -> None:
    """Writes the card of a corpus; `reports` are those of curation, `recipe` the names of its steps."""
    languages, licenses = _together(reports, "languages", "kept"), _together(reports, "licenses")
    with atomic_write(path, "w") as file:
        file.write("\n".join([*_head(splits, languages, licenses), *_body(splits, languages, licenses, recipe), ""]))


def _together(reports: Reports, key: str, fate: str = "") -> collections.Counter:
    """Documents by name over all generations, those of names that a report does not list as `OTHERS`."""
    found: collections.Counter = collections.Counter()
    for report in reports:
        own = report[key][fate] if fate else report[key]
        found.update({name: documents for name, documents, _ in own["names"]})
        found[OTHERS] += own["others"][1]
    return +found


def _head(splits: Splits, languages: collections.Counter, licenses: collections.Counter) -> list[str]:
    total = sum(size.documents for size in splits.values())
    size = next((name for most, name in SIZES if total < most), "n>1T")
    codes = sorted(name for name in languages if re.fullmatch("[a-z]{2,3}", name))
    return [
        "---",
        "pretty_name: A corpus curated by Quintet",
        *_list("language", codes),
        *_list("license", sorted({_license(name) for name in licenses})),
        *_list("size_categories", [size]),
        *_list("task_categories", ["text-generation"]),
        "configs:",
        "- config_name: default",
        "  data_files:",
        *(line for split in splits for line in (f"  - split: {split}", f"    path: data/{split}-*")),
        "dataset_info:",  # `datasets` compares its counts with what it loads
        "  features:",
        *(line for name in SCHEMA.names for line in (f"  - name: {name}", "    dtype: string")),
        "  splits:",
        *(line for split, size in splits.items() for line in _described(split, size)),
        "---",
    ]


def _described(split: str, size: Size) -> list[str]:
    return [f"  - name: {split}", f"    num_bytes: {size.bytes}", f"    num_examples: {size.documents}"]


def _list(key: str, values: list[str]) -> list[str]:
    """In quotes: to YAML the language of Norway is a denial."""
    return [f"{key}:", *(f"- {json.dumps(value)}" for value in values)] if values else []


def _license(name: str) -> str:
    """As the Hub calls it."""
    return "unknown" if not name else name.lower() if name.lower() in KNOWN else "other"


def _body(
    splits: Splits, languages: collections.Counter, licenses: collections.Counter, recipe: list[str]
) -> list[str]:
    return [
        "",
        "# A corpus curated by Quintet",
        "",
        "Text for pretraining, in hash order of the documents' ids; a hash of these chose the held-out ones too.",
        "",
        *_table("split", "documents", {split: f"{size.documents:,}" for split, size in splits.items()}),
        *_table("column, a string each", "", COLUMNS),
        "    datasets.load_dataset(FOLDER)",
        "",
        f"Steps of its recipe: {', '.join(recipe) or 'none'}.",
        "",
        "## Licences",
        "",
        "Each document has its own, in the column `license`; the works stay those of their authors.",
        "",
        *_table("licence", "documents", _ranked(licenses)),
        "## Languages",
        "",
        *_table("language", "documents", _ranked(languages)),
    ]  # fmt: skip


def _ranked(counts: collections.Counter) -> dict[str, str]:
    """The most frequent first, and the others together."""
    listed = ((name, number) for name, number in counts.items() if name != OTHERS)
    ranked = sorted(listed, key=lambda one: (-one[1], one))
    rest = counts[OTHERS] + sum(number for _, number in ranked[MOST:])
    shown = {_plain(name) or "unknown": f"{number:,}" for name, number in ranked[:MOST]}
    return shown | ({"others": f"{rest:,}"} if rest else {})


def _plain(name: str) -> str:
    """What a stranger called a licence or a language, without what Markdown or HTML would make of it."""
    return re.sub(r"[^\w .,:;/+()-]", " ", name)[:100].strip()


def _table(left: str, right: str, rows: Mapping[str, str]) -> list[str]:
    return [f"| {left} | {right} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), ""]
