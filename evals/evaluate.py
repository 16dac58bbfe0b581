"""The eval stage: bits per byte, baselines and samples of the newest checkpoint."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from core.files import Stage, read_stage, write_json
from core.progress import say
from data.document import read_documents
from data.tokenize import CURATED, TOKENS, open_split, open_tokenizer
from evals import perplexity
from evals.config import EvalConfig
from model.decode import Decoder
from model.generate import generate
from objectives import next_token
from train.run import Run, load_params, run_spec
from train.sharding import make_mesh, on_mesh

VERSION = 1
FOLDER = "eval"


def evaluate(config: EvalConfig, run: Run, workdir: Path) -> dict[str, Any]:
    """Makes `workdir/eval/eval.json` and returns what stands in it."""
    params, step = load_params(run, workdir)
    spec = {
        "version": VERSION,
        "eval": dataclasses.asdict(config),
        "train": run_spec(run, workdir),
        "step": step,
        "heldout": read_stage(workdir / TOKENS, "tokenize")["summary"]["heldout"],
    }
    stage = Stage(workdir / FOLDER, spec, stale="replace")
    if stage.finished:
        say(f"eval: {stage.folder} is up to date")
        return stage.summary
    texts = list(_predicted_texts(workdir))
    result = {
        "step": step,
        "heldout": _heldout(config, run, workdir, params),
        "compressors": perplexity.compressors(texts),
        "samples": samples(config, run, workdir, params),
    }
    path = stage.folder / "eval.json"
    write_json(path, result)
    stage.finish([path], result)
    ours, xz = result["heldout"]["bits_per_byte"], result["compressors"]["xz -9e"]
    say(
        f"eval: {ours:.3f} bits per byte on {len(texts)} held-out documents "
        f"(xz -9e: {xz['each_document']:.3f} each alone, {xz['one_stream']:.3f} as one stream)"
    )
    return result


def quick_evaluation(config: EvalConfig, run: Run, workdir: Path) -> Callable[[Any], dict[str, float]]:
    """What the loop calls while training: bits per byte of the first held-out documents."""
    shards = open_split(workdir, "heldout")
    measure = token_measure(config, run, make_mesh(run.mesh), max_bytes=config.quick_bytes)

    def call(params: Any) -> dict[str, float]:
        nats = measure(params, shards)
        return {
            "heldout_bits_per_byte": perplexity.bits_per_byte(nats.sum(), shards.predicted_bytes[: len(nats)].sum())
        }

    return call


def samples(config: EvalConfig, run: Run, workdir: Path, params: Any) -> list[dict[str, Any]]:
    """Continuations of held-out documents, and texts from nothing."""
    tokenizer, shards = open_tokenizer(workdir), open_split(workdir, "heldout")
    continued = np.arange(min((config.samples + 1) // 2, len(shards)))
    prompts = [ids[: config.prompt_tokens].tolist() for ids in shards.read(continued)]
    names: list[str | None] = [shards.document_id(int(document)) for document in continued]
    prompts += [tokenizer.prompt("")] * (config.samples - len(prompts))
    names += [None] * (config.samples - len(names))
    if not prompts:
        return []
    decoder = Decoder(run.model, params, config.context or run.row_length)
    settings = {"sampling": config.sampling, "stop_ids": tokenizer.stop_ids, "seed": run.seed}
    texts: list[list[int]] = [[] for _ in prompts]
    steps = generate(decoder, prompts, max_tokens=config.sample_tokens, **settings)
    for tokens in steps:
        for text, token in zip(texts, tokens):
            if token is not None:
                text.append(token)
    return [
        {"document": name, "prompt": tokenizer.decode(prompt), "text": tokenizer.decode(text)}
        for name, prompt, text in zip(names, prompts, texts)
    ]


def token_measure(
    config: EvalConfig, run: Run, mesh: jax.sharding.Mesh | None = None, **limits: Any
) -> Callable[[Any, Any], np.ndarray]:
    """A function of parameters and token shards that gives the nats of every document, on the mesh of the parameters.

    Without one it is of all devices here, which need not be those that the run was trained on.
    """
    compiled = jax.jit(on_mesh(functools.partial(next_token.token_nats, run.model), mesh or make_mesh()))

    def token_nats(params: Any, batch: Any) -> Any:
        nats_BT = compiled(params, batch)
        return nats_BT if nats_BT.is_fully_addressable else multihost_utils.process_allgather(nats_BT, tiled=True)

    settings = {"length": run.row_length, "overlap": config.overlap, "rows": config.rows}
    return lambda params, shards: perplexity.evaluate(token_nats, params, shards, **settings, **limits)


def _heldout(config: EvalConfig, run: Run, workdir: Path, params: Any) -> dict[str, Any]:
    shards = open_split(workdir, "heldout")
    nats = token_measure(config, run, progress=True)(params, shards)
    sources = [shards.source(document) for document in range(len(shards))]
    predicted, sizes = int(shards.predicted.sum()), shards.predicted_bytes
    return {
        "documents": len(shards),
        **({"conversations": int(shards.masked.sum())} if shards.masked.any() else {}),
        "bytes": int(sizes.sum()),
        "tokens": predicted,
        "bits_per_byte": perplexity.bits_per_byte(nats.sum(), sizes.sum()),
        "nats_per_token": float(nats.sum() / predicted),
        "by_source": dict(perplexity.by_source(sources, sizes, nats)),
        "window": run.row_length,
        "stride": round(run.row_length * (1 - config.overlap)),
    }


def _predicted_texts(workdir: Path) -> Iterator[bytes]:
    """The text of every held-out document, of a conversation what the assistant said; in shard order."""
    read_stage(workdir / CURATED, "curate")
    shards, tokenizer = open_split(workdir, "heldout"), open_tokenizer(workdir)
    paths = sorted((workdir / CURATED).glob("heldout-*.parquet"))
    for number, document in enumerate(itertools.chain.from_iterable(map(read_documents, paths))):
        if not shards.masked[number]:
            yield document.text.encode()
            continue
        (tokens,) = shards.read_tokens(np.array([number]))
        yield tokenizer.decode(tokens.ids[tokens.trained].tolist()).encode()
