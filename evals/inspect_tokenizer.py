"""What growing the vocabulary did: the tokenizer of a run beside the one it grew from, on the held-out documents."""

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from data.config import TokenizerConfig
from data.document import Document, read_documents
from data.shards import TokenDocument, TokenShards, token_dtype, write_shard
from data.tokenize import CURATED, open_tokenizer, tokenizer_file
from data.tokenizer import Tokenizer, open_tokenizer_file
from evals import perplexity
from evals.config import EvalConfig
from evals.evaluate import token_measure
from evals.vocabulary import compare_tokenizers, print_table
from model.hf import read_params
from model.hf_config import read_config
from train.run import Run, load_params

FOLDER = "inspect-tokenizer"


def inspect_tokenizer(config: EvalConfig, tokenizer: TokenizerConfig, run: Run, workdir: Path) -> None:
    """Makes `workdir/inspect-tokenizer` and prints its table: tokens, speed, coverage and bits per byte.

    By language where documents have one, else by source. Bits per byte of the model that was imported with its own
    tokenizer, and of the newest checkpoint with the grown one.
    """
    if not tokenizer.extend_to:
        raise UserError("config tokenizer.extend_to is 0; there is no tokenizer before and after to compare")
    documents = list(_heldout(workdir))
    texts: dict[str, list[str]] = {}
    for document in documents:
        texts.setdefault(document.language or document.source, []).append(document.text)
    before, after = open_tokenizer_file(tokenizer_file(tokenizer)), open_tokenizer(workdir)
    folder = Path(run.start.folder).expanduser()
    old = dataclasses.replace(run, model=dataclasses.replace(read_config(folder), dtype=run.model.dtype))
    sides = {
        "before": _bits(config, old, read_params(folder, old.model), before, documents),
        "after": _bits(config, run, load_params(run, workdir)[0], after, documents),
    }
    bits = {name: {side: found[name] for side, found in sides.items()} for name in texts}
    print_table(compare_tokenizers(before.path, after.path, texts, workdir / FOLDER, bits_per_byte=bits))


def _heldout(workdir: Path) -> Iterator[Document]:
    for path in sorted((workdir / CURATED).glob("heldout-*.parquet")):
        yield from read_documents(path)


def _bits(
    config: EvalConfig, run: Run, params: Any, tokenizer: Tokenizer, documents: list[Document]
) -> dict[str, float]:
    """Bits per byte of every language or source."""
    names = [document.language or document.source for document in documents]
    encoded = (
        TokenDocument(document.id, name, tokenizer.document(document.text), len(document.text.encode()))
        for name, document in zip(names, documents)
    )
    with tempfile.TemporaryDirectory() as folder:
        dtype = token_dtype(tokenizer.vocab_size)
        shard = write_shard(Path(folder) / "heldout-00000.array_record", encoded, dtype)
        shards = TokenShards(Path(folder), [shard], dtype.str)
        nats = token_measure(config, run, progress=True)(params, shards)
        found = perplexity.by_source(names, np.asarray(shards.predicted_bytes), nats)
        return {name: own["bits_per_byte"] for name, own in found}
