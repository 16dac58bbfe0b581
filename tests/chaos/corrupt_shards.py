"""Every file of token shards, corrupted, through the code that opens them."""

import functools
from pathlib import Path

import numpy as np
from chaos.corruptions import Row, run

from core.errors import UserError
from core.files import Stage, read_stage
from data.shards import TokenDocument, TokenShards, index_path, write_shard


def write_tokens(folder: Path) -> list[np.ndarray]:
    """A finished stage of three shards; the tokens of every document."""
    random = np.random.default_rng(0)
    texts = [random.integers(0, 999, random.integers(2, 600)).tolist() for _ in range(120)]
    stage, shards = Stage(folder, {"tokens": 1}), []
    for number in range(3):
        own = range(40 * number, 40 * number + 40)
        documents = [TokenDocument(f"d{i}", "ab"[i % 2], texts[i], len(texts[i])) for i in own]
        shards.append(write_shard(folder / f"train-{number:05d}.array_record", documents, np.dtype("<u2")))
    paths = [folder / shard["name"] for shard in shards]
    stage.finish([*paths, *map(index_path, paths)], {"shards": shards})
    return [np.array(text) for text in texts]


def outcome(folder: Path, expected: list[np.ndarray]) -> str:
    """`detected`, `harmless`, or what went wrong."""
    try:
        summary = read_stage(folder, "tokenize")["summary"]
        shards = TokenShards(folder, summary["shards"], "<u2")
        found = shards.read(np.arange(len(shards)))
        names = [shards.document_id(document) for document in range(len(shards))]
    except UserError as error:
        return "detected" if "\n" not in str(error) else f"more than one line: {error}"
    except Exception as error:  # noqa: BLE001, which is what we are looking for
        return f"{type(error).__name__}: {error}"
    same = len(found) == len(expected) and all(map(np.array_equal, found, expected))
    sources = [shards.source(document) for document in range(len(shards))]
    same &= names == [f"d{i}" for i in range(120)] and sources == ["ab"[i % 2] for i in range(120)]
    return "harmless" if same else "a wrong value, silently"


def check(folder: Path, seed: int, count: int) -> list[Row]:
    """Writes shards, corrupts them, and fails where anything but `detected` and `harmless` came out."""
    expected = write_tokens(folder)
    assert outcome(folder, expected) == "harmless"
    rows, wrong = run(folder, functools.partial(outcome, expected=expected), seed, count)
    assert not wrong, "\n".join(wrong)
    return rows
