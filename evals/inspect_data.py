"""The inspect-data verb: what a run will read, before it is paid for, from config and token shards alone.

The numbers are those of `data/inspect.py`, the pictures those of `evals/figures_data.py`. For a run under way whose
config has changed, the page shows what `launch.py train --amend` would make of it.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.files import Stage, first_difference
from core.page import Page, code, strong
from core.progress import count, say
from data.corpus import POOL
from data.history import to_json
from data.inspect import (
    PACKINGS,
    Outcomes,
    Part,
    Reading,
    autocorrelation,
    fertility,
    measure,
    of_part,
    parts_of,
    points,
    readings,
    sequence,
    spread,
    whole,
)
from data.mixture import BLOCK
from data.plan import Plan
from data.shards import TokenShards
from evals import draw
from evals import figures_data as figures
from evals.schedule import schedule_section
from train import run as train_run
from train.run import Run, open_plan

VERSION = 3
FOLDER = "inspect-data"
BARS, BANDS = 12, 6  # sources that a picture shows one by one
EPOCHS = 4  # "up to 4 epochs of repeated data yield negligible changes to loss" (Muennighoff et al. 2023)
PADDING = 0.01  # share of slots from which on the page says so


class Change(NamedTuple):
    """What the config asks of a run under way and the run's history does not have yet."""

    step: int  # after which it would hold
    differs: str


def inspect_data(run: Run, workdir: Path) -> Path:
    """Makes `workdir/inspect-data/inspect-data.html` and a PNG of every picture in it; returns the page's path."""
    plan = open_plan(run, workdir, amend=True)
    change = change_of(plan, workdir / train_run.FOLDER)
    spec = {"version": VERSION, "seed": run.seed, "history": to_json(plan.history), "change": change}
    spec["optim"] = dataclasses.asdict(run.optim)
    spec["fill_in_the_middle"] = dataclasses.asdict(run.objective.fill_in_the_middle)
    stage = Stage(workdir / FOLDER, {**spec, "documents": plan.corpus.generations}, stale="replace")
    path = stage.folder / "inspect-data.html"
    if stage.finished:
        say(f"inspect-data: {stage.folder} is up to date")
        return path
    parts, read = parts_of(plan), readings(plan)
    outcomes, counted = measure(parts)
    title, footer = f"Data of {workdir.resolve().name}", f"Made from {workdir.resolve()}"
    sheet = draw.Sheet(Page(title, *_lead(plan), footer=footer))
    _history(sheet.page, plan, change)
    _notices(sheet.page, plan, parts, read, outcomes)
    sheet.page.tiles(_tiles(plan, parts, read, outcomes))
    _stages(sheet, parts)
    sheet.page.section("Schedule")
    schedule_section(sheet, run.optim, run.batches)
    _mixture(sheet, plan, parts)
    _order(sheet, plan, parts)
    _rows(sheet, parts, outcomes, counted)
    _epochs(sheet, plan, read)
    _documents(sheet, plan, parts)
    summary = {"steps": plan.steps, "tokens": plan.tokens, "epochs": {name: own.epochs for name, own in read.items()}}
    stage.finish(sheet.write(path), summary)
    most = max(read, key=lambda name: read[name].epochs)
    say(
        f"inspect-data: {plan.steps:,} steps, {count(plan.tokens)} tokens, {whole(parts, outcomes).padding:.2%} "
        f"padding, at most {figures.times(read[most].epochs)} epochs ({shown(most)})"
        + (f", amended after step {change.step:,}: {path}" if change else f": {path}")
    )
    return path


def change_of(plan: Plan, folder: Path) -> Change | None:
    """How a plan departs from the history of the run; None where it does not, or nothing is trained yet."""
    recorded = train_run.recorded_history(folder) or plan.history
    if recorded == plan.history:
        return None
    old, new = (
        {"stages": r["stages"], "max_epochs": r["max_epochs"]} for r in to_json((recorded[-1], plan.history[-1]))
    )
    differs = [first_difference(old, new)] if old != new else []
    if more := len(plan.history[-1].documents) - len(recorded[-1].documents):
        differs.append(f"{more} more in data.added")
    return Change(plan.history[-1].step, "; ".join(differs) or "no checkpoint is left")


def shown(name: str) -> str:
    """A source as the page calls it."""
    return name or "all documents"


def _lead(plan: Plan) -> list[Any]:
    shards = plan.corpus.shards
    largest = np.argsort(-np.bincount(shards.source_of, shards.lengths, len(shards.source_names)))[:5]
    names = [code(shards.source_names[index]) for index in largest]
    listed = [part for name in names for part in (", ", name)][1:]
    more = f" and {len(shards.source_names) - 5} more" if len(shards.source_names) > 5 else ""
    amended = len(plan.history) > 1
    return [
        f"What {plan.steps:,} steps in {_stages_of(plan)} read: {count(plan.tokens)} tokens, out of a corpus of "
        f"{count(int(shards.lengths.sum()))} tokens in {len(shards):,} documents (",
        *listed,
        f"{more}). Counted from the {'history of the run' if amended else 'plan of the run'} and the token shards.",
    ]


def _stages_of(plan: Plan) -> str:
    stages = len(plan.history[-1].stages)
    return f"{stages} stages" if stages > 1 else "one stage"


def _history(page: Page, plan: Plan, change: Change | None) -> None:
    """What the run was asked after it began, and what it would be asked now."""
    if change:
        when = f"hold after step {change.step:,}, the last that is saved" if change.step else "begin the run anew"
        what, verb = f"the config changes the run ({change.differs}). ", code("launch.py train --amend")
        would = f" would make it now, when the change would {when}."
        page.notice(strong("Not yet so: "), what, "This page shows it as ", verb, would)
    for record in plan.history[1 : -1 if change else None]:
        what = f"{record.skip:,} batches are left out" if record.skip else "the config was amended"
        page.notice(f"History: after step {record.step:,} {what}.")


def _notices(page: Page, plan: Plan, parts: Sequence[Part], read: dict[str, Reading], outcomes: Outcomes) -> None:
    """What to think about before the run is paid for."""
    often = [f"{shown(name)} ({figures.times(own.epochs)})" for name, own in read.items() if own.epochs > EPOCHS]
    if often:
        cost = "Up to 4 epochs cost little, more bring less and less (Muennighoff et al. 2023, arXiv:2305.16264)."
        page.notice(strong(f"Read more than {EPOCHS} times: "), _listed(often), ". ", cost)
    if dry := [f"{shown(name)} (step {own.dry:,})" for name, own in read.items() if own.dry is not None]:
        page.notice(strong("Runs dry: "), _listed(dry), ". From that step on the other sources take its share.")
    for number, part in enumerate(parts):
        other = PACKINGS[part.stage.packing == "split"]
        own, others = (of_part(number, part, packing, outcomes) for packing in (part.stage.packing, other))
        if own.padding > PADDING:
            lost = f"Stage {part.label} pads {own.padding:.1%} of its slots, packed by {part.stage.packing}. "
            instead = f"{other} would pad {others.padding:.1%} and cut {others.cut:.0%} of the documents instead of "
            page.notice(strong(lost), instead, f"{own.cut:.0%}.")
        total = sum(part.stage.mixture.values())
        if part.stage.mixture and abs(total - 1) > 1e-9:
            page.notice(f"The weights of stage {part.label} sum to {total:.6g}; they are normalised.")
    names = plan.corpus.shards.source_names
    if POOL not in read and (never := [name for name in names if name not in read]):
        page.notice(strong("Never read: "), _listed(never), ". No mixture names it.")


def _listed(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _tiles(plan: Plan, parts: Sequence[Part], read: dict[str, Reading], outcomes: Outcomes) -> list[tuple[str, ...]]:
    over_all, most = whole(parts, outcomes), max(read, key=lambda name: read[name].epochs)
    least = min(read, key=lambda name: read[name].epochs)
    return [
        ("Steps", f"{plan.steps:,}", _stages_of(plan)),
        ("Tokens", count(plan.tokens), "padding included"),
        ("Padding", f"{over_all.padding:.2%}", "of slots"),
        ("Predicted", f"{over_all.predicted:.2%}", "of slots have weight 1"),
        ("Most epochs", figures.times(read[most].epochs), shown(most)),
        ("Fewest epochs", figures.times(read[least].epochs), shown(least)),
    ]


def _stages(sheet: draw.Sheet, parts: Sequence[Part]) -> None:
    sheet.page.section("Stages")
    rows = []
    for part in parts:
        stage, steps = part.stage, part.end - part.first
        asked = sorted(part.asked.items(), key=lambda item: -item[1])
        mixture = _listed([f"{shown(name)} {weight:.2%}" for name, weight in asked])
        tokens = steps * stage.rows * stage.row_length
        rows.append(
            (part.label, part.first + 1, part.end, tokens, stage.rows, stage.row_length, stage.packing, mixture)
        )
    head = ["stage", "first step", "last step", "tokens", "rows", "row length", "packing", "mixture, normalised"]
    sheet.page.table(head, rows)


def _mixture(sheet: draw.Sheet, plan: Plan, parts: Sequence[Part]) -> None:
    sheet.page.section("Mixture")
    edges, names, read_SP, a_point = points(plan, parts)
    if names == [POOL]:
        _pool(sheet, plan.corpus.shards)
        return
    share_SP = read_SP / read_SP.sum(axis=0)
    bands, label = _bands(names, read_SP.sum(axis=1))
    starts = []
    for part in parts:
        asked = [sum(part.asked.get(names[index], 0) for index in band) for band in bands]
        starts.append((part.first, f"stage {part.label}", np.array(asked)))
    rows = []
    for part in parts:
        inside = (edges[:-1] >= part.first) & (edges[1:] <= part.end)
        for name, share in part.shares.items():
            asked, at_points = part.asked[name], share_SP[names.index(name), inside]
            worst = float(np.abs(at_points - asked).max())
            rows.append((part.label, code(shown(name)), 100 * asked, 100 * share, 100 * (share - asked), 100 * worst))
    per = f"about {a_point:,} steps" if a_point > 1 else "a step"
    largest = max(row[-1] for row in rows)
    caption = f"A point is {per}. Dashed: the weights asked; a point is at most {largest:.2f} percentage points off."
    if any(len(segment.mixture.weights) < len(part.asked) for part in parts for segment in part.segments):
        caption += " A source that has run dry gives nothing more."
    shares = np.stack([share_SP[band].sum(axis=0) for band in bands])
    make = functools.partial(figures.mixture, edges, label, shares, starts)
    sheet.figure("mixture", make, "Share of each source in the rows read, over the steps", caption)
    head = ["stage", "source", "asked, %", "read, %", "difference", "largest at a point"]
    sheet.table("Every stage and source", head, rows)


def _pool(sheet: draw.Sheet, shards: TokenShards) -> None:
    tokens = np.bincount(shards.source_of, shards.lengths, len(shards.source_names)).astype(int)
    sheet.page.text(
        "No weights are asked: all documents are one pool, where each source has its share of the tokens."
    )
    rows = [
        (code(shards.source_names[i]), int(tokens[i]), float(100 * tokens[i] / tokens.sum()))
        for i in np.argsort(-tokens)
    ]
    sheet.table("Sources", ["source", "tokens", "share, %"], rows)


def _bands(names: Sequence[str], weights: np.ndarray, most: int = BANDS) -> tuple[list[list[int]], list[str]]:
    """The largest sources one by one, the others together: indices of each, and what they are called."""
    order = np.argsort(-np.asarray(weights), kind="stable").tolist()
    alone = order if len(order) <= most - 1 else order[: most - 1]
    others = order[len(alone) :]
    bands, label = [[index] for index in alone], [shown(names[index]) for index in alone]
    return ([*bands, others], [*label, f"{len(others)} others"]) if others else (bands, label)


def _order(sheet: draw.Sheet, plan: Plan, parts: Sequence[Part]) -> None:
    sheet.page.section("Order")
    drawn, rows, alone, pool, all_pool = {}, [], [], False, True
    for index, part in enumerate(parts):
        found, batch = sequence(part, plan), part.stage.rows
        if found is None or len(found[0]) < 64 or len(np.unique(found[0])) < 2:
            alone.append(part.label)
            continue
        sources_J, pool, all_pool = found[0], pool or POOL in part.asked, all_pool and POOL in part.asked
        lags = min(2 * batch, len(sources_J) // 4, 4096)
        curve, band = autocorrelation(sources_J, lags)
        ratio = spread(sources_J, batch)
        above = f"{int((curve > band).sum()):,} of {lags:,}"
        rows.append((part.label, len(sources_J), above, f"{band:.4f}", "-" if ratio is None else f"{ratio:.3f}"))
        title = "Autocorrelation of sources" + (f", stage {part.label}" if len(parts) > 1 else "")
        alt = f"{title}: {above} lags above the 95% band of independent rows"
        if index < BARS:
            drawn[f"autocorrelation-{index + 1}"] = figures.autocorrelation(curve, band, batch, title), alt
    if alone:
        one = "reads one source, or too few rows to tell: nothing is mixed there"
        sheet.page.text(f"Stage {_listed(alone)} {one}.")
    if not rows:
        return
    sheet.small(drawn)
    sheet.page.text(
        "Whether rows of a source come in clumps: the autocorrelation of which source a row is from, averaged by "
        "share. Of independent rows, 19 lags of 20 lie in the band, and one of 40 above."
        + (
            f" A mixture keeps each block of {BLOCK} rows even: up to there it is a little below zero."
            * (not all_pool)
        )
        + (" Where all documents are one pool, a row counts for the source of its first document." if pool else "")
    )
    sheet.page.text(
        "The table has the variance of the sources' rows from batch to batch over that of independent draws: 1 is "
        "chance, less is more even than chance, much more means clumps."
    )
    sheet.table("Every stage", ["stage", "rows looked at", "lags above", "95% band ±", "variance over chance"], rows)


def _rows(sheet: draw.Sheet, parts: Sequence[Part], outcomes: Outcomes, counted: tuple[int, int]) -> None:
    sheet.page.section("Truncation and padding")
    exact = counted[0] == counted[1]
    how = "in all windows of all sources" if exact else f"in {counted[0]:,} of {counted[1]:,} windows, evenly spaced"
    sheet.page.text(
        "Split pads nothing but cuts documents wherever a row ends; what follows a cut is predicted without the "
        "document's beginning. Best fit cuts only documents longer than a row, and pads. Neither drops a token. "
        f"Counted {how}, under both packings."
    )
    titles = {"padding": "Padding", "cut": "Documents cut", "headless": "Beginning out of sight"}
    both = [(n, part, packing) for n, part in enumerate(parts[: BARS // 2]) for packing in PACKINGS]
    drawn = {}
    for field, title in titles.items():
        bars = [
            (f"stage {part.label}, rows of {part.stage.row_length:,}, {packing}",
             getattr(of_part(number, part, packing, outcomes), field), packing == part.stage.packing)
            for number, part, packing in both
        ]  # fmt: skip
        of = "documents" if field == "cut" else "slots"
        drawn[field] = figures.packings(f"{title}, % of {of}", bars), f"{title} by stage and packing"
    sheet.small(drawn)
    rows = []
    for (number, name, packing), own in outcomes.items():
        if own.slots:
            stage, documents = parts[number].stage, max(own.documents, 1)
            shares = [value / own.slots for value in (own.padding, own.predicted, own.headless)]
            shares += [own.cut / documents, own.long / documents]
            asked = strong(packing) if packing == stage.packing else packing
            cells = [f"{share:.2%}" for share in shares]
            rows.append((parts[number].label, code(shown(name)), asked, *cells, own.pieces / max(own.rows, 1)))
    head = ["stage", "source", "packing", "padding", "predicted", "out of sight", "documents cut",
            "longer than a row", "documents a row"]  # fmt: skip
    sheet.table("Every stage, source and packing (asked in bold)", head, rows)


def _epochs(sheet: draw.Sheet, plan: Plan, read: dict[str, Reading]) -> None:
    sheet.page.section("Epochs")
    limits = plan.history[-1].max_epochs
    make = functools.partial(figures.epochs, {shown(name): own.epochs for name, own in read.items()}, limits)
    sheet.figure("epochs", make, "How often the run reads each source")
    rows = []
    for name, own in read.items():
        documents = plan.corpus.generations_of(name, len(plan.corpus.generations))
        tokens = int(sum(plan.corpus.shards.lengths[numbers].sum() for numbers in documents))
        limit, dry = limits.get(name, "-"), "-" if own.dry is None else f"{own.dry:,}"
        rows.append((code(shown(name)), tokens, own.rows, own.tokens, own.epochs, str(limit), dry))
    head = ["source", "tokens there", "rows read", "slots read", "epochs", "max_epochs", "dry from step"]
    sheet.table("Every source", head, rows)


def _documents(sheet: draw.Sheet, plan: Plan, parts: Sequence[Part]) -> None:
    sheet.page.section("Documents and tokens")
    shards = plan.corpus.shards
    by_source = np.split(np.argsort(shards.source_of, kind="stable"), np.cumsum(np.bincount(shards.source_of))[:-1])
    tokens = [int(shards.lengths[own].sum()) for own in by_source]
    bands, label = _bands(shards.source_names, np.array(tokens), BARS)
    together = [np.concatenate([by_source[index] for index in band]) for band in bands]
    quantiles = [
        (name, np.quantile(shards.lengths[own], (0.1, 0.5, 0.9)).tolist()) for name, own in zip(label, together)
    ]
    row_lengths = [part.stage.row_length for part in parts]
    make = functools.partial(figures.lengths, quantiles, row_lengths)
    sheet.figure("lengths", make, "Tokens of a document by source, beside the row lengths")
    carried = {name: shards.bytes[own].sum() / shards.lengths[own].sum() for name, own in zip(label, together)}
    sheet.figure("bytes-per-token", functools.partial(figures.bytes_per_token, carried), "Bytes per token by source")
    words, rows = fertility(shards), []
    for index in np.argsort(-np.array(tokens)).tolist():
        own, name = by_source[index], shards.source_names[index]
        lengths, (looked, a_word) = shards.lengths[own], words.get(name, (0, float("nan")))
        ends = [int(value) for value in np.quantile(lengths, (0.1, 0.5, 0.9, 1))]
        each = f"{a_word:.2f} ({looked})" if looked else "-"
        size = float(shards.bytes[own].sum() / lengths.sum())
        rows.append((code(name), len(own), tokens[index], size, each, round(float(lengths.mean())), *ends))
    head = ["source", "documents", "tokens", "bytes per token", "tokens per word (documents)", "mean length", "10%",
            "median", "90%", "longest"]  # fmt: skip
    sheet.table("Every source", head, rows)
