"""Bits per byte on held-out documents, beside compressors on the same bytes.

A document longer than the model's window is read in overlapping windows; every token is predicted once, in the
first window that holds it. The end token is predicted too, so that the bits would suffice to decode the
documents; their number divides by the bytes of the text alone. Of a conversation only what the assistant said is
predicted, and only its bytes count.
"""

import lzma
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from core.progress import track
from data.pipeline import Batch
from data.shards import TokenShards
from data.windows import windows

TokenNats = Callable[[Any, Batch], jax.Array]  # (params, batch) -> nats of every token, 0 where none is asked


def evaluate(
    token_nats: TokenNats,
    params: Any,
    shards: TokenShards,
    *,
    length: int,
    overlap: float,
    rows: int,
    max_bytes: int | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Nats of every document, in shard order; with `max_bytes`, of the first that reach it."""
    count = len(shards)
    if max_bytes is not None:
        count = min(count, int(np.searchsorted(np.cumsum(shards.bytes), max_bytes)) + 1)
    pieces = [
        (document, begin, first)
        for document in range(count)
        for begin, first in windows(int(shards.lengths[document]), length, overlap)
    ]
    nats = np.zeros(count)
    groups = [pieces[i : i + rows] for i in range(0, len(pieces), rows)]
    for group in track(groups, "eval", len(groups)) if progress else groups:
        batch = _batch(shards, group, length, rows)
        row_nats = np.asarray(token_nats(params, batch), np.float64).sum(axis=1)
        np.add.at(nats, [document for document, _, _ in group], row_nats[: len(group)])
    return nats


def _batch(shards: TokenShards, group: list[tuple[int, int, int]], length: int, rows: int) -> Batch:
    """Windows as a batch of fixed shape, empty rows at the end."""
    arrays = {
        name: np.zeros((rows, length), np.float32 if name == "weights_BT" else np.int32) for name in Batch._fields
    }
    texts = shards.read_tokens(np.array([document for document, _, _ in group]))
    for row, (text, (_, begin, first)) in enumerate(zip(texts, group)):
        piece, trained = text.cut(begin, begin + length + 1)
        size = len(piece) - 1
        arrays["tokens_BT"][row, :size] = piece[:-1]
        arrays["targets_BT"][row, :size] = piece[1:]
        arrays["segment_ids_BT"][row, :size] = 1
        arrays["positions_BT"][row] = np.arange(length)
        asked = slice(first - begin, size)
        arrays["weights_BT"][row, asked] = 1 if trained is None else trained[1:][asked]
    return Batch(**arrays)


def bits_per_byte(nats: float, size: int) -> float:
    """Bits per byte of UTF-8."""
    return float(nats / math.log(2) / size)


def compressors(texts: Iterable[bytes]) -> dict[str, dict[str, float]]:
    """Bits per byte of zlib and xz at their best, on each document alone and on all of them as one stream.

    A document alone is what the model sees; one stream lets the compressor learn from the other documents.
    """
    texts = list(texts)
    size = sum(map(len, texts))

    def both(compress: Callable[[bytes], bytes]) -> dict[str, float]:
        alone = sum(len(compress(text)) for text in texts)
        return {"each_document": 8 * alone / size, "one_stream": 8 * len(compress(b"".join(texts))) / size}

    raw = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    return {
        "zlib -9": both(lambda text: zlib.compress(text, 9, wbits=-15)),  # no header, which would cost small texts
        "xz -9e": both(lambda text: lzma.compress(text, lzma.FORMAT_RAW, filters=raw)),
    }


def by_source(sources: list[str], sizes: np.ndarray, nats: np.ndarray) -> Iterator[tuple[str, dict[str, Any]]]:
    """Documents, bytes and bits per byte of every source."""
    for source in sorted(set(sources)):
        own = np.array([name == source for name in sources])
        size = int(sizes[own].sum())
        counts = {"documents": int(own.sum()), "bytes": size}
        yield source, {**counts, "bits_per_byte": bits_per_byte(nats[own].sum(), size)}
