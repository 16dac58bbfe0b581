"""Quintet's and Grain's sides of pipeline.py: from token shards to batches.

Grain's are of its own transformations: documents in a shuffled order, packed as they come. They give what ours gives
but for the weights: tokens, targets, segments and positions.
"""

import itertools
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import grain
import numpy as np
from grain.experimental import BestFitPackIterDataset, ConcatThenSplitIterDataset
from turns import resident_mb, say, serve

from data.config import BatchConfig
from data.corpus import Corpus
from data.history import ask
from data.pipeline import Batch, Batches
from data.plan import Plan
from data.shards import TokenShards

STEPS = 2_000_000
SEED = 0


def quintet(folder: Path, given: dict) -> tuple[Batches, TokenShards]:
    """The batches of a run of two million steps."""
    shards = TokenShards(folder, json.loads((folder / "shards.json").read_text()), "<u2")
    corpus = Corpus(shards, SEED)
    return Batches(Plan((ask(BatchConfig(**given), STEPS, corpus.generations),), corpus, SEED)), shards


def grain_batches(folder: Path, given: dict) -> grain.DatasetIterator:
    """All documents as one pool, shuffled, packed as they come; every epoch has another order."""
    length, rows = given["row_length"], given["rows"]
    source = grain.sources.ArrayRecordDataSource([str(path) for path in sorted(folder.glob("*.array_record"))])
    # Rows of one token more hold the targets. What is longer than a row is cut for best fit, as MaxText does.
    limit = length + 1 if given["packing"] == "best_fit" else None
    dataset = grain.MapDataset.source(source).seed(SEED).shuffle().repeat(reseed_each_epoch=True)
    dataset = dataset.map(lambda record: {"tokens": np.frombuffer(record, "<u2")[:limit].astype(np.int32)})
    documents = dataset.to_iter_dataset(grain.ReadOptions(given["threads"], 500))
    if given["packing"] == "best_fit":
        packed = BestFitPackIterDataset(documents, length_struct={"tokens": length + 1}, num_packing_bins=rows)
    else:
        packed = ConcatThenSplitIterDataset(documents, length_struct={"tokens": length + 1})
    return iter(packed.batch(rows).map(_shift))


def _shift(packed: dict) -> Batch:
    tokens, segments, positions = (packed[name] for name in ("tokens", "tokens_segment_ids", "tokens_positions"))
    return Batch(tokens[:, :-1], tokens[:, 1:], segments[:, :-1], positions[:, :-1], None)


def padding(batch: Batch) -> float:
    return float((batch.segment_ids_BT == 0).mean())


def turns(folder: Path, side: str, given: dict) -> None:
    """Reads on as it is told."""
    if side == "grain":
        serve(grain_batches(folder, given), padding)
    elif given.pop("read_ahead"):
        serve(quintet(folder, given)[0].iterate(0, STEPS), padding)
    else:
        serve(map(quintet(folder, given)[0].batch, itertools.count()), padding)


def resume(folder: Path, side: str, given: dict) -> None:
    """Seconds to a batch: ours by its number, Grain's by reading up to it or, once that is done, from its state."""
    began, step = time.perf_counter(), given.pop("step")
    if side == "quintet":
        batches, shards = quintet(folder, given)
        opened, read, inner = time.perf_counter() - began, [], shards.read
        shards.read = lambda documents: read.append(len(documents)) or inner(documents)
        batches.batch(step)
        say(opened=opened, total=time.perf_counter() - began, documents=sum(read))
        return
    saved, batches = folder / f"state-{given['packing']}.json", grain_batches(folder, given)
    if saved.exists():
        batches.set_state(json.loads(saved.read_text()))
    else:
        for _ in range(step):
            next(batches)
        saved.write_text(json.dumps(batches.get_state()))
    next(batches)
    say(total=time.perf_counter() - began)


def memory(folder: Path, side: str, given: dict) -> None:
    """Resident memory of ours after each number of batches, or when the seconds are over."""
    assert side == "quintet"
    wanted, began, seconds = given.pop("at"), time.perf_counter(), given.pop("seconds")
    batches = quintet(folder, given)[0].iterate(0, STEPS)
    for done in itertools.count(1):
        next(batches)
        late = time.perf_counter() - began > seconds
        if done in wanted or late:
            say(batches=done, resident_mb=resident_mb())
        if late or done >= max(wanted):
            return


def main() -> None:
    mode, side, folder, given = sys.argv[1:]
    {"turns": turns, "resume": resume, "memory": memory}[mode](Path(folder), side, json.loads(given))


if __name__ == "__main__":
    main()
