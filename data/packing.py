"""How the documents of a window become rows: concatenate-and-split, or best fit.

Both are plans computed from the lengths of the documents alone. A piece is a run of tokens of one document that are
inputs of one row; each has a target, the token after it in the row's stream.

Best fit (Ding et al. 2024, "Fewer Truncations Improve Language Modeling") puts whole documents together: longest
first, each into the row with the least room that still holds it. A document of n tokens takes n - 1 places, since its
last token predicts nothing; one that needs more than a row fills rows of its own, and its rest is placed as others.
"""

import bisect
import itertools
from typing import NamedTuple

import numpy as np

from data.config import Packing
from data.shards import Tokens


class Row(NamedTuple):
    """`T` tokens, the token after each, and what may see what. Padding has segment 0 and weight 0."""

    tokens_T: np.ndarray  # int32
    targets_T: np.ndarray  # int32
    segment_ids_T: np.ndarray  # int32, 1 for the first document of the row
    positions_T: np.ndarray  # int32, from 0 in each segment
    weights_T: np.ndarray  # float32, 1 where the target belongs to the same document and is trained on


class Piece(NamedTuple):
    """Tokens begin .. begin + size - 1 of a document, inputs of a row from place `start` on."""

    document: int  # its place in the window
    begin: int
    size: int
    start: int
    predicted: int  # how many of them have the next token of the document as their target, trained on or not


class Split:
    """The documents end to end, cut every `row_length` tokens; a row overlaps the next by the token it predicts."""

    def __init__(self, lengths: np.ndarray, row_length: int):
        self.row_length = row_length
        self.starts = np.concatenate([[0], np.cumsum(lengths)])

    def row(self, tokens: Tokens, number: int) -> Row:
        """Row `number` from the tokens of all documents end to end."""
        begin = number * self.row_length
        part, trained = tokens.cut(begin, begin + self.row_length + 1)
        size = len(part) - 1
        first = np.searchsorted(self.starts, begin, side="right") - 1
        last = np.searchsorted(self.starts, begin + size, side="right")
        inside = self.starts[first + 1 : last]  # where documents begin within the row
        bounds = np.concatenate([[begin], inside, [begin + size + 1]]) - begin
        counts = np.diff(bounds)
        row = empty_row(self.row_length)
        row.tokens_T[:size] = part[:-1]
        row.targets_T[:size] = part[1:]
        row.segment_ids_T[:size] = np.repeat(np.arange(1, len(bounds)), counts)[:size]
        row.positions_T[:size] = (np.arange(size + 1) - np.repeat(bounds[:-1], counts))[:size]
        row.weights_T[:size] = 1 if trained is None else trained[1:]
        row.weights_T[inside - begin - 1] = 0
        return row

    def pieces(self, number: int) -> list[Piece]:
        """What row `number` is made of."""
        begin = number * self.row_length
        end = min(begin + self.row_length, int(self.starts[-1]) - 1)
        first = int(np.searchsorted(self.starts, begin, side="right")) - 1
        found = []
        for document in range(first, len(self.starts) - 1):
            own, after = max(int(self.starts[document]), begin), min(int(self.starts[document + 1]), end)
            if own >= end:
                break
            size, whole = after - own, after == self.starts[document + 1]
            found.append(Piece(document, own - int(self.starts[document]), size, own - begin, size - int(whole)))
        return found

    @property
    def count(self) -> int:
        """How many rows there are; the last token of all predicts nothing."""
        return max(-(-(int(self.starts[-1]) - 1) // self.row_length), 0)

    def rows_with(self, document: int) -> list[int]:
        """Rows that hold tokens of a document as inputs."""
        begin, end = int(self.starts[document]), min(int(self.starts[document + 1]), int(self.starts[-1]) - 1)
        return list(range(begin // self.row_length, (end - 1) // self.row_length + 1)) if end > begin else []


class BestFit:
    """Whole documents together, in rows that end in padding."""

    def __init__(self, lengths: np.ndarray, row_length: int):
        self.row_length = row_length
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        documents, begins, sizes = _cut_long(lengths, row_length)
        order = np.argsort(-sizes, kind="stable")
        rows = np.array(best_fit(sizes[order].tolist(), row_length)[0], np.int64)
        by_row = np.argsort(rows, kind="stable")
        order = order[by_row]
        self.documents, self.begins, self.sizes = documents[order], begins[order], sizes[order]
        self.bounds = np.searchsorted(rows[by_row], np.arange(rows.max(initial=-1) + 2))

    def row(self, tokens: Tokens, number: int) -> Row:
        """Row `number` from the tokens of all documents end to end."""
        row, start = empty_row(self.row_length), 0
        own = slice(self.bounds[number], self.bounds[number + 1])
        begins = (self.starts[self.documents[own]] + self.begins[own]).tolist()
        for segment, (begin, size) in enumerate(zip(begins, self.sizes[own].tolist()), 1):
            place = slice(start, start + size)
            part, trained = tokens.cut(begin, begin + size + 1)
            row.tokens_T[place] = part[:-1]
            row.targets_T[place] = part[1:]
            row.segment_ids_T[place] = segment
            row.positions_T[place] = np.arange(size)
            row.weights_T[place] = 1 if trained is None else trained[1:]
            start += size
        return row

    def pieces(self, number: int) -> list[Piece]:
        """What row `number` is made of."""
        own = slice(self.bounds[number], self.bounds[number + 1])
        sizes = self.sizes[own]
        starts = np.cumsum(sizes) - sizes
        columns = (self.documents[own], self.begins[own], sizes, starts, sizes)
        return [Piece(*map(int, values)) for values in zip(*columns)]

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self.bounds) - 1

    def rows_with(self, document: int) -> list[int]:
        """Rows that hold tokens of a document as inputs."""
        places = np.flatnonzero(self.documents == document)
        return sorted(set((np.searchsorted(self.bounds, places, side="right") - 1).tolist()))


def arrange(packing: Packing, lengths: np.ndarray, row_length: int) -> Split | BestFit:
    """The plan of a window."""
    return (Split if packing == "split" else BestFit)(lengths, row_length)


def count_rows(packing: Packing, lengths: np.ndarray, bounds: np.ndarray, row_length: int) -> np.ndarray:
    """Rows of each window. They do not depend on the order of documents in the window."""
    if packing == "split":
        # The last token of a window predicts nothing; the last row of a window is padded.
        tokens = np.add.reduceat(lengths[: bounds[-1]], bounds[:-1])
        return np.maximum(-(-(tokens - 1) // row_length), 0)
    counts = []
    for first, last in itertools.pairwise(bounds):
        sizes = _cut_long(lengths[first:last], row_length)[2]
        counts.append(best_fit(np.sort(sizes)[::-1].tolist(), row_length)[1])
    return np.array(counts, np.int64)


def empty_row(row_length: int) -> Row:
    """Padding alone."""
    return Row(*(np.zeros(row_length, dtype) for dtype in (np.int32, np.int32, np.int32, np.int32, np.float32)))


def _cut_long(lengths: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Document, first token and inputs of every piece; a document of one token has none."""
    inputs = np.asarray(lengths) - 1
    pieces = -(-inputs // row_length)
    documents = np.repeat(np.arange(len(inputs)), pieces)
    first = np.repeat(np.cumsum(pieces) - pieces, pieces)
    begins = (np.arange(len(documents)) - first) * row_length
    return documents, begins, np.minimum(inputs[documents] - begins, row_length)


def best_fit(sizes: list[int], row_length: int) -> tuple[list[int], int]:
    """The row of every piece, given longest first, and the number of rows."""
    placed: list[int] = []
    rooms: list[int] = []  # of the rows begun, ascending
    rows: list[int] = []  # beside them
    count = 0
    for size in sizes:
        at = bisect.bisect_left(rooms, size)
        if at == len(rooms):
            room, row = row_length, count
            count += 1
        else:
            room, row = rooms.pop(at), rows.pop(at)
        placed.append(row)
        if room > size:
            at = bisect.bisect_left(rooms, room - size)
            rooms.insert(at, room - size)
            rows.insert(at, row)
    return placed, count
