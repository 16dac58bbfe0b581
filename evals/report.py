"""The report stage: one self-contained page that says what was trained, on what, and how good it is.

Everything is read from the stages of a workdir; what is missing is named with the verb that makes it.
"""

import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import platform
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from core.config import parse
from core.errors import UserError
from core.files import MANIFEST, Stage, atomic_write, fingerprint, first_difference, hash_file
from core.page import Page, code, link, strong, tag
from core.progress import count, quantity, say
from data.config import BatchConfig
from evals import draw, figures, figures_logits
from evals.figures import column
from evals.found import VERBS, Found, read
from evals.planned import PLAN, Predict, planned_and_measured
from evals.schedule import schedule_section
from model.config import MultiToken
from objectives.config import ObjectiveConfig
from optim.config import OptimConfig
from optim.schedule import Steps
from train import goodput
from train.run import HISTORY

VERSION = 5
FOLDER = "report"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece", "numpy")
XZ = "xz -9e"
GOODPUT = {
    "setup": "setup: until the first step",
    "compile": "compiling the step",
    "step": "steps",
    "data": "waiting for data",
    "checkpoint": "saving checkpoints",
    "eval": "held-out evaluation",
    "rework": "steps lost by a kill and done again",
}


def report(
    config: Mapping[str, Any], workdir: Path, *, command: str | None = None, predict: Predict | None = None
) -> Path:
    """Makes `workdir/report/report.html` and `loss.png`; `command` is shown as the way to do it all again.

    `predict` says how long a step should take on the devices at hand.
    """
    stage = Stage(workdir / FOLDER, _spec(config, workdir), stale="replace")
    path, image = stage.folder / "report.html", stage.folder / "loss.png"
    if stage.finished:
        say(f"report: {stage.folder} is up to date")
        return path
    found = read(config, workdir)
    _page(found, command, predict).write(path)
    with atomic_write(image) as file:
        draw.png(figures.loss(found.rows), file)
    stage.finish([path, image], {"step": found.step})
    say(f"report: {path}")
    return path


def _spec(config: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    inputs = [f"{name}/{MANIFEST}" for name in VERBS] + [
        "train/metrics.jsonl",
        f"train/{HISTORY}",
        "eval/eval.json",
        str(PLAN),
    ]
    hashes = {name: hash_file(workdir / name) for name in inputs if (workdir / name).exists()}
    return {"version": VERSION, "config": fingerprint(config), "inputs": hashes}


def _page(found: Found, command: str | None, predict: Predict | None) -> Page:
    footer = f"Quintet report {VERSION}, made from {found.workdir.resolve()}"
    page = Page(found.name, *_lead(found), footer=footer)
    _state(page, found)
    page.tiles(_tiles(found))
    page.section("Schedule")
    _schedule(page, found)
    sections = [
        ("Loss", _loss, found.rows, "train"),
        ("Beside compressors", _compressors, found.result, "eval"),
        ("While training", _dynamics, found.rows, "train"),
        ("Goodput", _goodput, found.rows, "train"),
        ("Planned and measured", functools.partial(_planned, predict), found.rows, "train"),
        ("Data", _data, found.summary("curated"), "curate"),
        ("Tokenizer", _tokenizer, found.summary("tokens"), "tokenize"),
        ("Samples", _samples, found.result, "eval"),
    ]
    for title, write, holds, verb in sections:
        page.section(title)
        if holds:
            write(page, found)
        else:
            page.notice("Nothing here yet: ", code(f"launch.py {verb}"), " makes it.")
    page.section("Reproduce")
    _reproduce(page, found, command)
    return page


def _lead(found: Found) -> list[Any]:
    """Plain English: what was trained on what, and how good it is."""
    if not found.rows:
        return ["No model is trained yet; this page shows what the workdir holds so far."]
    model, tokens = found.model, found.summary("tokens")
    text = [f"A {model.num_layers}-layer transformer of {count(model.num_parameters)} parameters, trained "]
    text += [f"for {found.step:,} steps on {count(found.tokens)} tokens"]
    if tokens:
        text += [f", {_epochs(found)} over {quantity(tokens['train']['bytes'])} of text"]
    if curated := found.summary("curated"):
        names = list(curated["sources"])
        shown = names if len(names) <= 5 else [*names[:4], f"{len(names) - 4} more sources"]
        text += [f" ({', '.join(shown)})"]
    text += [". "]
    if found.result:
        ours, xz = found.result["heldout"]["bits_per_byte"], found.result["compressors"][XZ]["each_document"]
        text += [f"On {found.result['heldout']['documents']:,} held-out documents it needs "]
        text += [strong(f"{ours:.3f} bits per byte"), f", {_beside(ours, xz)} "]
        text += [f"{XZ} needs on the same documents, each alone ({xz:.3f})."]
    else:
        text += ["It is not evaluated yet."]
    return text


def _beside(ours: float, other: float) -> str:
    change = ours / other - 1
    if abs(change) < 0.005:
        return "as many as"
    return f"{abs(change):.0%} {'fewer' if change < 0 else 'more'} than"


def _epochs(found: Found) -> str:
    epochs = found.tokens / found.summary("tokens")["train"]["tokens"]
    return f"{epochs:.2g} epochs" if epochs < 10 else f"{epochs:,.0f} epochs"


def _state(page: Page, found: Found) -> None:
    """What a reader must know first: training unfinished, another config, an older evaluation."""
    if not found.trained:
        page.notice(strong("Nothing is trained yet: "), code("launch.py train"), " does it.")
        return
    if found.summary("train") is None:
        done = f"Training is not finished: step {found.step:,} of {found.steps:,}. "
        page.notice(strong(done), "The command under ", link("Reproduce", "Reproduce"), " continues it.")
    if found.result and found.result["step"] < found.step:
        older = f"The evaluation is of step {found.result['step']:,}, training has reached {found.step:,}: "
        page.notice(older, code("launch.py eval"), " brings it up to date.")
    if differing := _differing(found):
        page.notice("The config given here is not the one trained; they differ in ", code(differing), ".")


# What `train.run.run_spec` leaves out where it is not asked for, as it then is.
LEFT_OUT = {
    "model": {"multi_token": dataclasses.asdict(MultiToken())},
    "objective": dataclasses.asdict(ObjectiveConfig()),
}


def _differing(found: Found) -> str:
    """Keys that training recorded with another value than the config gives; defaults are recorded only."""
    given = _plain({part: found.config.get(part, {}) for part in ("model", "objective", "optim")})
    given["objective"].get("distill", {}).pop("teacher", None)  # recorded by its hash, for it may lie elsewhere
    recorded = {part: _plain(LEFT_OUT.get(part, {})) | found.trained.get(part, {}) for part in given}
    pairs = [(part, key, value) for part, values in given.items() for key, value in values.items()]
    pairs = [pair for pair in pairs if pair[:2] != ("model", "kernels")]  # which may change within a run
    keys = [f"{part}.{key}" for part, key, value in pairs if not _recorded(recorded[part].get(key), value)]
    batch = parse(BatchConfig, found.config.get("batch", {}), "batch")
    steps = found.config.get("train", {}).get("steps", 0)
    if found.stages and (steps or batch.stages):
        asked = _plain([stage._asdict() for stage in batch.plan(steps)])
        if asked != found.stages:
            keys.append(first_difference(found.stages, asked, "stages"))
    return ", ".join(keys)


def _plain(tree: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(tree))


def _recorded(recorded: Any, given: Any) -> bool:
    """True when what is given of a group of keys, which may be a part of it, is what was recorded."""
    if isinstance(recorded, Mapping) and isinstance(given, Mapping):
        return all(_recorded(recorded.get(key), value) for key, value in given.items())
    return recorded == given


def _tiles(found: Found) -> list[tuple[str, str, str]]:
    none, model, rate = "-", found.model, found.rate
    heldout = (none, "not evaluated")
    partial = column(found.rows, "heldout_bits_per_byte")[1]
    if len(partial):
        heldout = (f"{partial[-1]:.3f}", "while training, first documents only")
    if found.result:
        xz = found.result["compressors"][XZ]["each_document"]
        heldout = (f"{found.result['heldout']['bits_per_byte']:.3f}", f"{XZ}: {xz:.3f}, each document alone")
    tokens = found.tokens
    epochs = _epochs(found) if tokens and found.summary("tokens") else ""
    seconds = max((row["seconds"] for row in found.rows), default=0)
    flops = found.flops_per_token(found.stages[-1]["row_length"]) if model and tokens else 0
    compute = quantity(flops * tokens, "FLOP") if flops else none
    return [
        ("Held-out bits per byte", *heldout),
        ("Parameters", count(model.num_parameters) if model else none, "embedding counted once"),
        ("Tokens trained on", count(tokens) if tokens else none, epochs),
        ("Tokens per second", count(rate) if rate else none, "median"),
        ("Training time", _time(seconds) if seconds else none, "without evaluation and saving"),
        (
            "Training compute",
            compute,
            f"{quantity(flops * rate, 'FLOP')}/s, computed from the shape" if flops else "",
        ),
    ]


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _schedule(page: Page, found: Found) -> None:
    """By the config, before a run as after it."""
    batch = parse(BatchConfig, found.config.get("batch", {}), "batch")
    steps = found.config.get("train", {}).get("steps", 0)
    if not (steps or batch.stages):
        page.text("The config does not say how long to train.")
        return
    optim = parse(OptimConfig, found.config.get("optim", {}), "optim")
    batches = [Steps(stage.steps, stage.rows * stage.row_length) for stage in batch.plan(steps)]
    try:
        schedule_section(draw.Sheet(page), optim, batches)
    except UserError as error:  # which training will refuse
        page.notice(strong("This cannot be trained: "), str(error))


def _loss(page: Page, found: Found) -> None:
    steps, losses = column(found.rows, "loss")
    fall = f"from {losses[0]:.2f} at step {steps[0]:,} to {losses[-1]:.2f} at step {steps[-1]:,}"
    alt = f"Training loss in nats per token, {fall}"
    caption = []
    if len(losses) >= figures.SMOOTHED_FROM:
        caption += ["The light line is the loss of single steps, the strong one their running mean."]
    vocabulary = found.model.vocab_size
    caption += [f"Guessing evenly among {vocabulary:,} tokens costs {math.log(vocabulary):.2f} nats."]
    if len(column(found.rows, "heldout_bits_per_byte")[0]):
        caption += ["While training, bits per byte are measured on the first held-out documents only."]
    draw.Sheet(page).figure("loss", functools.partial(figures.loss, found.rows), alt, " ".join(caption))


def _compressors(page: Page, found: Found) -> None:
    heldout, others = found.result["heldout"], found.result["compressors"]
    ours = heldout["bits_per_byte"]
    name = f"this model, step {found.result['step']:,}"
    alt = f"Held-out bits per byte: {ours:.3f} for this model, {others[XZ]['each_document']:.3f} for {XZ}"
    draw.Sheet(page).figure("compressors", functools.partial(figures.compressors, ours, name, others), alt)
    tokens = found.summary("tokens")
    seen = quantity(tokens["train"]["bytes"]) if tokens else "a corpus"
    page.text(
        "Bits per byte say how well the next token is predicted, whatever the tokenizer: the bits that an "
        "arithmetic coder driven by the model would need, over the bytes of the text. Stored plainly, text "
        f"takes 8. Read the comparison with care: the model has seen {seen} of text from the same sources, "
        "and its own size is not counted, while the compressors start from nothing or, as one stream, from "
        "the other held-out documents. To beat them is the least to expect, and the number compares only "
        "with others measured on the same documents."
    )
    rows = [(code(source), *_numbers(own)) for source, own in heldout["by_source"].items()]
    page.table(["source", "documents", "bytes", "bits per byte"], [*rows, ("all", *_numbers(heldout))])
    page.text(
        f"{heldout['tokens']:,} tokens of {heldout['nats_per_token']:.3f} nats, each predicted once, in "
        f"windows of {heldout['window']:,} tokens that start {heldout['stride']:,} apart."
    )
    if "conversations" in heldout:
        page.text(
            f"Of the documents {heldout['conversations']:,} are conversations: of these only what the assistant said "
            "is predicted, compressed and counted. The model has read what it was asked; the compressors have not."
        )


def _numbers(counts: Mapping[str, Any]) -> tuple[int, int, float]:
    return counts["documents"], counts["bytes"], counts["bits_per_byte"]


def _dynamics(page: Page, found: Found) -> None:
    optim = found.trained["optim"]
    limited = optim.get("clip", {}).get("kind", "global_norm") in ("global_norm", "zclip")
    clip = optim.get("clip_norm") if limited else None
    drawn = [
        ("rate", "Learning rate by step", figures.learning_rate(found.rows)),
        ("norm", "Gradient norm by step", figures.grad_norm(found.rows, clip)),
        ("logit", "Largest attention logit by step", figures.max_logit(found.rows)),
        ("speed", "Tokens per second by step", figures.tokens_per_second(found.rows)),
    ]
    page.figures((draw.svg(figure, name, alt), "") for name, alt, figure in drawn)
    if figures_logits.kept(found.rows):
        threshold = found.trained["optim"].get("qk_clip", {}).get("threshold", 0.0)
        make = functools.partial(figures_logits.max_logits, found.rows, threshold)
        draw.Sheet(page).figure("heads", make, "Largest attention logit of every head")


def _goodput(page: Page, found: Found) -> None:
    seconds = next(filter(None, map(goodput.read, reversed(found.rows))), {})  # not every row has them
    total = sum(seconds.values())
    if not total:
        page.text("The metrics of this run do not say where its time went.")
        return
    share = seconds.get("step", 0) / total
    page.text(strong(f"{share:.1%} of {_time(total)} went into steps"), ", counted over all restarts.")
    alt = f"Where the time went: {share:.1%} of it into steps"
    draw.Sheet(page).figure("goodput", functools.partial(figures.goodput, seconds), alt)
    rows = [(GOODPUT[kind], own, 100 * own / total) for kind, own in seconds.items()]
    page.table(["what", "seconds", "share, %"], rows)


def _planned(predict: Predict | None, page: Page, found: Found) -> None:
    planned_and_measured(page, found, predict)


def _data(page: Page, found: Found) -> None:
    curated = found.summary("curated")
    drawn = [(figures.sources(curated["sources"]), "sources", "Bytes kept by source")]
    if curated["dropped"]:
        drawn.append((figures.drops(curated["sources"]), "drops", "Documents dropped by reason"))
    page.figures((draw.svg(figure, name, alt), "") for figure, name, alt in drawn)
    kinds = ("train_documents", "train_bytes", "heldout_documents", "heldout_bytes")
    rows = []
    for source, own in curated["sources"].items():
        dropped = sum(number for key, number in own.items() if key not in kinds)
        rows.append((code(source), *(own.get(kind, 0) for kind in kinds), dropped))
    page.table(["source", "to train on", "bytes", "held out", "bytes", "dropped"], rows)
    page.heading("Dropped documents")
    drops = _drops(found.workdir / "curated" / "dropped.jsonl")
    rows = [
        (code(reason), documents, size, code(example["id"]), code(example["source"]))
        for reason, (documents, size, example) in sorted(drops.items(), key=lambda item: -item[1][0])
    ]
    if rows:
        page.table(["reason", "documents", "bytes", "for example", "from"], rows)
    listed = "All are listed in " if rows else "None; they would be listed in "
    page.text(listed, code("curated/dropped.jsonl"), ".")
    if (found.workdir / "curated" / "report.html").exists():
        own = tag("a", "The report of the curation", href="../curated/report.html")
        page.text(own, " has the same by step, and documents of every reason to look at.")


def _drops(path: Path) -> dict[str, tuple[int, int, dict[str, Any]]]:
    """Documents, bytes and the first entry of every reason, read by line: a large corpus drops millions."""
    drops: dict[str, tuple[int, int, dict[str, Any]]] = {}
    with path.open(encoding="utf-8") as file:
        for entry in map(json.loads, file):
            documents, size, example = drops.get(entry["reason"], (0, 0, entry))
            drops[entry["reason"]] = documents + 1, size + entry["size"], example
    return drops


def _tokenizer(page: Page, found: Found) -> None:
    tokens = found.summary("tokens")
    splits = [(label, tokens[key]) for label, key in (("to train on", "train"), ("held out", "heldout"))]
    rows = [
        (label, own["documents"], own["bytes"], own["tokens"], own["bytes"] / max(own["tokens"], 1))
        for label, own in splits
    ]
    page.table(["split", "documents", "bytes", "tokens", "bytes per token"], rows)
    documents, bad = sum(own["documents"] for _, own in splits), tokens["not_lossless"]
    faithful = f"{bad:,} of {documents:,} documents do not" if bad else f"all {documents:,} documents"
    page.text(f"A vocabulary of {tokens['vocab_size']:,}; {faithful} decode to themselves.")


def _samples(page: Page, found: Found) -> None:
    if not found.result["samples"]:
        page.text("The config asks for none.")
        return
    made = tag("span", "What the model wrote", class_="made")
    page.text("None is picked by hand. ", made, " stands on a coloured ground, what it was given is grey.")
    for sample in found.result["samples"]:
        named = sample["document"] is not None
        page.text(*(["Continues ", code(sample["document"])] if named else ["From nothing"]))
        prompt = [tag("span", sample["prompt"], class_="given")] if sample["prompt"] else []
        page.pre(*prompt, tag("span", sample["text"] or "(ended at once)", class_="made"))


def _reproduce(page: Page, found: Found, command: str | None) -> None:
    if command is None:
        command = shlex.join(["python", "launch.py", "--config=FILE", f"--workdir={found.workdir}"])
    words = [("\\\n    " if word[:2] == "--" else "") + shlex.quote(word) for word in shlex.split(command)]
    page.pre(" ".join(words))
    page.text("Finished stages are skipped, an interrupted one continues. The config with all overrides:")
    with page.details("Config", opened=True):
        page.tree(found.config)
    page.heading("Stages")
    states = {None: "not begun", True: "finished", False: "not finished"}
    rows = []
    for name, verb in VERBS.items():
        path = found.workdir / name / MANIFEST
        state = states[found.manifests.get(name, {"complete": None})["complete"]]
        digest = hash_file(path) if path.exists() else "-"
        rows.append((code(name), code(f"launch.py {verb}"), state, code(digest)))
    page.table(["folder", "made by", "state", "hash of its manifest"], rows)
    with page.details("Hashes of the data"):
        page.table(["file", "hash"], [(code(name), code(digest)) for name, digest in _data_hashes(found)])
    page.heading("Software and machine")
    page.text("Of this report; training ran on the same where one command ran both.")
    devices = jax.devices()
    machine = f"{len(devices)} {devices[0].platform} ({devices[0].device_kind})"
    rows = [("python", platform.python_version()), *((name, _version(name)) for name in PACKAGES)]
    rows += [("devices", machine), ("CPU cores", str(os.cpu_count())), ("platform", platform.platform())]
    page.table(["what", "which"], rows)


def _data_hashes(found: Found) -> list[tuple[str, str]]:
    curated = found.summary("curated") or {"hashes": {}}
    tokens = found.summary("tokens") or {split: {"shards": []} for split in ("train", "heldout")}
    shards = [shard for split in ("heldout", "train") for shard in tokens[split]["shards"]]
    names = [(f"curated/{name}", digest) for name, digest in sorted(curated["hashes"].items())]
    return names + [(f"tokens/{shard['name']}", shard["hash"]) for shard in shards]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
