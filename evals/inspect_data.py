"""The inspect-data verb: what a run will read, before it is paid for, from config and token shards alone.

Mixture and epochs are counted by the index rules of the plan, so a run of millions of steps takes seconds. P points
along the run, S sources, J rows in their order.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from core.files import Stage, atomic_write
from core.page import Page, code, strong
from core.progress import count, say, track
from data import config as data_config
from data.config import Packing
from data.corpus import POOL
from data.document import read_documents
from data.history import to_json
from data.mixture import BLOCK
from data.packing import arrange, count_rows
from data.plan import Plan, Segment
from data.rows import WINDOW_DOCUMENTS, Rows, Source
from data.shards import TokenShards
from data.tokenize import CURATED
from evals import figures
from train.run import Run, open_plan

VERSION = 1
FOLDER = "inspect-data"
STEPS, POINTS = 1000, 200  # of a point; points of a run
SEQUENCE = 1 << 15  # rows of each stage whose order is looked at
POOL_SEQUENCE = 1 << 13  # where each row's first document must be looked up
PIECES = 2_000_000  # of documents placed into rows, in all; a few seconds
WORDS_DOCUMENTS = 200  # of each source, for tokens a word
SCANNED_DOCUMENTS = 20_000  # in search of them
PACKINGS: tuple[Packing, ...] = ("split", "best_fit")
BARS, BANDS = 12, 6  # sources that a picture shows one by one
FOLDED = 24  # rows of a table from which on it is folded away
EPOCHS = 4  # "up to 4 epochs of repeated data yield negligible changes to loss" (Muennighoff et al. 2023)
PADDING = 0.01  # share of slots from which on the page says so
LEFT = 0.05  # of the tokens read, likewise


class Part(NamedTuple):
    """A stage as it is read: segments that differ only in which sources are dry, or in growth."""

    label: str
    segments: list[Segment]

    @property
    def stage(self) -> data_config.Stage:
        """What is asked."""
        return self.segments[0].stage

    @property
    def asked(self) -> dict[str, float]:
        """The weights, normalised."""
        weights = {name: weight for name, weight in self.stage.mixture.items() if weight} or {POOL: 1.0}
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}

    @property
    def streams(self) -> dict[str, Rows]:
        """Where each source's rows come from, at last."""
        return {name: stream for s in self.segments for name, stream in zip(s.mixture.weights, s.streams)}

    def rows(self, first: int, end: int) -> dict[str, int]:
        """Rows of each source in these steps."""
        found = dict.fromkeys(self.asked, 0)
        for segment in self.segments:
            begin, stop = max(first, segment.first), min(end, segment.end)
            if begin < stop:
                for name, rows in zip(segment.mixture.weights, segment.read(stop) - segment.read(begin)):
                    found[name] += int(rows)
        return found

    @property
    def shares(self) -> dict[str, float]:
        """Of the rows, as read."""
        rows = self.rows(self.first, self.end)
        return {name: own / sum(rows.values()) for name, own in rows.items()}

    @property
    def first(self) -> int:
        """Step."""
        return self.segments[0].first

    @property
    def end(self) -> int:
        """The step after the last."""
        return self.segments[-1].end


class Reading(NamedTuple):
    """What a run reads of a source."""

    rows: int = 0
    tokens: int = 0  # padding included
    epochs: float = 0.0
    unread: int = 0  # tokens left out where rows of another kind begin at the next window
    dry: int | None = None  # the first step that does without


class Rest(NamedTuple):
    """What becomes of the slots of rows, and of documents, in windows of a source."""

    rows: int
    slots: int
    padding: int
    predicted: int  # weight 1
    headless: int  # of these, without their document's beginning in sight
    documents: int
    cut: int
    long: int  # more than a row
    pieces: int


Rests = dict[tuple[int, str, Packing], Rest]  # by part, source and packing


class Sheet:
    """A page and the pictures on it."""

    def __init__(self, page: Page):
        self.page, self.drawn = page, {}

    def figure(self, name: str, draw: Callable[[int], Figure], alt: str, caption: str = "") -> None:
        """A picture over the whole width, drawn for a desktop and for a phone."""
        self.drawn[name], narrow = draw(figures.WIDE), draw(figures.NARROW)
        wide = figures.svg(self.drawn[name], name, alt)
        self.page.figure(wide, caption, narrow=figures.svg(narrow, f"{name}-narrow", alt))

    def small(self, drawn: dict[str, tuple[Figure, str]]) -> None:
        """Small pictures side by side, with what they say."""
        self.drawn |= {name: figure for name, (figure, _) in drawn.items()}
        self.page.figures((figures.svg(figure, name, alt), "") for name, (figure, alt) in drawn.items())

    def table(self, what: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table, folded away where it is long."""
        if len(rows) <= FOLDED:
            self.page.table(head, rows)
            return
        with self.page.details(f"{what}, {len(rows):,} rows"):
            self.page.table(head, rows)


def inspect_data(run: Run, workdir: Path) -> Path:
    """Makes `workdir/inspect-data/inspect-data.html` and a PNG of every picture in it; returns the page's path."""
    plan = open_plan(run, workdir)
    spec = {"version": VERSION, "seed": run.seed, "history": to_json(plan.history)}
    stage = Stage(workdir / FOLDER, {**spec, "documents": plan.corpus.generations}, stale="replace")
    path = stage.folder / "inspect-data.html"
    if stage.finished:
        say(f"inspect-data: {stage.folder} is up to date")
        return path
    parts, read = parts_of(plan), readings(plan)
    rests, counted = measure(parts)
    sheet = Sheet(
        Page(f"Data of {workdir.resolve().name}", *_lead(plan, parts), footer=f"Made from {workdir.resolve()}")
    )
    _notices(sheet.page, plan, parts, read, rests)
    sheet.page.tiles(_tiles(plan, parts, read, rests))
    _stages(sheet, parts)
    _mixture(sheet, plan, parts)
    _order(sheet, plan, parts)
    _rows(sheet, parts, rests, counted)
    _epochs(sheet, plan, read)
    _documents(sheet, plan, parts)
    sheet.page.write(path)
    for old in stage.folder.glob("*.png"):
        old.unlink()
    images = {stage.folder / f"{name}.png": figure for name, figure in sheet.drawn.items()}
    for image, figure in images.items():
        with atomic_write(image) as file:
            figures.png(figure, file)
    summary = {"steps": plan.steps, "tokens": plan.tokens, "epochs": {name: own.epochs for name, own in read.items()}}
    stage.finish([path, *images], summary)
    most = max(read, key=lambda name: read[name].epochs)
    say(
        f"inspect-data: {plan.steps:,} steps, {count(plan.tokens)} tokens, {whole(parts, rests).padding:.2%} "
        f"padding, at most {figures.times(read[most].epochs)} epochs ({shown(most)}): {path}"
    )
    return path


def shown(name: str) -> str:
    """A source as the page calls it."""
    return name or "all documents"


def parts_of(plan: Plan) -> list[Part]:
    """The stages as they are read; where an amendment changed one, what it became is a part of its own."""
    groups = itertools.groupby(plan.segments, key=lambda segment: (segment.number, segment.stage._replace(steps=0)))
    parts: list[Part] = []
    for (number, _), segments in groups:
        own = list(segments)
        again = parts and parts[-1].segments[0].number >= number
        parts.append(Part(f"{number + 1}" + (f" from step {own[0].first + 1:,}" if again else ""), own))
    return parts


def readings(plan: Plan) -> dict[str, Reading]:
    """What the run reads of each source, in the order of tokens."""
    found: dict[str, Reading] = {}
    last: dict[str, tuple[Rows, int]] = {}
    for segment in plan.segments:
        begins, ends = segment.read(segment.first).tolist(), segment.read(segment.end).tolist()
        for name, stream, begin, end in zip(segment.mixture.weights, segment.streams, begins, ends):
            own, rows = found.get(name, Reading()), end - begin
            found[name] = own._replace(
                rows=own.rows + rows,
                tokens=own.tokens + rows * stream.row_length,
                epochs=own.epochs + rows / stream.rows_per_epoch,
                unread=own.unread + (_unread(*last[name], stream) if name in last else 0),
            )
            last[name] = stream, end
        for name, weight in segment.stage.mixture.items():
            own = found.get(name, Reading())
            if weight and name not in segment.mixture.weights and own.dry is None:
                found[name] = own._replace(dry=segment.first + 1)
    return dict(sorted(found.items(), key=lambda item: -item[1].tokens))


def _unread(old: Rows, number: int, new: Rows) -> int:
    """Tokens between a row and the next window, where reading goes on from there."""
    if new is old:
        return 0
    of_epoch = int(old.source.lengths[: old.source.bounds[len(old.rows_of_window)]].sum())
    return round((old.number(*old.next_window(number)) - number) * of_epoch / old.rows_per_epoch)


def points(plan: Plan, parts: Sequence[Part]) -> tuple[np.ndarray, list[str], np.ndarray, int]:
    """Edges of the points in steps, sources, rows of each read at each point, and the most steps of a point."""
    # A thousand steps each; fewer in a run of less than 20 points, more in one of more than 200.
    a_point = min(STEPS, -(-plan.steps // 20)) * max(1, -(-plan.steps // (STEPS * POINTS)))
    ranges = [(part, np.linspace(part.first, part.end, -(-(part.end - part.first) // a_point) + 1)) for part in parts]
    spans = [
        (part, *span) for part, edges in ranges for span in itertools.pairwise(np.rint(edges).astype(int).tolist())
    ]
    names = list(dict.fromkeys(name for part in parts for name in part.asked))
    read_SP = np.zeros((len(names), len(spans)))
    for point, (part, first, end) in enumerate(spans):
        rows = part.rows(first, end)
        read_SP[:, point] = [rows.get(name, 0) for name in names]
    return np.array([0, *(end for *_, end in spans)]), names, read_SP, a_point


def sequence(part: Part, plan: Plan) -> tuple[np.ndarray, list[str]] | None:
    """The source of each of the first rows of a stage; None where only one is read.

    In a stage that reads all documents as a pool it is that of the row's first document.
    """
    if POOL in part.asked and len(part.asked) == 1:
        shards, segment = plan.corpus.shards, part.segments[0]
        if len(shards.source_names) < 2:
            return None
        stream, first = segment.streams[0], int(segment.read(segment.first)[0])
        numbers = range(first, first + min(POOL_SEQUENCE, segment.steps * segment.stage.rows))
        found = (stream.pieces(n)[0].document for n in track(numbers, "inspect-data: order", len(numbers)))
        return shards.source_of[np.fromiter(found, np.int64)], shards.source_names
    names, pieces = list(part.asked), []
    for segment in part.segments:
        left = SEQUENCE - sum(map(len, pieces))
        begin = segment.mix_start
        end = begin + min(left, segment.steps * segment.stage.rows)
        places = np.array([names.index(name) for name in segment.mixture.weights])
        blocks = [segment.mixture.layout(block) for block in range(begin // BLOCK, -(-end // BLOCK))]
        inside = begin - begin // BLOCK * BLOCK
        pieces.append(places[np.concatenate([[0], *blocks])[1:].astype(int)[inside : inside + end - begin]])
    return (np.concatenate(pieces), names) if len(names) > 1 else None


def autocorrelation(sources_J: np.ndarray, lags: int) -> tuple[np.ndarray, float]:
    """The sources' autocorrelations at lags 1, 2, ..., averaged by share, and the 95% band of independent rows."""
    present, places = np.unique(sources_J, return_inverse=True)
    size = len(sources_J)
    z_SJ = (places == np.arange(len(present))[:, None]).astype(np.float64)
    share_S = z_SJ.mean(axis=1)
    if len(present) < 2:
        return np.zeros(lags), 0.0
    z_SJ = (z_SJ - share_S[:, None]) / np.sqrt(share_S * (1 - share_S))[:, None]
    spectrum = np.abs(np.fft.rfft(z_SJ, 2 * size)) ** 2  # padded, or the end would meet the beginning
    curve = np.fft.irfft(share_S @ spectrum)[1 : lags + 1] / size
    # The estimates of two sources correlate as the square of their indicators' correlation.
    variance = share_S @ (z_SJ @ z_SJ.T / size) ** 2 @ share_S / size
    return curve, 1.96 * float(np.sqrt(variance))


def spread(sources_J: np.ndarray, rows: int) -> float | None:
    """Variance of the sources' rows from batch to batch, over that of independent draws; None for one batch."""
    batches = len(sources_J) // rows
    if batches < 2:
        return None
    batch_of = np.repeat(np.arange(batches), rows)
    present, places = np.unique(sources_J[: batches * rows], return_inverse=True)
    counts = np.zeros((batches, len(present)))
    np.add.at(counts, (batch_of, places), 1)
    share_S = counts.mean(axis=0) / rows
    expected = rows * (share_S * (1 - share_S)).sum()
    return float(counts.var(axis=0, ddof=1).sum() / expected) if expected else None


def measure(parts: Sequence[Part]) -> tuple[Rests, tuple[int, int]]:
    """What becomes of slots in both packings, and how many windows of how many that was counted in."""
    streams = {(number, name): stream for number, part in enumerate(parts) for name, stream in part.streams.items()}
    distinct = {_kind(stream): stream for stream in streams.values()}
    found, windows = {}, np.zeros(2, int)
    for key, stream in track(distinct.items(), "inspect-data: rows", len(distinct)):
        there = len(stream.rows_of_window)
        lengths = stream.source.lengths[: stream.source.bounds[there]]
        a_window = max(1, (len(lengths) + lengths.sum() / stream.row_length) / there)
        chosen = np.unique(
            np.linspace(0, there - 1, max(1, min(there, int(PIECES / len(distinct) / a_window)))).astype(int)
        )
        windows += len(chosen), there
        for packing in PACKINGS:
            rests = [rest(packing, stream.source, window, stream.row_length) for window in chosen.tolist()]
            found[key, packing] = Rest(*map(sum, zip(*rests)))
    own = {
        (*place, packing): found[_kind(stream), packing] for place, stream in streams.items() for packing in PACKINGS
    }
    return own, tuple(windows.tolist())


def _kind(stream: Rows) -> tuple[int, int, int]:
    return id(stream.source), len(stream.rows_of_window), stream.row_length


def rest(packing: Packing, source: Source, window: int, row_length: int) -> Rest:
    """What becomes of the slots and documents of a window, in the order of the first epoch."""
    lengths = source.lengths[source.shuffled(0, window)]
    plan, sizes = arrange(packing, lengths, row_length), lengths - 1  # a document's last token predicts nothing
    rows = int(count_rows(packing, lengths, np.array([0, len(lengths)]), row_length)[0])
    predicted, slots = int(sizes.sum()), rows * row_length
    if packing == "split":
        begins = plan.starts[:-1]
        head = np.minimum(sizes, row_length - begins % row_length)
        touched = np.where(sizes > 0, (begins + sizes - 1) // row_length - begins // row_length + 1, 0)
        padding, cut, pieces = slots - max(int(lengths.sum()) - 1, 0), int((touched > 1).sum()), int(touched.sum())
    else:
        head = np.minimum(sizes, row_length)
        padding, cut, pieces = slots - int(plan.sizes.sum()), int((sizes > row_length).sum()), len(plan.sizes)
    long, headless = int((sizes > row_length).sum()), predicted - int(head.sum())
    return Rest(rows, slots, padding, predicted, headless, len(lengths), cut, long, pieces)


class Shares(NamedTuple):
    """Of slots; `cut` is of documents."""

    padding: float
    predicted: float
    headless: float
    cut: float


def of_part(number: int, part: Part, packing: Packing, rests: Rests) -> Shares:
    """The shares of a stage, its sources weighted as they are read."""
    total_R = np.zeros(len(Rest._fields))  # of one row
    for name, share in part.shares.items():
        if share and (own := rests[number, name, packing]).rows:
            total_R += share * np.array(own) / own.rows
    own = Rest(*total_R.tolist())
    return Shares(
        own.padding / own.slots, own.predicted / own.slots, own.headless / own.slots, own.cut / own.documents
    )


def whole(parts: Sequence[Part], rests: Rests) -> Shares:
    """The shares of the run."""
    slots_R = np.array([(part.end - part.first) * part.stage.rows * part.stage.row_length for part in parts])
    own = [of_part(number, part, part.stage.packing, rests) for number, part in enumerate(parts)]
    return Shares(*(slots_R @ np.array(own) / slots_R.sum()).tolist())


def fertility(shards: TokenShards) -> dict[str, tuple[int, float]]:
    """Documents looked at and tokens a word of each source; words are what whitespace parts."""
    sums: dict[str, np.ndarray] = {}
    for shard, path in enumerate(shards.paths):
        curated = read_documents(path.parent.parent / CURATED / path.with_suffix(".parquet").name)
        most = -(-SCANNED_DOCUMENTS // len(shards.paths))
        for number, document in enumerate(itertools.islice(curated, most), int(shards.starts[shard])):
            own = sums.setdefault(document.source, np.zeros(3, np.int64))
            if own[0] < WORDS_DOCUMENTS:
                own += 1, int(shards.lengths[number]), len(document.text.split())
    return {name: (int(own[0]), float(own[1] / max(own[2], 1))) for name, own in sums.items()}


def _lead(plan: Plan, parts: Sequence[Part]) -> list[Any]:
    shards = plan.corpus.shards
    stages = f"{len(parts)} stages" if len(parts) > 1 else "one stage"
    largest = np.argsort(-np.bincount(shards.source_of, shards.lengths, len(shards.source_names)))[:5]
    names = [code(shards.source_names[index]) for index in largest]
    listed = [part for name in names for part in (", ", name)][1:]
    more = f" and {len(shards.source_names) - 5} more" if len(shards.source_names) > 5 else ""
    amended = len(plan.history) > 1
    return [
        f"What {plan.steps:,} steps in {stages} read: {count(plan.tokens)} tokens, out of a corpus of "
        f"{count(int(shards.lengths.sum()))} tokens in {len(shards):,} documents (",
        *listed,
        f"{more}). Counted from the {'history of the run' if amended else 'plan of the run'} and the token shards.",
    ]


def _notices(page: Page, plan: Plan, parts: Sequence[Part], read: dict[str, Reading], rests: Rests) -> None:
    """What to think about before the run is paid for."""
    often = [f"{shown(name)} ({figures.times(own.epochs)})" for name, own in read.items() if own.epochs > EPOCHS]
    if often:
        cost = "Up to 4 epochs cost little, more bring less and less (Muennighoff et al. 2023, arXiv:2305.16264)."
        page.notice(strong(f"Read more than {EPOCHS} times: "), _listed(often), ". ", cost)
    if dry := [f"{shown(name)} (step {own.dry:,})" for name, own in read.items() if own.dry is not None]:
        page.notice(strong("Runs dry: "), _listed(dry), ". From that step on the other sources take its share.")
    for number, part in enumerate(parts):
        other = PACKINGS[part.stage.packing == "split"]
        own, others = (of_part(number, part, packing, rests) for packing in (part.stage.packing, other))
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
    if (left := sum(own.unread for own in read.values())) > LEFT * plan.tokens:
        why = "Where rows of another length or packing begin, a source goes on at its next window of up to "
        when = f"{WINDOW_DOCUMENTS:,} documents; the rest of the one begun comes in its next epoch only."
        page.notice(
            strong(f"{count(left)} tokens are left unread, beside {count(plan.tokens)} that are read. "), why, when
        )
    for record in plan.history[1:]:
        what = f"{record.skip:,} batches are left out" if record.skip else "the config was amended"
        page.notice(f"History: after step {record.step:,} {what}.")


def _listed(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _tiles(plan: Plan, parts: Sequence[Part], read: dict[str, Reading], rests: Rests) -> list[tuple[str, str, str]]:
    over_all, most = whole(parts, rests), max(read, key=lambda name: read[name].epochs)
    least = min(read, key=lambda name: read[name].epochs)
    return [
        ("Steps", f"{plan.steps:,}", f"{len(parts)} stages" if len(parts) > 1 else "one stage"),
        ("Tokens", count(plan.tokens), "padding included"),
        ("Padding", f"{over_all.padding:.2%}", "of slots"),
        ("Predicted", f"{over_all.predicted:.2%}", "of slots have weight 1"),
        ("Most epochs", figures.times(read[most].epochs), shown(most)),
        ("Fewest epochs", figures.times(read[least].epochs), shown(least)),
    ]


def _stages(sheet: Sheet, parts: Sequence[Part]) -> None:
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


def _mixture(sheet: Sheet, plan: Plan, parts: Sequence[Part]) -> None:
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
    draw = functools.partial(figures.mixture, edges, label, shares, starts)
    sheet.figure("mixture", draw, "Share of each source in the rows read, over the steps", caption)
    head = ["stage", "source", "asked, %", "read, %", "difference", "largest at a point"]
    sheet.table("Every stage and source", head, rows)


def _pool(sheet: Sheet, shards: TokenShards) -> None:
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


def _order(sheet: Sheet, plan: Plan, parts: Sequence[Part]) -> None:
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


def _rows(sheet: Sheet, parts: Sequence[Part], rests: Rests, counted: tuple[int, int]) -> None:
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
             getattr(of_part(number, part, packing, rests), field), packing == part.stage.packing)
            for number, part, packing in both
        ]  # fmt: skip
        of = "documents" if field == "cut" else "slots"
        drawn[field] = figures.packings(f"{title}, % of {of}", bars), f"{title} by stage and packing"
    sheet.small(drawn)
    rows = []
    for (number, name, packing), own in rests.items():
        if own.slots:
            stage, documents = parts[number].stage, max(own.documents, 1)
            shares = [value / own.slots for value in (own.padding, own.predicted, own.headless)]
            shares += [own.cut / documents, own.long / documents]
            asked = strong(packing) if packing == stage.packing else packing
            cells = [f"{share:.2%}" for share in shares]
            rows.append((parts[number].label, code(shown(name)), asked, *cells, own.pieces / max(own.rows, 1)))
    head = ["stage", "source", "packing", "padding", "predicted", "beginning out of sight", "documents cut",
            "longer than a row", "documents a row"]  # fmt: skip
    sheet.table("Every stage, source and packing (asked in bold)", head, rows)


def _epochs(sheet: Sheet, plan: Plan, read: dict[str, Reading]) -> None:
    sheet.page.section("Epochs")
    limits = plan.history[-1].max_epochs
    draw = functools.partial(figures.epochs, {shown(name): own.epochs for name, own in read.items()}, limits)
    sheet.figure("epochs", draw, "How often the run reads each source")
    rows = []
    for name, own in read.items():
        documents = plan.corpus.generations_of(name, len(plan.corpus.generations))
        tokens = int(sum(plan.corpus.shards.lengths[numbers].sum() for numbers in documents))
        limit, dry = limits.get(name, "-"), "-" if own.dry is None else f"{own.dry:,}"
        rows.append((code(shown(name)), tokens, own.rows, own.tokens, own.epochs, str(limit), dry, own.unread))
    head = [
        "source",
        "tokens there",
        "rows read",
        "slots read",
        "epochs",
        "max_epochs",
        "dry from step",
        "left unread",
    ]
    sheet.table("Every source", head, rows)
    if left := sum(own.unread for own in read.values()):
        sheet.page.text(
            f"About {left:,} tokens are left unread: where rows of another length or packing begin, or documents "
            "join, a source goes on at its next window; what is left of the one begun waits for the next epoch."
        )


def _documents(sheet: Sheet, plan: Plan, parts: Sequence[Part]) -> None:
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
    draw = functools.partial(figures.lengths, quantiles, row_lengths)
    sheet.figure("lengths", draw, "Tokens of a document by source, beside the row lengths")
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
