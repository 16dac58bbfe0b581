"""Which steps see a document: the inverse of the order of data."""

from typing import NamedTuple

from data.corpus import POOL
from data.packing import Piece
from data.plan import Plan, Segment


class Sighting(NamedTuple):
    """Tokens of a document in a row of a batch."""

    batch: int
    row: int
    epoch: int
    piece: Piece


def sightings(plan: Plan, document: int) -> list[Sighting]:
    """Every time the run sees a document, by its number in the shards, in order.

    The cost is that of the answer: epochs of the document's source, whatever the number of steps.
    """
    name, found = plan.corpus.shards.source(document), []
    for segment in plan.segments:
        for source, read in enumerate(segment.mixture.weights):
            if read in (name, POOL):
                found += _in_segment(segment, source, document)
    return sorted(found)


def _in_segment(segment: Segment, source: int, document: int) -> list[Sighting]:
    stream = segment.streams[source]
    first, end = int(segment.read(segment.first)[source]), int(segment.read(segment.end)[source])
    found = []
    if first == end:
        return found
    for epoch in range(stream.epoch(first), stream.epoch(end - 1) + 1):
        for number in stream.rows_with(document, epoch):
            if first <= number < end:
                batch, row = segment.find(source, number)
                pieces = [piece for piece in stream.pieces(number) if piece.document == document]
                found += [Sighting(batch, row, epoch, piece) for piece in pieces]
    return found
