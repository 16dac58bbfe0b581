"""The numbers of a curation as plain data, and the three files that it leaves to look at.

curated/report.json    the numbers
curated/samples.json   documents to look at: of every reason, of what steps changed, of what is kept
curated/report.html    both as a page
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.files import read_json, write_json
from data.config import DataConfig
from data.curate.counts import Names, entropy
from data.curate.diversity import diversity
from data.curate.page import write_page
from data.curate.recipe import build_recipe, recipe_spec
from data.curate.tally import Tally
from data.sources.tfds import is_tfds

MOST = 100  # names that are listed, and reasons of a step
PAGE, NUMBERS, SAMPLES = "report.html", "report.json", "samples.json"
IN, OUT = ("documents_in", "bytes_in"), ("documents_out", "bytes_out")


def write_report(folder: Path, tally: Tally, config: DataConfig) -> list[Path]:
    """Writes the page and its data; returns the paths of the data, of which the page can be drawn again."""
    numbers, samples = folder / NUMBERS, folder / SAMPLES
    found = report(tally, config)
    write_json(numbers, found)
    write_json(samples, sampled(tally, [step["step"] for step in found["steps"]]))
    draw(folder)
    return [numbers, samples]


def draw(folder: Path) -> Path:
    """Writes the page from its data; returns its path."""
    write_page(read_json(folder / NUMBERS), read_json(folder / SAMPLES), folder / PAGE)
    return folder / PAGE


def report(tally: Tally, config: DataConfig) -> dict[str, Any]:
    """All that the page says but for the samples."""
    names = list(build_recipe(config.recipe))
    steps = flow(tally, names)
    train, heldout = ({key: own[key] for key in ("documents", "bytes")} for own in tally.splits.values())
    hosts, known = tally.hosts, [size[0] for name, size in tally.hosts.sizes.items() if name]
    return {
        "input": _input(config),
        "recipe": [{**spec, "step": name} for name, spec in zip(names, recipe_spec(config.recipe))],
        "read": {"documents": steps[0]["documents"][0], "bytes": steps[0]["bytes"][0]},
        "kept": {key: train[key] + heldout[key] for key in train},
        "train": train,
        "heldout": heldout,
        "conversations": tally.conversations,
        "steps": steps,
        "sources": tally.summary()["sources"],
        "languages": {fate: _named(own) for fate, own in tally.languages.items()},
        "licenses": _named(tally.licenses),
        "hosts": {
            **_named(hosts),
            "distinct": len(known),
            "entropy": round(entropy([*known, hosts.others[0]]), 2),
            "approximate": bool(hosts.others[0]),
        },
        "lengths": {fate: _binned(own) for fate, own in tally.lengths.items()},
        "scores": {
            name: {fate: _binned(bins) for fate, bins in own.items()} for name, own in sorted(tally.scores.items())
        },
        "duplicates": {step: _binned(own.sizes()) for step, own in sorted(tally.copies.items())},
        "duplicates_one_in": {step: own.one_in for step, own in sorted(tally.copies.items())},
        "diversity": diversity(tally.text.texts()),
    }


def flow(tally: Tally, recipe: Iterable[str]) -> list[dict[str, Any]]:
    """Documents and bytes into and out of each step, what it drops by reason, and how many texts it changed.

    First comes what the sources could not read, last what the merge dropped: repeated ids and duplicates.
    """
    recipe, counts = list(recipe), tally.steps.counts
    drops: dict[str, dict[str, list[int]]] = collections.defaultdict(dict)
    for (step, reason), size in tally.reasons.items():
        drops[step][reason] = size
    in_parts = [name for name in recipe if name in counts and name not in tally.merged]
    in_merge = [*sorted(tally.merged - set(recipe)), *(name for name in recipe if name not in in_parts)]
    in_sources = ["", *sorted(drops.keys() - {"", *in_parts, *in_merge})]

    unread = [size for name in in_sources for size in drops[name].values()]
    before = tuple(counts[""][key] + sum(size[i] for size in unread) for i, key in enumerate(OUT))
    steps = []
    for name in (*in_sources, *in_parts, *in_merge):
        after = tuple(own - sum(size[i] for size in drops[name].values()) for i, own in enumerate(before))
        if name in in_parts:  # which may change texts, so that fewer bytes go out than in
            before, after = (tuple(counts[name][key] for key in keys) for keys in (IN, OUT))
        steps.append(_step(name, before, after, drops[name], counts[name]["changed"] if name in in_parts else 0))
        before = after
    return steps


def _step(
    name: str, before: tuple[int, ...], after: tuple[int, ...], drops: Mapping[str, list[int]], changed: int
) -> dict[str, Any]:
    """Documents and bytes: before and after, and of each reason, the most frequent first."""
    ranked = sorted(drops.items(), key=lambda pair: (-pair[1][0], pair[0]))
    return {
        "step": name,
        "documents": [before[0], after[0]],
        "bytes": [before[1], after[1]],
        "changed": changed,
        "dropped": [{"reason": reason, "documents": size[0], "bytes": size[1]} for reason, size in ranked[:MOST]],
        "other_reasons": [len(ranked[MOST:]), *(sum(size[i] for _, size in ranked[MOST:]) for i in range(2))],
    }


def sampled(tally: Tally, steps: Sequence[str]) -> list[dict[str, Any]]:
    """All samples, and of how many documents they are: dropped in order of the steps, changed, kept."""
    groups = []
    for group in tally.samples.plain():
        if group["kind"] == "kept":
            of = sum(split["documents"] for split in tally.splits.values())
        elif group["kind"] == "changed":
            of = tally.steps.counts[group["step"]]["changed"]
        else:
            of = tally.reasons[group["step"], group["reason"]][0]
        groups.append({**group, "of": of, "samples": [sample for _, sample in group["samples"]]})
    places = {name: place for place, name in enumerate(steps)}
    kinds = ("dropped", "changed", "kept")
    return sorted(groups, key=lambda one: (kinds.index(one["kind"]), places.get(one["step"], 0), -one["of"]))


def _input(config: DataConfig) -> str:
    """What was curated, without the place where it lay."""
    if config.sources:
        return ", ".join(config.sources)
    if is_tfds(config.path):
        return "/".join(config.path.split("/")[-3:])  # name, config and version
    return (Path(config.path).resolve().name or config.path) if config.path else "the Python installation"


def _named(names: Names) -> dict[str, Any]:
    """The most frequent names, and all others together: [names, documents, bytes]."""
    ranked = names.ranked()
    rest = [size for _, size in ranked[MOST:]] + [names.others]
    return {
        "names": [[name, *size] for name, size in ranked[:MOST]],
        "others": [len(ranked[MOST:]), *(sum(size[i] for size in rest) for i in range(2))],
    }


def _binned(bins: Mapping[Any, int]) -> list[list[int]]:
    """Pairs of bin and count, in order."""
    return sorted([int(number), count] for number, count in bins.items())
