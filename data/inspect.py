"""What a run will read, computed from its plan and the lengths of the documents alone: the numbers of inspect-data.

Mixture and epochs are counted by the index rules of the plan, so a run of millions of steps takes seconds. P points
along the run, S sources, J rows in their order.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from core.progress import track
from data.config import Packing, Stage
from data.corpus import POOL
from data.document import read_documents
from data.mixture import BLOCK
from data.packing import arrange, count_rows
from data.plan import Plan, Segment
from data.rows import Rows, Source
from data.shards import TokenShards
from data.stream import Stream
from data.tokenize import CURATED

STEPS, POINTS = 1000, 200  # of a point; points of a run
SEQUENCE = 1 << 15  # rows of each stage whose order is looked at
POOL_SEQUENCE = 1 << 13  # where each row's first document must be looked up
PIECES = 2_000_000  # of documents placed into rows, in all; a few seconds
WORDS_DOCUMENTS = 200  # of each source, for tokens a word
SCANNED_DOCUMENTS = 20_000  # in search of them
PACKINGS: tuple[Packing, ...] = ("split", "best_fit")


class Part(NamedTuple):
    """A stage as it is read: segments that differ only in which sources are dry, or in growth."""

    label: str
    segments: list[Segment]

    @property
    def stage(self) -> Stage:
        """What is asked."""
        return self.segments[0].stage

    @property
    def asked(self) -> dict[str, float]:
        """The weights, normalised."""
        weights = {name: weight for name, weight in self.stage.mixture.items() if weight} or {POOL: 1.0}
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}

    @property
    def kinds(self) -> dict[str, Rows]:
        """What the rows of each source are, at last."""
        return {name: stream.rows for s in self.segments for name, stream in zip(s.mixture.weights, s.streams)}

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
    dry: int | None = None  # the first step that does without


class Outcome(NamedTuple):
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


Outcomes = dict[tuple[int, str, Packing], Outcome]  # by part, source and packing


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
    last: dict[str, tuple[Stream, float]] = {}  # and the epochs behind
    for segment in plan.segments:
        begins, ends = segment.read(segment.first).tolist(), segment.read(segment.end).tolist()
        for name, stream, begin, end in zip(segment.mixture.weights, segment.streams, begins, ends):
            own, rows, behind = found.get(name, Reading()), end - begin, epochs_before(stream, end)
            epochs = behind - epochs_before(stream, begin)
            if name in last and last[name][0] is not stream:  # what is left of an epoch makes more rows, or fewer
                epochs += epochs_before(stream, stream.start) - last[name][1]
            tokens = own.tokens + rows * segment.stage.row_length
            found[name] = own._replace(rows=own.rows + rows, tokens=tokens, epochs=own.epochs + epochs)
            last[name] = stream, behind
        for name, weight in segment.stage.mixture.items():
            own = found.get(name, Reading())
            if weight and name not in segment.mixture.weights and own.dry is None:
                found[name] = own._replace(dry=segment.first + 1)
    return dict(sorted(found.items(), key=lambda item: -item[1].tokens))


def epochs_before(stream: Stream, number: int) -> float:
    """How often a source is read through before a row; within an epoch by what is left of it, the rest included."""
    rows, after = stream.rows, stream.epoch(number) + 1
    return after - (rows.number(after, 0) - number) / rows.rows_per_epoch


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


def measure(parts: Sequence[Part]) -> tuple[Outcomes, tuple[int, int]]:
    """What becomes of slots in both packings, and how many windows of how many that was counted in."""
    asked = {(number, name): rows for number, part in enumerate(parts) for name, rows in part.kinds.items()}
    distinct = {_kind(rows): rows for rows in asked.values()}
    found, windows = {}, np.zeros(2, int)
    for key, rows in track(distinct.items(), "inspect-data: rows", len(distinct)):
        there, source = len(rows.rows_of_window), rows.source
        lengths = source.lengths[: source.bounds[there]]
        a_window = max(1, (len(lengths) + lengths.sum() / rows.row_length) / there)
        looked_at = max(1, min(there, int(PIECES / len(distinct) / a_window)))
        chosen = np.unique(np.linspace(0, there - 1, looked_at).astype(int)).tolist()
        windows += len(chosen), there
        for packing in PACKINGS:
            own = [outcome(packing, source, window, rows.row_length) for window in chosen]
            found[key, packing] = Outcome(*map(sum, zip(*own)))
    of_asked = {
        (*place, packing): found[_kind(rows), packing] for place, rows in asked.items() for packing in PACKINGS
    }
    return of_asked, tuple(windows.tolist())


def _kind(rows: Rows) -> tuple[int, int, int]:
    return id(rows.source), len(rows.rows_of_window), rows.row_length


def outcome(packing: Packing, source: Source, window: int, row_length: int) -> Outcome:
    """What becomes of the slots and documents of a window, in the order of the first epoch."""
    lengths = source.lengths[source.shuffled(0, window)]
    plan, sizes = arrange(packing, lengths, row_length), lengths - 1  # a document's last token predicts nothing
    rows = int(count_rows(packing, lengths, np.array([0, len(lengths)]), row_length)[0])
    trained = source.predicted[source.shuffled(0, window)]
    predicted, slots = int(trained.sum()), rows * row_length
    if packing == "split":
        begins = plan.starts[:-1]
        head = np.minimum(sizes, row_length - begins % row_length)
        touched = np.where(sizes > 0, (begins + sizes - 1) // row_length - begins // row_length + 1, 0)
        padding, cut, pieces = slots - max(int(lengths.sum()) - 1, 0), int((touched > 1).sum()), int(touched.sum())
    else:
        head = np.minimum(sizes, row_length)
        padding, cut, pieces = slots - int(plan.sizes.sum()), int((sizes > row_length).sum()), len(plan.sizes)
    # Of conversations, which are masked, the share that is trained on is taken to be the same all over the document.
    out_of_sight = (sizes - head) * trained / np.maximum(sizes, 1)
    long, headless = int((sizes > row_length).sum()), round(float(out_of_sight.sum()))
    return Outcome(rows, slots, padding, predicted, headless, len(lengths), cut, long, pieces)


class Shares(NamedTuple):
    """Of slots; `cut` is of documents."""

    padding: float
    predicted: float
    headless: float
    cut: float


def of_part(number: int, part: Part, packing: Packing, outcomes: Outcomes) -> Shares:
    """The shares of a stage, its sources weighted as they are read."""
    total_R = np.zeros(len(Outcome._fields))  # of one row
    for name, share in part.shares.items():
        if share and (own := outcomes[number, name, packing]).rows:
            total_R += share * np.array(own) / own.rows
    own = Outcome(*total_R.tolist())
    return Shares(
        own.padding / own.slots, own.predicted / own.slots, own.headless / own.slots, own.cut / own.documents
    )


def whole(parts: Sequence[Part], outcomes: Outcomes) -> Shares:
    """The shares of the run."""
    slots_R = np.array([(part.end - part.first) * part.stage.rows * part.stage.row_length for part in parts])
    own = [of_part(number, part, part.stage.packing, outcomes) for number, part in enumerate(parts)]
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
