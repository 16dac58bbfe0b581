"""What a run reads of a source, row after row, across changes of what a row is.

A stream goes on where another left the source: what is unread of the window under way is planned anew as rows of the
new kind, then come the windows that follow. So no token of an epoch is left out or read twice, whatever the stages.
"""

import functools
from typing import NamedTuple

import numpy as np

from data.order import Permutation, derive_seed
from data.packing import Piece, Row, arrange
from data.rows import Growth, Rows
from data.shards import Tokens, end_to_end


class Fragment(NamedTuple):
    """Tokens begin .. begin + length - 1 of a document, the last of them only predicted."""

    document: int  # its number in the shards
    begin: int
    length: int


class Stream:
    """`row(n)` for every n >= `start`. From `first` on the numbers are those of `rows`; those before are a rest."""

    def __init__(self, rows: Rows, before: tuple["Stream", int] | None = None, first: int = 0):
        """`before` is the stream that read the source until now, and its next row."""
        self.rows, self.first = rows, first
        self.rest = Rest(before[0].unread(before[1]), before[0].epoch(before[1]), rows) if before else None
        self.start = first - (self.rest.count if self.rest else 0)

    def row(self, number: int) -> Row:
        """Row `number`."""
        return self.rest.row(number - self.start) if number < self.first else self.rows.row(number)

    def pieces(self, number: int) -> list[Piece]:
        """What row `number` is made of; documents are numbers in the shards."""
        return self.rest.pieces(number - self.start) if number < self.first else self.rows.pieces(number)

    def epoch(self, number: int) -> int:
        """The epoch of row `number`."""
        return self.rest.epoch if number < self.first else self.rows.locate(number).epoch

    def rows_with(self, document: int, epoch: int) -> list[int]:
        """Numbers of the rows of an epoch that hold tokens of a document, given as its number in the shards."""
        found = []
        if epoch >= self.rows.first_epoch:  # a rest may be of the epoch before
            found += [number for number in self.rows.rows_with(document, epoch) if number >= self.first]
        if self.rest is not None and epoch == self.rest.epoch:
            found += [self.start + row for row in self.rest.rows_with(document)]
        return sorted(found)

    def next_window(self, number: int) -> Growth:
        """Epoch and place of the first window of which no row comes before row `number`."""
        return self.rows.next_window(max(number, self.first))

    def unread(self, number: int) -> list[Fragment]:
        """The tokens between row `number` and the window that `next_window` names, in the order of the documents."""
        if number < self.first:
            pieces = [piece for row in range(number, self.first) for piece in self.pieces(row)]
            order: dict[int, int] = {}  # documents of a rest as they come in it
            for fragment in self.rest.fragments:
                order.setdefault(fragment.document, len(order))
        else:
            end = self.rows.number(*self.rows.next_window(number))
            pieces = [piece for row in range(number, end) for piece in self.rows.pieces(row)]
            order = self.rows.places(number) if pieces else {}
        found: list[Fragment] = []
        for piece in sorted(pieces, key=lambda piece: (order[piece.document], piece.begin)):
            last = found[-1] if found else None
            if last is not None and (last.document, last.begin + last.length - 1) == (piece.document, piece.begin):
                found[-1] = last._replace(length=last.length + piece.predicted)
            elif piece.predicted:
                found.append(Fragment(piece.document, piece.begin, piece.predicted + 1))
        return found

    def rows_in(self, epochs: int) -> int:
        """The number at which the source has been read `epochs` times."""
        return self.rows.number(epochs, 0) if epochs > self.rows.first_epoch else self.first


class Rest:
    """What is left of a window, as rows of another kind."""

    def __init__(self, fragments: list[Fragment], epoch: int, rows: Rows):
        self.fragments, self.epoch, self.source = fragments, epoch, rows.source
        self.plan = arrange(rows.packing, np.array([part.length for part in fragments], np.int64), rows.row_length)
        self.count = self.plan.count
        seed = derive_seed(rows.source.seed, "rest", epoch, *(fragments[0] if fragments else ()), len(fragments))
        self.shuffle = Permutation(self.count, seed)

    @functools.cached_property
    def tokens(self) -> Tokens:
        """The fragments end to end."""
        documents = np.array([fragment.document for fragment in self.fragments])
        texts = self.source.read(documents, self.epoch)
        return end_to_end(
            [text.cut(part.begin, part.begin + part.length) for text, part in zip(texts, self.fragments)]
        )

    def row(self, index: int) -> Row:
        """Row `index` of the rest."""
        return self.plan.row(self.tokens, int(self.shuffle(index)))

    def pieces(self, index: int) -> list[Piece]:
        """What row `index` is made of; documents are numbers in the shards."""
        found = []
        for piece in self.plan.pieces(int(self.shuffle(index))):
            part = self.fragments[piece.document]
            found.append(piece._replace(document=part.document, begin=part.begin + piece.begin))
        return found

    def rows_with(self, document: int) -> list[int]:
        """The rows that hold tokens of a document."""
        own = (place for place, part in enumerate(self.fragments) if part.document == document)
        return sorted({int(self.shuffle.inverse(row)) for place in own for row in self.plan.rows_with(place)})
