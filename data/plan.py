"""The data of every step, laid out from the history: segments of steps with one mixture over rows of sources.

Each segment knows at which row it begins in every source, so any step is found by bisection and any row by the index
rules of `data/mixture.py` and `data/rows.py`, however long the run.
"""

import bisect
import dataclasses
from typing import NamedTuple

import numpy as np

from core.errors import UserError, suggest
from core.progress import count
from data.config import Stage
from data.corpus import POOL, Corpus
from data.history import History, Record
from data.mixture import Mixture
from data.order import derive_seed
from data.stream import Stream


@dataclasses.dataclass(frozen=True)
class Segment:
    """Steps with one mixture. Row j of it is row `mix_start + j` of the mixture."""

    first: int  # step
    steps: int
    number: int  # of the stage
    stage: Stage
    mixture: Mixture
    mix_start: int
    streams: tuple[Stream, ...]  # one a source of the mixture
    starts: tuple[int, ...]  # the row of each at row 0 of the mixture

    @property
    def end(self) -> int:
        """The step after the last."""
        return self.first + self.steps

    def locate(self, step: int, row: int) -> tuple[int, int]:
        """The source of a row of a step's batch, and the number of that row in the source's stream."""
        source, before = self.mixture.locate(self.mix_start + (step - self.first) * self.stage.rows + row)
        return source, self.starts[source] + before

    def find(self, source: int, number: int) -> tuple[int, int] | None:
        """The step and the row of its batch at which a row of a stream comes; None where not in this segment."""
        if number < self.starts[source]:
            return None
        j = self.mixture.index(source, number - self.starts[source]) - self.mix_start
        step = self.first + j // self.stage.rows
        return (step, j % self.stage.rows) if j >= 0 and step < self.end else None

    def read(self, step: int) -> np.ndarray:
        """How many rows of each stream are read before a step."""
        return np.array(self.starts) + self.mixture.counts(self.mix_start + (step - self.first) * self.stage.rows)


class Cursor(NamedTuple):
    """How far a source is read."""

    base: int  # generations of documents when it was first read
    stream: Stream
    number: int  # the next row


class Plan:
    """The segments of a run."""

    def __init__(self, history: History, corpus: Corpus, seed: int):
        self.history, self.corpus, self.seed = history, corpus, seed
        self.segments: list[Segment] = []
        self._cursors: dict[str, Cursor] = {}
        self._dry: set[str] = set()
        self._last: Segment | None = None
        assert [record.step for record in history] == sorted(record.step for record in history)
        for before, record, following in zip([None, *history], history, [*history[1:], None]):
            self._check(record)
            if before and (before.max_epochs, before.documents) != (record.max_epochs, record.documents):
                self._dry = set()  # found anew
            # Batches that are skipped are read at no step: what follows goes on behind them.
            self._lay(record, record.step + record.skip, emit=False)
            self._lay(record, following.step if following else record.steps)
        self._firsts = [segment.first for segment in self.segments]

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.history[-1].steps

    @property
    def tokens(self) -> int:
        """Tokens of the whole run, padding included."""
        return self.tokens_before(self.steps)

    def tokens_before(self, step: int) -> int:
        """Tokens of all batches before a step, padding included."""
        before = [(min(part.end, step) - part.first, part.stage) for part in self.segments if part.first < step]
        return sum(steps * stage.rows * stage.row_length for steps, stage in before)

    def segment(self, step: int) -> Segment:
        """The segment of a step."""
        if not 0 <= step < self.steps:
            raise UserError(f"step {step:,} is not in this run, whose batches are numbered 0 to {self.steps - 1:,}")
        return self.segments[bisect.bisect_right(self._firsts, step) - 1]

    def _check(self, record: Record) -> None:
        """Refuses a record that the documents at hand contradict."""
        if record.documents != self.corpus.generations[: len(record.documents)]:
            raise UserError("the token shards are not those of the run's history; restore them, or begin anew")
        names = self.corpus.shards.source_names
        for name in record.max_epochs:
            if name not in names:
                raise UserError(f"max_epochs names a source {name} that no document has{suggest(name, names)}")

    def _lay(self, record: Record, end: int, *, emit: bool = True) -> None:
        """Segments from the record's step to `end`, stage by stage, and at every source that runs dry."""
        step = record.step
        ends = np.cumsum([stage.steps for stage in record.stages]).tolist()
        while step < end:
            segment = self._begin(record, step)
            steps = min(end, ends[segment.number]) - step
            segment = dataclasses.replace(segment, steps=self._until_dry(segment, record, steps))
            if segment.steps and emit:
                self.segments.append(segment)
            self._advance(segment)
            step = segment.end

    def _begin(self, record: Record, step: int) -> Segment:
        """A segment without steps yet; it goes on with the mixture before it where nothing of that changes."""
        number = bisect.bisect_right(np.cumsum([stage.steps for stage in record.stages]).tolist(), step)
        stage = record.stages[number]
        weights = self._weights(stage, step)
        cursors = [self._cursor(name, stage, record) for name in weights]
        streams, last = tuple(cursor.stream for cursor in cursors), self._last
        self._cursors.update(zip(weights, cursors))
        if last is not None and (last.streams, last.mixture.weights) == (streams, weights):
            start = last.mix_start + last.steps * last.stage.rows
            return Segment(step, 0, number, stage, last.mixture, start, streams, last.starts)
        mixture = Mixture(weights, derive_seed(self.seed, "mixture", step, *sorted(self._dry)))
        return Segment(step, 0, number, stage, mixture, 0, streams, tuple(cursor.number for cursor in cursors))

    def _advance(self, segment: Segment) -> None:
        """Moves the cursors behind a segment."""
        for name, number in zip(segment.mixture.weights, segment.read(segment.end)):
            self._cursors[name] = self._cursors[name]._replace(number=int(number))
        self._last = segment

    def _weights(self, stage: Stage, step: int) -> dict[str, float]:
        """The mixture of a stage without the sources that are dry, by name: the order must survive the JSON."""
        weights = {name: weight for name, weight in sorted((stage.mixture or {POOL: 1.0}).items()) if weight}
        left = {name: weight for name, weight in weights.items() if name not in self._dry}
        if not left:
            raise UserError(
                f"all sources ({', '.join(weights)}) have run dry after step {step:,}, "
                f"{count(self.tokens_before(step))} tokens; raise batch.max_epochs, or ask for fewer tokens"
            )
        return left

    def _cursor(self, name: str, stage: Stage, record: Record) -> Cursor:
        """Where a source goes on: at the same row or, where rows become other ones, with the rest of the window."""
        shape, generations = (stage.row_length, stage.packing), len(record.documents)
        if name not in self._cursors:
            stream = self.corpus.stream(self.corpus.rows(name, generations, *shape, ()), None, 0)
            return Cursor(generations, stream, stream.start)
        base, stream, number = self._cursors[name]
        growths = stream.rows.growths
        if len(growths) < self.corpus.grown(name, base, generations):
            growths += (stream.next_window(number),)
            rows = self.corpus.rows(name, base, *shape, growths)
            stream = self.corpus.stream(rows, (stream, number), 0)
            # Generations that came while the source was not read join one after the other, at the same place.
            self._cursors[name] = Cursor(base, stream, stream.start)
            return self._cursor(name, stage, record)
        rows = self.corpus.rows(name, base, *shape, growths)
        if rows is stream.rows:
            return Cursor(base, stream, number)
        stream = self.corpus.stream(rows, (stream, number), rows.number(*stream.next_window(number)))
        return Cursor(base, stream, stream.start)

    def _until_dry(self, segment: Segment, record: Record, steps: int) -> int:
        """How many of the steps all sources last; those that do not last them all are dry afterwards."""
        epochs = (record.max_epochs.get(name) for name in segment.mixture.weights)
        limits = np.array([np.inf if e is None else s.rows_in(e) for s, e in zip(segment.streams, epochs)])
        short = bisect.bisect_left(
            range(steps + 1), True, key=lambda n: bool((segment.read(segment.first + n) > limits).any())
        )
        if short <= steps:
            over = segment.read(segment.first + short) > limits
            self._dry |= {name for name, dry in zip(segment.mixture.weights, over) if dry}
        return max(0, short - 1) if short <= steps else steps
