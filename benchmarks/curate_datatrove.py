"""Datatrove's side of `benchmarks/curate.py`, in an environment of its own: what each filter decides, and its time.

python benchmarks/curate_datatrove.py documents.jsonl.gz language.ftz found.json
"""

import collections
import functools
import gzip
import json
import sys
import time

import datatrove.utils.lid
import datatrove.utils.text
import tldextract
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    LanguageFilter,
    URLFilter,
)
from datatrove.pipeline.formatters import PIIFormatter
from resident_memory import resident

tldextract.TLDExtract = functools.partial(tldextract.TLDExtract, suffix_list_urls=())  # without a download
LANGUAGES = {"en": "eng", "de": "deu", "fr": "fra", "es": "spa", "it": "ita", "pt": "por"}


def main(documents: str, urls: str, model: str, found: str) -> None:
    datatrove.utils.lid.FT176LID.MODEL_URL = model  # lid.176.bin is not in any package
    with gzip.open(documents, "rt") as file:
        rows = [json.loads(line) for line in file]
    decided: dict[str, dict[str, str]] = collections.defaultdict(dict)
    seconds: dict[str, float] = {}

    def run(name: str, filters: list, rows: list) -> None:
        """The filters one after the other on each document; the first that drops it names the reason."""
        given = [Document(text=row["text"], id=row["id"], metadata={"url": row["url"]}) for row in rows]
        given[0:0] = [Document(text="It's a warm-up (e.g. of 3 words)...", id="", metadata={})]
        datatrove.utils.text.split_into_parts.cache_clear()
        for number, document in enumerate(given):
            if number == 1:
                began = time.process_time()
            reason = ""
            for each in filters:
                kept = each.filter(document)
                kept, why = kept if isinstance(kept, tuple) else (kept, "language")
                if not kept:
                    reason = why
                    break
            if not document.id:
                continue
            decided[name][document.id] = reason
            if name.endswith("c4") and not reason:
                decided[f"{name} text"][document.id] = document.text
        seconds[name] = time.process_time() - began

    by_language = collections.defaultdict(list)
    for row in rows:
        by_language[row["language"]].append(row)
    for language, own in sorted(by_language.items()):
        words = {"language": LANGUAGES[language]}
        rules = {
            "repetition": GopherRepetitionFilter(**words),
            "quality": GopherQualityFilter(**words),
            "c4": C4QualityFilter(filter_no_terminal_punct=False, **words),
            "fineweb": FineWebQualityFilter(**words),
        }
        find = LanguageFilter(languages=[language])
        for name in ("chain", "chain again"):  # the first meets the words for the first time
            run(f"{language} {name}", [find, *rules.values()], own)
        for name, rule in {"language": find, **rules}.items():
            run(f"{language} {name}", [rule], own)
    replace, began = PIIFormatter(), time.process_time()
    decided["pii"] = {row["id"]: "changed" if replace.format(row["text"]) != row["text"] else "" for row in rows}
    seconds["pii"] = time.process_time() - began
    with open(urls) as file:
        addresses = json.load(file)
    before, refuse = resident(), URLFilter()
    refuse.filter(Document(text="", id="", metadata={"url": "http://a.org/"}))
    began = time.process_time()
    for url in addresses:
        kept = refuse.filter(Document(text="", id="", metadata={"url": url}))
        decided["url"][url] = kept[1] if isinstance(kept, tuple) else ""
    seconds["url"] = time.process_time() - began
    with open(found, "w") as file:
        json.dump({"decided": decided, "seconds": seconds, "url_memory": resident() - before}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
