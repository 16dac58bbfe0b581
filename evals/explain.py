"""The explain verb: what a step saw, with the loss of every document, or which steps saw a document.

Steps are numbered as in `metrics.jsonl`: step k is the k-th update, past or planned. Tables go to standard output,
separated by tabs; what is said about them goes to standard error.
"""

import functools
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from core.errors import UserError
from core.page import printable
from core.progress import say
from data.explain import sightings
from data.pipeline import Batch, Batches
from data.plan import Plan
from data.tokenize import CURATED, open_split
from objectives import next_token
from train.checkpoint import Checkpoints
from train.run import CHECKPOINTS, FOLDER, Run, load_params, open_plan
from train.sharding import make_mesh, on_mesh

ROWS_AT_ONCE = 8  # of the forward pass, so that a large batch fits where it was not trained


def explain(
    run: Run, workdir: Path, *, step: int | None, document: str | None, checkpoint: int | None = None
) -> None:
    """Prints the documents of a step, or the steps of a document."""
    if (step is None) == (document is None):
        raise UserError("explain takes either --step=K or --document=ID")
    plan = open_plan(run, workdir)
    if document is not None:
        _explain_document(run, plan, workdir, document)
    else:
        _explain_step(run, workdir, plan, step, checkpoint)


def _explain_step(run: Run, workdir: Path, plan: Plan, step: int, checkpoint: int | None) -> None:
    if not 1 <= step <= plan.steps:
        raise UserError(f"step {step:,} is not in this run, whose steps are 1 to {plan.steps:,}")
    batches, segment = Batches(plan, repeats=run.repeats), plan.segment(step - 1)
    documents = batches.documents(step - 1)
    params, saved = _params(run, workdir, step, checkpoint)
    batch = None if params is None else batches.batch(step - 1)
    nats_BT = None if params is None else token_nats(run, params, batch)
    rows = []
    for found in documents:
        piece, shards = found.piece, plan.corpus.shards
        inside = slice(piece.start, piece.start + piece.size)
        predicted = 0 if batch is None else batch.weights_BT[found.row, inside].sum()  # of conversations not all
        loss = f"{nats_BT[found.row, inside].sum() / predicted:.4f}" if predicted else "-"
        source, name = shards.source(piece.document), shards.document_id(piece.document)
        license = shards.license(piece.document) or "-"
        where = (f"{piece.start}-{inside.stop}", f"{piece.begin}-{piece.begin + piece.size}")
        rows.append((found.row, *where, found.epoch, source, license, loss, name))
    _print(("row", "positions", "tokens", "epoch", "source", "license", "loss", "document"), rows)
    state = f"loss in nats a token under the checkpoint of step {saved:,}" if saved is not None else "no loss"
    say(
        f"explain: step {step:,} of {plan.steps:,}, stage {segment.number + 1}: {segment.stage.rows} rows of "
        f"{segment.stage.row_length} tokens, {len({found.piece.document for found in documents})} documents; {state}"
    )


def _params(run: Run, workdir: Path, step: int, checkpoint: int | None) -> tuple[Any, int | None]:
    """Parameters to measure with: of the named checkpoint, or of the last from before the step if one is kept."""
    folder = workdir / FOLDER / CHECKPOINTS
    steps = Checkpoints(folder).steps if folder.is_dir() else []
    if checkpoint is not None and checkpoint not in steps:
        raise UserError(f"{folder} holds no checkpoint of step {checkpoint:,}; there are {steps}")
    if checkpoint is None and not any(saved < step for saved in steps):
        say(f"explain: no checkpoint from before step {step:,} is kept; --checkpoint=K names another ({steps})")
        return None, None
    return load_params(run, workdir, at_most=step - 1 if checkpoint is None else None, exactly=checkpoint)


def token_nats(run: Run, params: Any, batch: Batch) -> np.ndarray:
    """Cross-entropy of every token of a batch, a few rows at a time."""
    measure = jax.jit(on_mesh(functools.partial(next_token.token_nats, run.model), make_mesh()))
    starts = range(0, len(batch.tokens_BT), ROWS_AT_ONCE)
    parts = (Batch(*(field[start : start + ROWS_AT_ONCE] for field in batch)) for start in starts)
    return np.concatenate([np.asarray(measure(params, part)) for part in parts])


def _explain_document(run: Run, plan: Plan, workdir: Path, identifier: str) -> None:
    number = plan.corpus.shards.find(identifier)
    if number is None:
        raise UserError(f"document {identifier} is not trained on: {_why_not(run, workdir, identifier)}")
    folder = workdir / FOLDER / CHECKPOINTS
    done = (Checkpoints(folder).latest or 0) if folder.is_dir() else 0
    rows = []
    for batch, row, epoch, piece in sightings(plan, number):
        where = (f"{piece.start}-{piece.start + piece.size}", f"{piece.begin}-{piece.begin + piece.size}")
        rows.append((batch + 1, "past" if batch < done else "planned", row, *where, epoch))
    _print(("step", "when", "row", "positions", "tokens", "epoch"), rows)
    shards, steps = plan.corpus.shards, len({row[0] for row in rows})
    say(
        f"explain: {identifier}, {shards.lengths[number]:,} tokens of {shards.source(number)}, is in {steps:,} of "
        f"{plan.steps:,} steps; {done:,} are done"
    )


def _why_not(run: Run, workdir: Path, identifier: str) -> str:
    """What became of a document that no training shard holds."""
    if open_split(workdir, "heldout", run.added).find(identifier) is not None:
        return "it is held out"
    for path in sorted(workdir.glob(f"**/{CURATED}/dropped.jsonl")):
        with path.open(encoding="utf-8") as file:
            for line in file:
                if (entry := json.loads(line))["id"] == identifier:
                    return f"it was dropped ({entry['reason']})"
    return "there is none of this id"


def _print(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """A table with one tab between columns; control characters in names show as signs."""
    for row in [head, *rows]:
        cells = (re.sub(r"[\t\n]", " ", printable(str(cell))) for cell in row)
        sys.stdout.write("\t".join(cells) + "\n")
