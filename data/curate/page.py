"""The curation report as a page: where documents went, what they look like, and what is left."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.page import Html, Page, code, link, strong, tag
from core.progress import count, quantity
from data.curate import browser, figures
from data.curate.browser import plain, shown
from data.curate.counts import SCORE_BINS
from data.curate.figures import NARROW, WIDE, measure, share

Report = Mapping[str, Any]
Samples = Sequence[Mapping[str, Any]]
LISTED = 15  # names beside each other in bars
UNITS = ("documents", "bytes")
NO_NAME = {"languages": "not identified", "licenses": "none given", "hosts": "no web address"}


def write_page(report: Report, samples: Samples, path: Path) -> None:
    """Writes report.html."""
    page = Page(
        f"Curation of {plain(report['input'])}",
        *_lead(report),
        footer="Made by Quintet's curate. The numbers are in report.json, the samples in samples.json, all that was "
        "dropped in dropped.jsonl.",
        style=STYLE + figures.STYLE + browser.STYLE,
        script=browser.SCRIPT,
    )
    page.tiles(_tiles(report))
    _flow(page, report)
    _look(page, samples)
    _steps(page, report, samples)
    _lengths(page, report)
    _origins(page, report)
    _duplicates(page, report)
    _diversity(page, report)
    page.section("Recipe")
    page.tree({f"{i}. {plain(step['step'])}": _settings(step) for i, step in enumerate(report["recipe"], 1)})
    page.write(path)


def _lead(report: Report) -> list[Any]:
    """Plain English: how much stays, and what takes the most away."""
    read, kept = report["read"], report["kept"]
    text = [
        f"Of {_documents(read['documents'])} with {quantity(read['bytes'])} of text ",
        strong(f"{kept['documents']:,} stay ({share(kept['documents'], read['documents'])})"),
        f" with {quantity(kept['bytes'])}: {report['train']['documents']:,} to train on, "
        f"{report['heldout']['documents']:,} held out. ",
        f"{report['conversations']:,} of them are conversations. " if report["conversations"] else "",
    ]
    drops = [(one["documents"], step["step"], one) for step in report["steps"] for one in step["dropped"]]
    if not drops:
        return [*text, "Nothing was dropped."]
    number, step, one = max(drops, key=lambda drop: drop[0])
    where = f" by {step}" if step and step != one["reason"] else ""
    text += [f"Most are dropped{where} as ", code(shown(one["reason"])), f": {number:,}."]
    return text


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    read, kept, hosts, diversity = (report[name] for name in ("read", "kept", "hosts", "diversity"))
    languages = [name for name, *_ in report["languages"]["kept"]["names"] if name]
    number = len(languages) + report["languages"]["kept"]["others"][0]
    return [
        ("Documents kept", f"{kept['documents']:,}", f"{share(kept['documents'], read['documents'])} of those read"),
        ("Text kept", quantity(kept["bytes"]), f"{share(kept['bytes'], read['bytes'])} of {quantity(read['bytes'])}"),
        ("Mean length", quantity(kept["bytes"] / max(1, kept["documents"])), "of a kept document"),
        ("Languages", f"{number:,}" if number else "-", ", ".join(languages[:6]) or NO_NAME["languages"]),
        ("Web hosts", f"{hosts['distinct']:,}" if hosts["distinct"] else "-", _effective(hosts)),
        ("Compression", f"{diversity['compression']['together']:.2f}", "bytes for a byte of Zstandard"),
    ]


def _effective(hosts: Mapping[str, Any]) -> str:
    return f"as even as {2 ** hosts['entropy']:,.0f} of equal size" if hosts["distinct"] else NO_NAME["hosts"]


def _flow(page: Page, report: Report) -> None:
    page.section("From what was read to what is kept")
    steps = _steps_of(report)
    kept = share(report["kept"]["documents"], report["read"]["documents"])
    last = {unit: f"{measure(report['kept'][unit], unit)} kept" for unit in UNITS}
    last["documents"] += f" ({kept})"
    last["bytes"] += f" ({share(report['kept']['bytes'], report['read']['bytes'])})"
    choice = []
    for unit in UNITS:
        checked = " checked" if unit == UNITS[0] else ""
        choice.append(Html(f'<input type="radio" name="unit" id="by-{unit}"{checked}>'))
        choice.append(tag("label", unit, for_=f"by-{unit}"))
    drawn = [
        tag(
            "div",
            tag("div", figures.flow(steps, unit, last[unit], WIDE), class_="wide"),
            tag("div", figures.flow(steps, unit, last[unit], NARROW), class_="narrow"),
            class_=f"by-{unit}",
        )
        for unit in UNITS
    ]
    page.put(tag("div", *choice, *drawn, class_="choice"))
    page.text(
        "Widths are to scale. Each share is of what reached the step. Samples are below, under ",
        link("Look at the data", "Look at the data"),
        ".",
    )


def _steps_of(report: Report) -> list[Mapping[str, Any]]:
    """Those of the recipe, and reading where it dropped something."""
    return [step for step in report["steps"] if step["step"] or step["dropped"]] or report["steps"]


def _look(page: Page, samples: Samples) -> None:
    page.section("Look at the data")
    page.text(
        "A few documents of every reason, always the same ones: those with the smallest hashes of their ids. Arrow "
        "keys go on and back."
    )
    browser.browser(page, samples)


def _steps(page: Page, report: Report, samples: Samples) -> None:
    page.section("Steps and reasons")
    there = browser.places(samples)
    rows = []
    for step in _steps_of(report):
        name, (came, went) = step["step"] or "reading", step["documents"]
        changed = _sample_link(f"{step['changed']:,}", there.get(("changed", step["step"], "")))
        sizes = [_size(size) for size in step["bytes"]]
        rows.append((code(shown(name)), came, came - went, share(came - went, came), changed, *sizes))
    page.table(["step", "documents in", "dropped", "share", "changed", "bytes in", "bytes out"], rows)
    rows = []
    for step in report["steps"]:
        for one in step["dropped"]:
            rows.append((
                _sample_link(one["reason"], there.get(("dropped", step["step"], one["reason"]))),
                code(shown(step["step"] or "reading")),
                one["documents"],
                share(one["documents"], report["read"]["documents"]),
                _size(one["bytes"]),
            ))  # fmt: skip
    if not rows:
        page.text("No document was dropped.")
        return
    page.table(["reason", "step", "documents", "of all read", "bytes"], sorted(rows, key=lambda row: -row[2]))


def _sample_link(text: str, place: str | None) -> Html:
    return tag("a", shown(text), href=f"#{place}") if place else shown(text)


def _lengths(page: Page, report: Report) -> None:
    page.section("Lengths and scores")
    # Bin 2 k begins at 2 ** k bytes.
    ticks = {2 * power: f"{2 ** (power % 10)} {('B', 'KiB', 'MiB', 'GiB')[power // 10]}" for power in range(0, 40, 4)}
    drawn = [figures.histogram("Length", report["lengths"], ticks, "bytes of UTF-8, log scale")]
    for name, bins in report["scores"].items():
        low, high = (end(i for own in bins.values() for i, _ in own) for end in (min, max))
        every = next(step for step in (2, 4, 10, 20, 40, 100, 200) if (high - low) / step <= 8)
        ticks = {i: f"{i / SCORE_BINS:g}" for i in range(-400, 401, every)}
        drawn.append(figures.histogram(plain(name.replace("_", " ")), bins, ticks, "score"))
    page.put(LEGEND)
    page.figures((drawing, "") for drawing in drawn)
    if report["scores"]:
        page.text("A dropped document has a score where it was dropped by the step that scores, or by a later one.")


def _origins(page: Page, report: Report) -> None:
    page.section("Languages and sources")
    kept, dropped = (
        {name: documents for name, documents, _ in report["languages"][fate]["names"]} for fate in ("kept", "dropped")
    )
    names = sorted(kept.keys() | dropped.keys(), key=lambda name: (-kept.get(name, 0) - dropped.get(name, 0), name))
    if names == [""]:
        page.text("No step of the recipe looked at the language, and none was given.")
    else:
        page.put(LEGEND)
        rows = [(name or NO_NAME["languages"], kept.get(name, 0), dropped.get(name, 0)) for name in names]
        page.put(_bars("language", rows))
        page.text("Of a dropped document it is the language that was known when it was dropped.")
    page.heading("Sources")
    rows = []
    for name, own in report["sources"].items():
        gone = sum(number for key, number in own.items() if key.startswith("dropped:"))
        documents, size = (sum(own.get(f"{split}_{unit}", 0) for split in ("train", "heldout")) for unit in UNITS)
        rows.append((code(shown(name)), documents, _size(size), gone, share(documents, documents + gone)))
    page.table(["source", "kept", "bytes", "dropped", "kept of all"], rows)
    for key, heading, head in (("licenses", "Licences", "licence"), ("hosts", "Web hosts", "host")):
        page.heading(heading)
        own, total = report[key], report["kept"]["documents"]
        rows = [(shown(name) if name else NO_NAME[key], documents, share(documents, total), _size(size))
                for name, documents, size in own["names"][:LISTED]]  # fmt: skip
        others = [own["others"][i] + sum(row[i] for row in own["names"][LISTED:]) for i in (1, 2)]
        if number := own["others"][0] + len(own["names"][LISTED:]):
            rows.append((f"{number:,} others", others[0], share(others[0], total), _size(others[1])))
        page.table([head, "documents kept", "share", "bytes"], rows)
    if report["hosts"]["approximate"]:
        page.text("There are so many hosts that the rarest were counted together.")


def _duplicates(page: Page, report: Report) -> None:
    page.section("Duplicates")
    if not report["duplicates"]:
        page.text("No duplicates were found, or the recipe does not look for them.")
    for step, clusters in report["duplicates"].items():
        copies = sum((size - 1) * number for size, number in clusters)
        number = sum(number for _, number in clusters)
        page.heading(plain(step))
        page.text(
            f"{_documents(copies)} {'is a copy' if copies == 1 else 'are copies'} of {number:,} that "
            f"{'stays' if number == 1 else 'stay'}. The largest cluster has {clusters[-1][0]:,} documents."
        )
        if (one_in := report["duplicates_one_in"][step]) > 1:
            page.text(f"These are estimates from one in {one_in:,} clusters.")
        bands: dict[int, int] = {}
        for size, own in clusters:
            band = size if size <= 4 else 1 << (size - 1).bit_length()
            bands[band] = bands.get(band, 0) + own
        rows = [(str(band) if band <= 4 else f"{band // 2 + 1:,} to {band:,}", bands[band], 0) for band in bands]
        page.put(_bars("documents of a cluster", rows, "clusters"))


def _diversity(page: Page, report: Report) -> None:
    page.section("Diversity")
    own, hosts = report["diversity"], report["hosts"]
    page.text(
        f"Measured on a sample of {_documents(own['documents'])}, {count(own['characters'])} characters of what is "
        "kept. Numbers compare with those of another corpus where the samples are about as large."
    )
    topics, (one, two, three) = own["topics"], own["distinct"]
    words = f"of {own['words']:,} words, split at white space"
    rows = [
        ("distinct words", f"{one:.1%}", words),
        ("distinct pairs of words", f"{two:.1%}", "the higher, the less is said twice"),
        ("distinct triples", f"{three:.1%}", "low where pages come from templates"),
        ("compression ratio", f"{own['compression']['together']:.2f}", "Zstandard over all of the sample"),
        ("the same, each document alone", f"{own['compression']['alone']:.2f}",
         "the difference is what documents share"),
        ("topic entropy", f"{topics['bits']:.2f} bits",
         f"as {2 ** topics['bits']:,.0f} documents without a word in common, of {topics['documents']:,}"),
    ]  # fmt: skip
    if hosts["distinct"]:
        rows.append(("entropy of hosts", f"{hosts['entropy']:.2f} bits", _effective(hosts)))
    page.table(["measure", "value", "what it says"], rows)
    page.text(
        "Topic entropy is the logarithm of the Vendi score over TF-IDF vectors: of the eigenvalues of the documents' "
        "similarities, the shares of latent topics. It and the words mean little in scripts without spaces."
    )


def _bars(head: str, rows: Sequence[tuple[str, int, int]], unit: str = "documents") -> Html:
    """A table with a bar in each row: name, what is kept, what is dropped."""
    rows = [*rows[:LISTED], *_rest(rows[LISTED:])]
    most = max((kept + dropped for _, kept, dropped in rows), default=1) or 1
    body = []
    for name, kept, dropped in rows:
        parts = [tag("i", style=f"width:{100 * own / most:.2f}%", class_=kind)
                 for own, kind in ((kept, "stays"), (dropped, "goes")) if own]  # fmt: skip
        number = f"{kept:,}" + (f" of {kept + dropped:,}" if dropped else "")
        cells = tag("th", shown(name), scope="row"), tag("td", *parts, class_="bar"), tag("td", number)
        body.append(tag("tr", *cells))
    caption = tag("caption", f"{unit} by {head}")
    return tag("table", caption, tag("tbody", *body), class_="bars")


def _rest(rows: Sequence[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    return [(f"{len(rows):,} others", sum(row[1] for row in rows), sum(row[2] for row in rows))] if rows else []


def _size(number: int) -> str:
    """Bytes, in one piece within a table."""
    return quantity(number).replace(" ", "\u00a0")


def _documents(number: int) -> str:
    return f"{number:,} document{'' if number == 1 else 's'}"


def _settings(step: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in step.items() if name != "step"}


MARKS = [tag("span", "■", class_=kind) for kind in ("stays", "goes")]
LEGEND = tag("p", MARKS[0], " kept ", MARKS[1], " dropped", class_="key")
STYLE = """
.choice input { position: absolute; opacity: 0; pointer-events: none; }
.choice label { display: inline-block; padding: .3rem .8rem; border: 1px solid var(--other); cursor: pointer;
  font-size: .88rem; margin: .5rem 0 1rem; }
.choice label:first-of-type { border-radius: .35rem 0 0 .35rem; border-right: 0; }
.choice label:last-of-type { border-radius: 0 .35rem .35rem 0; }
.choice input:checked + label { background: var(--blue); border-color: var(--blue); color: var(--surface); }
.choice input:focus-visible + label { outline: 2px solid var(--ink); outline-offset: 2px; }
#by-documents:checked ~ .by-bytes, #by-bytes:checked ~ .by-documents { display: none; }
.key { font-size: .85rem; color: var(--muted); margin: 0 0 .5rem; }
.key .stays, .bars .stays { color: var(--blue); }
.key .goes, .bars .goes { color: var(--orange); }
.bars { width: 100%; margin: .5rem 0 1.25rem; }
.bars caption { text-align: left; font-size: .82rem; color: var(--muted); padding-bottom: .3rem; }
.bars th { color: var(--ink); font-weight: 400; width: 1%; max-width: 14rem; overflow: hidden;
  text-overflow: ellipsis; }
.bars td, .bars th { border: 0; }
.bars td:last-child { width: 1%; white-space: nowrap; text-align: right; font-variant-numeric: tabular-nums; }
.bars .bar { display: flex; padding-top: .62rem; }
.bars i { height: .7rem; background: currentColor; min-width: 1px; }
"""
