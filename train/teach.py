"""The teach stage: what a teacher predicts at every place of the training documents, a few ids of each distribution.

workdir/targets/train-00000.array_record ...           see data/targets.py
workdir/targets/train-00000.done.json                  a shard that is done, so that a killed run goes on behind it
workdir/added-1/targets/ ...                           the same for documents that were added

The teacher reads documents as windows of its context, packed into rows that depend on the shard and the config alone.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from core.errors import UserError
from core.files import MANIFEST, Stage, Stale, read_json, read_manifest, require_spec, write_json
from core.progress import Progress, count, quantity, say
from data.curate.engine import added_folders
from data.order import derive_seed
from data.packing import best_fit
from data.shards import Tokens, TokenShards
from data.targets import TARGETS, Distributions, Form, read_targets, tokens_spec, write_targets
from data.tokenize import TOKENS, open_split, open_tokenizer
from data.windows import windows
from model import transformer
from model.config import ModelConfig
from train import hosts, sharding
from train.compress import draw, largest, place_keys
from train.config import MeshConfig, TeachConfig
from train.teacher import Teacher, find_teacher, layout, load_teacher, require_reads, require_same_tokenizer

VERSION = 1
LOGITS = 1 << 24  # that are computed at once: 64 MB in float32
BATCHES = 16  # of a group of documents, which are packed together


def teach(config: TeachConfig, workdir: Path, *, added: int = 0, stale: Stale = "refuse") -> None:
    """Makes `workdir/targets`, and the same of documents that were added."""
    folders = [workdir, *added_folders(workdir, added)]
    if _needs_no_teacher(config, folders):
        say(f"teach: {workdir / TARGETS} is up to date; {config.teacher} is no longer there")
        return
    shards, form = open_split(workdir, "train", added), Form(config.method, config.tokens, vocabulary(workdir))
    teacher = open_teacher(config)
    require_same_tokenizer(teacher, workdir)
    _require_able(config, teacher, form)
    spec = {"version": VERSION, "teach": config.decides(), "teacher": teacher.spec, "vocab_size": form.vocab_size}
    stages = [Stage(folder / TARGETS, spec | tokens_spec(folder), stale=stale) for folder in folders]
    unfinished = []
    for stage in stages:
        if stage.finished:
            say(f"teach: {stage.folder} is up to date")
        else:
            unfinished.append(Work(stage, shards))
    if not unfinished:
        return
    _require_devices(config)
    bar = Progress("teach", sum(work.places for work in unfinished), start=sum(work.done for work in unfinished))
    predict = make_predict(config, teacher, form)
    for work in unfinished:
        _make(work, config, form, predict, bar, teacher.seen)
    bar.finish(f"{count(bar.done)} distributions")


class Work:
    """The token shards of which a stage holds the targets, and what of them is done."""

    def __init__(self, stage: Stage, shards: TokenShards):
        self.stage, self.shards = stage, shards
        tokens = stage.folder.with_name(TOKENS)
        self.documents = {
            stage.folder / path.name: np.arange(*shards.starts[number : number + 2])
            for number, path in enumerate(shards.paths)
            if path.parent == tokens
        }
        self.places = sum(int(np.maximum(shards.lengths[own] - 1, 0).sum()) for own in self.documents.values())
        self.done = sum(entry["places"] for entry in map(self.entry, self.documents) if entry)

    def entry(self, path: Path) -> dict[str, Any] | None:
        """What the manifest is to say of a shard that is done."""
        mark = mark_of(path)
        found = read_json(mark) if mark.exists() and path.exists() else None
        return found if found and found["size"] == path.stat().st_size else None


def mark_of(path: Path) -> Path:
    """What says that a shard is done."""
    return path.with_suffix(".done.json")


def vocabulary(workdir: Path) -> int:
    """How many ids the tokenizer has: what a distribution is over, whatever rows a model has beyond."""
    return open_tokenizer(workdir).vocab_size


def open_teacher(config: TeachConfig) -> Teacher:
    """The model that the config names."""
    return find_teacher("teach.teacher", config.teacher, config.dtype)


def _is_gone(config: TeachConfig) -> bool:
    """Whether the teacher is no longer where the config says, or the config does not say where."""
    return not config.teacher or not Path(config.teacher).expanduser().exists()


def require_same_teacher(config: TeachConfig, workdir: Path) -> None:
    """Refuses stored targets of another teacher than the one that is named, where both are at hand."""
    if _is_gone(config) or not (workdir / TARGETS).exists():
        return
    teacher, made = open_teacher(config), read_targets(workdir)
    if teacher.seen != made["summary"]["seen"]:
        remedy = "name that teacher again, or run `launch.py teach --rebuild`"
        require_spec(workdir / TARGETS, made, {"teacher": teacher.spec}, remedy)


def _needs_no_teacher(config: TeachConfig, folders: list[Path]) -> bool:
    """Whether the teacher is gone, and what it said of the tokens of all folders is whole."""
    paths = [folder / TARGETS / MANIFEST for folder in folders]
    done = all(path.exists() and read_manifest(path)["complete"] for path in paths)
    if not config.teacher or not _is_gone(config) or not done:
        return False
    for folder in folders:
        require_spec(folder / TARGETS, read_targets(folder), {"teach": config.decides()})
    return True


def _require_able(config: TeachConfig, teacher: Teacher, form: Form) -> None:
    """Refuses a teacher of fewer ids or a shorter context than asked, and more ids of a place than there are."""
    require_reads(teacher, "teach.context", config.context)
    if teacher.model.vocab_size < form.vocab_size:
        raise UserError(
            f"the teacher {teacher.folder} has {teacher.model.vocab_size:,} ids, fewer than the tokenizer's "
            f"{form.vocab_size:,}"
        )
    if config.method == "top_k" and config.tokens > form.vocab_size:
        raise UserError(f"config teach.tokens={config.tokens} is more than the {form.vocab_size:,} ids there are")


def _require_devices(config: TeachConfig) -> None:
    """Refuses devices that the rows do not divide over, and several processes."""
    if hosts.peers is not None:
        raise UserError(
            "several processes as one only train; run `launch.py teach` (same --config and --workdir) first"
        )
    parts = sharding.batch_parts(sharding.make_mesh())
    if config.rows % parts:
        raise UserError(f"config teach.rows={config.rows} is not a multiple of the {parts} devices")


# What the teacher reads, by name [B, T], to what is kept of every place [B, T, k].
Predict = Callable[[dict[str, np.ndarray]], Distributions]


def make_predict(config: TeachConfig, teacher: Teacher, form: Form) -> Predict:
    """The teacher with its parameters on the devices here."""
    mesh = sharding.make_mesh()
    params = load_teacher(teacher, layout(teacher, mesh, MeshConfig()))
    compute = jax.jit(sharding.on_mesh(functools.partial(_distributions, config, teacher.model, form), mesh))
    split = sharding.batch_sharding(mesh)
    return lambda batch: compute(params, jax.device_put(batch, split))


def _distributions(
    config: TeachConfig, model: ModelConfig, form: Form, params: transformer.Params, batch: dict[str, jax.Array]
) -> Distributions:
    """Of every place of a batch [B, T, k]; a stretch of the rows at a time, for all logits are too many."""
    hidden_BTD = transformer.apply(model, params, *(batch[name] for name in READ)).hidden_BTD
    B, T, _ = hidden_BTD.shape
    t = max(
        size for size in range(1, T + 1) if T % size == 0 and (size == 1 or B * size * model.vocab_size <= LOGITS)
    )

    def stretch(_, part: tuple[jax.Array, ...]) -> tuple[None, Distributions]:
        hidden_BtD, documents_Bt, places_Bt = part
        logits_BtV = transformer.logits(model, params, hidden_BtD)[..., : form.vocab_size]
        probs_XV = jax.nn.softmax(logits_BtV / config.temperature).reshape(B * t, -1)
        if form.method == "top_k":
            found = Distributions(*largest(probs_XV, form.tokens))
        else:
            keys_X = place_keys(config.seed, documents_Bt.ravel(), places_Bt.ravel())
            found = Distributions(draw(probs_XV, keys_X, form.tokens))
        return None, jax.tree.map(lambda a: a.reshape(B, t, -1), found)

    rows = (hidden_BTD, batch["documents"], batch["places"])
    stretches = jax.tree.map(lambda a: a.reshape(B, T // t, t, *a.shape[2:]).swapaxes(0, 1), rows)
    found = jax.lax.scan(stretch, None, stretches)[1]
    return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(B, T, -1), found)


def _make(
    work: Work, config: TeachConfig, form: Form, predict: Predict, bar: Progress, seen: dict[str, list[int]]
) -> None:
    """The targets of every token shard of a stage, one after the other."""
    entries = []
    for path, documents in work.documents.items():
        entry = work.entry(path)
        if entry is None:
            entry = write_targets(path, form, _taught(config, form, work.shards, documents, predict, bar))
            write_json(mark_of(path), entry)
        entries.append(entry)
    totals = {key: sum(entry[key] for entry in entries) for key in ("places", "bytes")}
    files = [file for path in work.documents for file in (path, mark_of(path))]
    work.stage.finish(files, {**totals, "shards": entries, "seen": seen})
    each = totals["bytes"] / max(totals["places"], 1)
    say(f"teach: {quantity(totals['bytes'])} in {work.stage.folder}, {each:.1f} bytes a token")


def _taught(
    config: TeachConfig, form: Form, shards: TokenShards, documents: np.ndarray, predict: Predict, bar: Progress
) -> Iterator[tuple[int, Distributions]]:
    """The checksum and the targets of each document, in order. One group is computed while another is written."""
    before = None
    for group in [*_groups(config, shards.lengths[documents]), None]:
        running = None
        if group is not None:
            inside = documents[group]
            packed, texts = _pack(config, shards.lengths[inside]), shards.read_tokens(inside)
            names = [derive_seed(shards.document_id(int(document))) % (1 << 32) for document in inside]
            running = inside, packed, [predict(_batch(config, rows, texts, names)) for rows in packed]
        if before is not None:
            inside, packed, computed = before
            found = _by_document(form, shards.lengths[inside], packed, computed)
            for crc32, own in zip(shards.crc32[inside].tolist(), found):
                yield crc32, own
                bar.update(bar.done + len(own.ids_Pk))
        before = running


def _groups(config: TeachConfig, lengths: np.ndarray) -> Iterator[slice]:
    """Documents that follow one another, of so many tokens as to fill a number of batches."""
    ends, first = np.cumsum(lengths), 0
    while first < len(lengths):
        reach = ends[first] - lengths[first] + BATCHES * config.rows * config.context
        last = max(first + 1, int(np.searchsorted(ends, reach, side="right")))
        yield slice(first, last)
        first = last


class Window(NamedTuple):
    """Tokens begin .. begin + size - 1 of a document, in a row from place `start` on; from `first` on they count."""

    document: int  # its place in the group
    begin: int
    first: int
    size: int
    start: int


Rows = list[list[Window]]


def _pack(config: TeachConfig, lengths: np.ndarray) -> list[Rows]:
    """Batches of rows of windows: longest first, each into the row with the least room that still holds it."""
    found = [
        (min(config.context, length - 1 - begin), document, begin, first)
        for document, length in enumerate(lengths.tolist())
        for begin, first in windows(length, config.context, config.overlap)
        if length > 1
    ]
    found.sort(key=lambda window: (-window[0], window[1:]))
    places, total = best_fit([size for size, *_ in found], config.context)
    rows: Rows = [[] for _ in range(total)]
    for (size, document, begin, first), row in zip(found, places):
        start = rows[row][-1].start + rows[row][-1].size if rows[row] else 0
        rows[row].append(Window(document, begin, first, size, start))
    return [rows[at : at + config.rows] for at in range(0, total, config.rows)]


READ = ("tokens", "segments", "positions")  # of a batch, by the model


def _batch(config: TeachConfig, rows: Rows, texts: list[Tokens], names: list[int]) -> dict[str, np.ndarray]:
    """Rows as arrays [B, T], empty rows at the end; `documents` and `places` in them say which draws are whose."""
    shape = config.rows, config.context
    batch = {name: np.zeros(shape, np.int32) for name in (*READ, "places")}
    batch["documents"] = np.zeros(shape, np.uint32)
    for number, row in enumerate(rows):
        for segment, window in enumerate(row, 1):
            at = number, slice(window.start, window.start + window.size)
            end = window.begin + window.size
            batch["tokens"][at] = texts[window.document].ids[window.begin : end]
            batch["segments"][at] = segment
            batch["positions"][at] = np.arange(window.size)
            batch["places"][at] = np.arange(window.begin, end)
            batch["documents"][at] = names[window.document]
    return batch


def _by_document(
    form: Form, lengths: np.ndarray, packed: list[Rows], computed: list[Distributions]
) -> list[Distributions]:
    """What was computed of batches, put together for each document."""
    shapes = [(max(length - 1, 0), form.tokens) for length in lengths.tolist()]
    has_probs = form.method == "top_k"
    found = [Distributions(np.zeros(s, np.int32), np.zeros(s, np.float32) if has_probs else None) for s in shapes]
    for rows, batch in zip(packed, computed):
        batch = jax.device_get(batch)
        for number, row in enumerate(rows):
            for window in row:
                kept = slice(window.first, window.begin + window.size)
                at = slice(window.start + window.first - window.begin, window.start + window.size)
                for whole, field in zip(found[window.document], batch):
                    if field is not None:
                        whole[kept] = field[number, at]
    return found
