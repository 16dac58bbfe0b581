"""Rows for the new ids of a grown vocabulary; everything else of the model stays as it is, to the bit.

A model may have more rows than its tokenizer has ids (padding to a round number): new ids begin where the old
tokenizer ended and take the padding's rows first.
"""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np

from core.errors import UserError
from model.config import ModelConfig
from model.transformer import Params

How = Literal["mean_of_pieces", "mean", "random"]
BLOCK = 1024  # new rows at a time: the rows of their pieces are copied, which for all at once may be gigabytes


class NewIds(NamedTuple):
    """New ids of a tokenizer, and the old ids that each of them stands for."""

    first: int  # of the new ids; those below are the old tokenizer's
    old_ids: np.ndarray  # of all new ids, one after the other
    offsets: np.ndarray  # [new ids + 1]: where those of each begin

    @property
    def end(self) -> int:
        """One more than the last of them."""
        return self.first + len(self.offsets) - 1


def grow(
    config: ModelConfig, params: Params, new: NewIds, vocab_size: int, how: How = "mean_of_pieces", seed: int = 0
) -> tuple[ModelConfig, Params]:
    """The model with `vocab_size` rows in its embedding and, where it has one, its head. On one host."""
    grown = dict(params)
    for draw, name in enumerate(("embedding", "head")):
        if name in params:  # a tied model has no head of its own
            grown[name] = grow_embedding(params[name], new, vocab_size, how, (seed, draw))
    return dataclasses.replace(config, vocab_size=vocab_size), grown


def grow_embedding(
    table_VD, new: NewIds, vocab_size: int, how: How = "mean_of_pieces", seed: int | tuple[int, ...] = 0
) -> np.ndarray:
    """The table with `vocab_size` rows: the old ones, those of the new ids, and random padding where there is more.

    mean_of_pieces: the mean of the rows of the old pieces. mean: the mean of all old rows. random: normal around
    zero, with the standard deviation of the old rows. Raises UserError where table, ids and size do not fit.
    """
    table_VD = np.asarray(table_VD)
    rows = len(table_VD)
    if rows < new.first:
        raise UserError(
            f"the model has {rows} rows for the {new.first} ids of its tokenizer; name the tokenizer it has"
        )
    if vocab_size < max(rows, new.end):
        raise UserError(
            f"vocab_size={vocab_size} is too small for {rows} rows of the model and {new.end} ids of its tokenizer"
        )
    old_VD = table_VD[: new.first]
    grown = np.empty((vocab_size, table_VD.shape[1]), table_VD.dtype)
    grown[:rows] = table_VD
    random = np.random.default_rng(seed)
    std = old_VD.std(dtype=np.float64)
    for begin in range(new.first, vocab_size, BLOCK):
        block = grown[begin : begin + BLOCK]
        drawn = random.normal(0, std, block.shape)
        block[max(0, rows - begin) :] = drawn[max(0, rows - begin) :]  # padding that is there stays
        count = min(len(block), new.end - begin)
        if count <= 0:
            continue
        if how == "random":
            block[:count] = drawn[:count]
        elif how == "mean":
            block[:count] = old_VD.mean(axis=0, dtype=np.float64)
        else:
            block[:count] = _means(old_VD, new, begin - new.first, count)
    return grown


def _means(old_VD: np.ndarray, new: NewIds, index: int, count: int) -> np.ndarray:
    """The mean row of the pieces of `count` new ids from the `index`-th on."""
    offsets = np.asarray(new.offsets[index : index + count + 1], np.int64)
    pieces = old_VD[np.asarray(new.old_ids[offsets[0] : offsets[-1]])].astype(np.float64)
    sums = np.add.reduceat(pieces, offsets[:-1] - offsets[0], axis=0)
    return sums / np.diff(offsets)[:, None]
