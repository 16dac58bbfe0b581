"""How diverse a corpus is, measured on a sample of its text that is the same however the documents come.

Each measure is one of the field's, computed without a model: distinct n-grams (Li et al. 2016), the compression ratio
(Shaib et al. 2024), and the entropy of latent topics, which is the logarithm of the Vendi score (Friedman and Dieng
2023) over TF-IDF vectors.
"""

import heapq
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import zstandard

SAMPLE = 4 << 20  # characters of the sample
MOST = 1 << 14  # of these from one document
WORDS = 400_000  # that n-grams are counted over: their share falls with the length of a text
TOPIC_DOCUMENTS, TOPIC_CHARS, TOPIC_WORDS = 512, 4096, 8192  # the last is the number of hashed words
ONE_BLOCK = zstandard.ZstdCompressionParameters.from_level(9, window_log=23)  # sees all of the sample at once


class TextSample:
    """The beginnings of the documents with the smallest hashes, so many that they fill the sample."""

    def __init__(self):
        self.heap: list[tuple[int, str]] = []  # the largest hash first
        self.characters = 0

    def add(self, number: int, text: str) -> None:
        """Takes a document where its hash is among the smallest."""
        if self.characters >= SAMPLE and -number <= self.heap[0][0]:
            return
        heapq.heappush(self.heap, (-number, text[:MOST]))
        self.characters += min(len(text), MOST)
        while self.characters - len(self.heap[0][1]) >= SAMPLE:
            self.characters -= len(heapq.heappop(self.heap)[1])

    def texts(self) -> list[str]:
        """In order of the hashes."""
        return [text for _, text in sorted(self.heap, reverse=True)]


def diversity(texts: Sequence[str]) -> dict[str, Any]:
    """The measures as plain data; shares and ratios, topics in bits."""
    words = _words(texts)
    return {
        "documents": len(texts),
        "characters": sum(map(len, texts)),
        "words": sum(map(len, words)),
        "distinct": [_distinct(words, n) for n in (1, 2, 3)],
        "compression": _compression(texts),
        "topics": _topics(texts[:TOPIC_DOCUMENTS]),
    }


def _words(texts: Iterable[str]) -> list[np.ndarray]:
    """Numbers of the words, split at white space, of the first documents."""
    numbers: dict[str, int] = {}
    found, room = [], WORDS
    for text in texts:
        words = text.split()[:room]
        found.append(np.array([numbers.setdefault(word, len(numbers)) for word in words], np.int64))
        room -= len(words)
        if not room:
            break
    return found


def _distinct(words: list[np.ndarray], n: int) -> float:
    """Different runs of n words within documents, as a share of all."""
    base = 1 + max((int(own.max()) for own in words if len(own)), default=0)  # at most WORDS, whose cube fits 64 bits
    runs = [sum(own[k : len(own) - n + 1 + k] * base**k for k in range(n)) for own in words if len(own) >= n]
    joined = np.concatenate([np.empty(0, np.int64), *runs])
    return round(len(np.unique(joined)) / max(1, len(joined)), 4)


def _compression(texts: Sequence[str]) -> dict[str, float]:
    """Bytes for a byte of Zstandard: of the sample as one, and of each document alone, which sees no other."""
    compressor = zstandard.ZstdCompressor(compression_params=ONE_BLOCK)
    parts = [text.encode() for text in texts]
    size = sum(map(len, parts))
    together, alone = compressor.compress(b"\n".join(parts)), sum(len(compressor.compress(part)) for part in parts)
    return {"together": round(size / len(together), 2), "alone": round(size / max(1, alone), 2)}


def _topics(texts: Sequence[str]) -> dict[str, float]:
    """Entropy of the shares of latent topics, the eigenvalues of the documents' similarities over their number.

    A document is the TF-IDF vector of its words, those in one document alone left out.
    """
    if not texts:
        return {"documents": 0, "bits": 0.0}
    vectors_NW = np.zeros((len(texts), TOPIC_WORDS))  # 32 MB; counts at first
    for row, text in enumerate(texts):
        for word in re.findall(r"\w+", text[:TOPIC_CHARS].lower()):
            vectors_NW[row, zlib.crc32(word.encode()) % TOPIC_WORDS] += 1
    documents_W = np.count_nonzero(vectors_NW, axis=0)
    # One that is in all documents still counts 1: equal documents are one topic.
    weights_W = np.where(documents_W > 1, 1 + np.log((1 + len(texts)) / (1 + documents_W)), 0)
    np.log1p(vectors_NW, out=vectors_NW)
    vectors_NW *= weights_W
    norms_N = np.sqrt(np.einsum("NW,NW->N", vectors_NW, vectors_NW))
    vectors_NW /= np.where(norms_N > 0, norms_N, 1)[:, None]
    similar_NN = vectors_NW @ vectors_NW.T
    np.fill_diagonal(similar_NN, 1)  # also of those that share no word with another
    shares = np.linalg.eigvalsh(similar_NN / len(texts))
    bits = -sum(share * math.log2(share) for share in shares.tolist() if share > 1e-12)
    return {"documents": len(texts), "bits": round(max(0.0, bits), 2)}
