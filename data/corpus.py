"""The documents of a run by source, in the order in which they came, and the rows they give."""

import functools

import numpy as np

from core.errors import UserError, suggest
from core.files import fingerprint
from data.config import Packing
from data.infill import FillInTheMiddle
from data.order import derive_seed
from data.rows import Growth, Rows, Source
from data.shards import TokenShards
from data.stream import Stream

POOL = ""  # the name of all documents as one source, which an empty mixture reads


class Corpus:
    """Sources of token shards; rows and streams are made once and shared, so that equal ones are one object."""

    def __init__(self, shards: TokenShards, seed: int, infill: FillInTheMiddle | None = None):
        self.shards, self.seed, self.infill = shards, seed, infill
        self.generations = tuple(map(fingerprint, shards.hashes))  # first those curated at first, then what was added
        self.source = functools.cache(self._source)
        self.rows = functools.cache(self._rows)
        self.stream = functools.cache(Stream)

    def generations_of(self, name: str, count: int) -> list[np.ndarray]:
        """Numbers of a source's documents in each of the first generations."""
        if name == POOL:
            chosen = np.arange(self.shards.generation_starts[count])
        elif name in self.shards.source_names:
            of_all = self.shards.source_of[: self.shards.generation_starts[count]]
            chosen = np.flatnonzero(of_all == self.shards.source_names.index(name))
        else:
            known = [source or "(none)" for source in self.shards.source_names]
            raise UserError(f"the mixture names a source {name} that no document has{suggest(name, known)}")
        return np.split(chosen, np.searchsorted(chosen, self.shards.generation_starts[1:count]))

    def grown(self, name: str, base: int, count: int) -> int:
        """How often a source first read with `base` generations has grown when there are `count`."""
        return sum(len(documents) > 0 for documents in self.generations_of(name, count)[base:])

    def _source(self, name: str, base: int) -> Source:
        generations = self.generations_of(name, len(self.generations))
        later = [documents for documents in generations[base:] if len(documents)]
        seed = self.seed if name == POOL else derive_seed(self.seed, "source", name)
        return Source(self.shards, [np.concatenate(generations[:base]), *later], seed, self.infill)

    def _rows(self, name: str, base: int, row_length: int, packing: Packing, growths: tuple[Growth, ...]) -> Rows:
        source = self.source(name, base)
        shown = f"source {name}" if name else "the corpus"
        tokens = int(source.lengths[: source.bounds[source.windows[len(growths)]]].sum())
        if tokens <= row_length:
            raise UserError(f"{shown} holds {tokens:,} tokens, not a row of {row_length:,} and the one after it")
        rows = Rows(source, row_length, packing, growths)
        if not rows.rows_per_epoch:
            raise UserError(f"{shown} holds no document of two tokens; give more text")
        return rows
