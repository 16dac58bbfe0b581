"""Fill in the middle: documents rearranged, so that a model learns to continue from what stands on both sides.

A document is cut at two places into prefix, middle and suffix, which is told by three special tokens (Bavarian et al.
2022, arXiv:2207.14255, with the orders and names of SantaCoder and StarCoder):

    PSM     <prefix> prefix <suffix> suffix <middle> middle
    SPM     <prefix> <suffix> suffix <middle> prefix middle

What begins and ends a document stays at its ends. Which documents are rearranged is a function of (seed, document)
alone, so a document has one length in every epoch and rows stay views by number; where it is cut, and in which order
it is written, is a function of (seed, document, epoch).
"""

from typing import NamedTuple

import numpy as np

from data.order import derive_seed, uniform
from data.shards import Tokens, TokenShards

SENTINELS = 3  # tokens that a document is longer by


class FillInTheMiddle(NamedTuple):
    """How documents are rearranged. The ids are those of the three special tokens."""

    seed: int
    rate: float  # of documents
    spm_rate: float  # of these
    prefix: int
    suffix: int
    middle: int
    begin: int  # how many tokens a document begins with that are none of its text
    end: int  # and ends with
    sources: tuple[str, ...] = ()  # whose documents; empty: all

    def chosen(self, shards: TokenShards, documents: np.ndarray) -> np.ndarray:
        """Which of the documents with these numbers are rearranged: no conversations, none without text."""
        drawn = self._uniform("rate", 0, documents) < self.rate
        plain = ~shards.masked[documents] & (shards.lengths[documents] > self.begin + self.end)
        if not self.sources:
            return drawn & plain
        asked = np.isin(shards.source_names, self.sources)
        return drawn & plain & asked[shards.source_of[documents]]

    def read(self, shards: TokenShards, documents: np.ndarray, epoch: int) -> list[Tokens]:
        """Tokens of the documents with these numbers, those that are chosen as an epoch has them."""
        found, lengths = shards.read_tokens(documents), shards.lengths[documents] - self.begin - self.end
        # Each place between two tokens, and both ends, alike.
        cuts = [self._uniform(name, epoch, documents) * (lengths + 1) for name in ("first", "second")]
        cuts = np.sort(np.stack(cuts, 1).astype(np.int64), 1) + self.begin
        suffix_first = self._uniform("spm_rate", epoch, documents) < self.spm_rate
        for place in np.flatnonzero(self.chosen(shards, documents)).tolist():
            ids = self._rearranged(found[place].ids, *cuts[place].tolist(), bool(suffix_first[place]))
            found[place] = Tokens(ids, None)
        return found

    def _uniform(self, name: str, epoch: int, documents: np.ndarray) -> np.ndarray:
        return uniform(derive_seed(self.seed, "fill_in_the_middle", name, epoch), documents)

    def _rearranged(self, ids: np.ndarray, first: int, second: int, suffix_first: bool) -> np.ndarray:
        """A document whose middle lies between two places in it."""
        begin, prefix, middle, suffix, end = np.split(ids, [self.begin, first, second, len(ids) - self.end])
        p, s, m = np.array([[self.prefix], [self.suffix], [self.middle]], ids.dtype)
        if suffix_first:
            return np.concatenate([begin, p, s, suffix, m, prefix, middle, end])
        return np.concatenate([begin, p, prefix, s, suffix, m, middle, end])
