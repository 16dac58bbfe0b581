"""The tokenize stage: learns the tokenizer from the training documents, or takes one; encodes every document.

workdir/tokenizer/tokenizer.model             or the files of the tokenizer that is given
workdir/tokens/{train,heldout}-00000.array_record and their indexes
workdir/tokens/chat_template.jinja            by which conversations were written, where there are any
workdir/added-1/tokens/ ...   the same for documents that were added
"""

import functools
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import (
    Stage,
    Stale,
    atomic_write,
    hash_file,
    is_gone,
    read_json,
    read_stage,
    require_spec,
    write_json,
)
from core.progress import say, track
from data.chat import ChatTemplate, default_source, open_template, read_template
from data.config import TokenizerConfig
from data.conversations import chat_tokens, encode_document, is_conversation
from data.curate.engine import added_folders
from data.document import read_documents
from data.shards import TokenDocument, TokenShards, index_path, token_dtype, write_shard
from data.tokenizer import (
    CONTEXT,
    MODEL,
    Tokenizer,
    beside,
    find_file,
    open_tokenizer_file,
    own_files,
    read_bounded,
)
from data.workers import process_map

VERSION = 2
TEMPLATE = "chat_template.jinja"
CHAT_DATE = "2025-06-30"  # what templates take for today, since tokens must not depend on the day they are made
CURATED, TOKENIZER, TOKENS = "curated", "tokenizer", "tokens"


def tokenize(
    config: TokenizerConfig, workdir: Path, *, added: int = 0, stale: Stale = "refuse", workers: int = 0
) -> dict[str, Any]:
    """Makes `workdir/tokenizer` and `workdir/tokens`; returns the summary of the tokens.

    The tokenizer is learnt from the first documents only; those `added` later are encoded with it.
    """
    curated = read_stage(workdir / CURATED, "curate")["summary"]
    if config.extend_to:
        tokenizer = _extend_tokenizer(config, curated["hashes"], workdir, stale)
    elif config.path:
        tokenizer = take_tokenizer(config, workdir, stale)
    else:
        tokenizer = _train_tokenizer(config, curated["hashes"], workdir, stale)
    template = _given_template(config, tokenizer).dated(CHAT_DATE)
    folders = [workdir, *added_folders(workdir, added)]
    summaries = [_encode(tokenizer, template, folder, stale, workers) for folder in folders]
    return summaries[0]


def _encode(
    tokenizer: Tokenizer, template: ChatTemplate, workdir: Path, stale: Stale, workers: int
) -> dict[str, Any]:
    """Every curated shard of a folder."""
    curated = read_stage(workdir / CURATED, "curate")["summary"]
    spec = {"version": VERSION, "tokenizer": tokenizer.fingerprint, "curated": curated["hashes"]}
    if "conversations" in curated:
        spec["template"] = template.fingerprint
    stage = Stage(workdir / TOKENS, spec, stale=stale)
    if stage.finished:
        say(f"tokenize: {stage.folder} is up to date")
        return stage.summary

    names = [name.removesuffix(".parquet") for name in sorted(curated["hashes"])]
    tasks = [(workdir, name, template, tokenizer.path, tokenizer.fingerprint) for name in names]
    shards = dict(track(process_map(_encode_shard, tasks, workers), "tokenize", len(tasks)))
    summary = _summary(tokenizer, [shards[name] for name in names])
    paths = [stage.folder / shard["name"] for shard in shards.values()]
    files = [*paths, *map(index_path, paths)]
    if "conversations" in curated:
        files.append(stage.folder / TEMPLATE)
        with atomic_write(files[-1], "w") as file:
            file.write(template.source)
    stage.finish(files, summary)
    for path in paths:
        path.with_suffix(".done.json").unlink()
    total = summary["train"]
    say(
        f"tokenize: {total['tokens']:,} tokens to train on, {total['bytes'] / total['tokens']:.2f} bytes a token, "
        f"{summary['not_lossless']} documents that do not decode to themselves"
    )
    return summary


def require_tokenized(config: TokenizerConfig, workdir: Path) -> None:
    """Refuses a tokenizer or a template of another config, and files that are no longer those that were taken."""
    folder = workdir / TOKENIZER
    spec = {"tokenizer": config.decides()}
    if config.path and not is_gone(config.path, folder):
        spec["files"] = _hashes(_sources(config))
    require_spec(folder, read_stage(folder, "tokenize"), spec)
    folder = workdir / TOKENS
    manifest = read_stage(folder, "tokenize")
    if "template" in manifest["spec"] and (not config.template or Path(config.template).expanduser().exists()):
        template = _given_template(config, open_tokenizer(workdir)).dated(CHAT_DATE)
        require_spec(folder, manifest, {"template": template.fingerprint})


def open_split(workdir: Path, split: str, added: int = 0) -> TokenShards:
    """The token shards of `train` or `heldout`, with those of `added` generations behind them."""
    shards, dtype = [], ""
    tokenizer = open_tokenizer(workdir).fingerprint
    for generation, folder in enumerate([workdir, *added_folders(workdir, added)]):
        manifest = read_stage(folder / TOKENS, "tokenize")
        if manifest["spec"]["version"] != VERSION:
            raise UserError(
                f"{folder / TOKENS} was made by another version of Quintet; run `launch.py tokenize --rebuild`"
            )
        if manifest["spec"]["tokenizer"] != tokenizer:
            raise UserError(
                f"{folder / TOKENS} was encoded by another tokenizer than {workdir / TOKENIZER}; "
                "run `launch.py tokenize --rebuild`"
            )
        dtype, where = manifest["summary"]["dtype"], (folder / TOKENS).relative_to(workdir)
        for shard in manifest["summary"][split]["shards"]:
            shards.append({**shard, "name": str(where / shard["name"]), "generation": generation})
    return TokenShards(workdir, shards, dtype)


def open_tokenizer(workdir: Path) -> Tokenizer:
    """The tokenizer of a workdir."""
    read_stage(workdir / TOKENIZER, "tokenize")
    return open_tokenizer_file(workdir / TOKENIZER)


def special_tokens(config: TokenizerConfig, workdir: Path) -> Collection[str]:
    """Names of the special tokens that the tokenizer of a config has, or will have once it is trained."""
    if not config.path:
        return config.special
    if is_gone(config.path, workdir / TOKENIZER):
        return open_tokenizer(workdir).special_tokens
    return open_tokenizer_file(tokenizer_file(config)).special_tokens


def take_tokenizer(config: TokenizerConfig, workdir: Path, stale: Stale) -> Tokenizer:
    """A tokenizer that exists, copied."""
    decided = {"version": VERSION, "tokenizer": config.decides()}
    if is_gone(config.path, workdir / TOKENIZER):
        return _copied(config, decided, workdir)
    given = open_tokenizer_file(config.path)
    given.require_special(config.special)
    sources = _sources(config)
    spec = decided | {"files": _hashes(sources)}
    stage = Stage(workdir / TOKENIZER, spec, stale=stale)
    if not stage.finished:
        for name, source in sources.items():
            with atomic_write(stage.folder / name) as file:
                file.write(read_bounded(source))
        summary = {"vocab_size": given.vocab_size, "source": _resolved(config)}
        stage.finish([stage.folder / name for name in sources], summary)
        if given.eos is None:
            say(f"tokenize: {given.path} names no token for the end of a text; documents end without one")
    return open_tokenizer_file(stage.folder)


def _extend_tokenizer(config: TokenizerConfig, curated: dict[str, str], workdir: Path, stale: Stale) -> Tokenizer:
    """A SentencePiece model that exists, grown by pieces of the training documents."""
    from data.tokenizer_extend import GROWTH, extend, write_growth

    decided = {"version": VERSION, "tokenizer": config.decides(), "curated": curated}
    if is_gone(config.path, workdir / TOKENIZER):
        return _copied(config, decided, workdir)
    source = _sources(config)[MODEL]
    spec = decided | {"files": _hashes({MODEL: source})}
    stage = Stage(workdir / TOKENIZER, spec, stale=stale)
    path = stage.folder / MODEL
    if not stage.finished:
        growth = extend(source, _training_texts(workdir), config.extend_to, path, train_mb=config.train_mb)
        write_growth(stage.folder / GROWTH, growth)
        summary = {"vocab_size": growth.vocab_size, "added": len(growth.pieces), "source": _resolved(config)}
        stage.finish([path, stage.folder / GROWTH], summary)
        say(f"tokenize: {len(growth.pieces):,} pieces of {growth.learned_bytes:,} bytes added to {source}")
    return open_tokenizer_file(path)


def _training_texts(workdir: Path) -> Iterator[str]:
    for shard in sorted((workdir / CURATED).glob("train-*.parquet")):
        for document in read_documents(shard):
            yield document.text


def _copied(config: TokenizerConfig, decided: dict[str, Any], workdir: Path) -> Tokenizer:
    """What was made of a tokenizer that is no longer there."""
    folder = workdir / TOKENIZER
    require_spec(folder, read_stage(folder, "tokenize"), decided)
    say(f"tokenize: {config.path} is no longer there; what {folder} holds of it serves")
    return open_tokenizer(workdir)


def _resolved(config: TokenizerConfig) -> str:
    return str(Path(config.path).expanduser().resolve())


def tokenizer_file(config: TokenizerConfig) -> Path:
    """The file of a given tokenizer: where it is to grow the SentencePiece model, even beside a tokenizer.json."""
    if not config.extend_to:
        return find_file(config.path)
    path = Path(config.path).expanduser()
    path = path / MODEL if path.is_dir() else path
    if path.suffix != ".model" or not path.is_file():
        raise UserError(f"{config.path} has no {MODEL}; tokenizer.extend_to grows SentencePiece models only")
    return path


def _sources(config: TokenizerConfig) -> dict[str, Path]:
    """The files of a given tokenizer, and those beside a tokenizer.json that say what begins and ends a text."""
    path = tokenizer_file(config)
    if config.extend_to:
        return {MODEL: path}
    context = beside(path, CONTEXT) if path.suffix == ".json" else ()
    return own_files(path) | {file.name: file for file in context}


def _hashes(files: dict[str, Path]) -> dict[str, str]:
    return {name: hash_file(path) for name, path in files.items()}


def open_chat_template(workdir: Path, date: str | None = None) -> ChatTemplate:
    """The template of a workdir: by which its conversations were written, or the tokenizer's own, or ours."""
    tokens = chat_tokens(open_tokenizer(workdir))
    if (path := workdir / TOKENS / TEMPLATE).exists():
        return read_template(path, **tokens, date=date)
    own = open_template(workdir / TOKENIZER, **tokens, date=date)
    return own or ChatTemplate(default_source(), name="our chat template", **tokens, date=date)


def _given_template(config: TokenizerConfig, tokenizer: Tokenizer) -> ChatTemplate:
    """The template that the config asks for."""
    tokens = chat_tokens(tokenizer)
    if config.template:
        return read_template(Path(config.template).expanduser(), **tokens)
    own = open_template(tokenizer.path.parent, **tokens)
    return own or ChatTemplate(default_source(), name="our chat template", **tokens)


def _train_tokenizer(config: TokenizerConfig, curated: dict[str, str], workdir: Path, stale: Stale) -> Tokenizer:
    from data.tokenizer_sentencepiece import train

    spec = {"version": VERSION, "tokenizer": config.decides(), "curated": curated}
    stage = Stage(workdir / TOKENIZER, spec, stale=stale)
    path = stage.folder / MODEL
    if not stage.finished:
        train(_training_texts(workdir), config, path)
        stage.finish([path], {"vocab_size": config.vocab_size})
    return open_tokenizer_file(path)


@functools.lru_cache(maxsize=1)
def _opened(path: Path, fingerprint: str) -> Tokenizer:  # noqa: ARG001
    """Opened once a worker: a vocabulary of 128,256 takes a second. The fingerprint keeps a changed file apart."""
    return open_tokenizer_file(path)


def _encode_shard(task: tuple) -> tuple[str, dict[str, Any]]:
    """Encodes one curated shard, unless that is done; counts the documents that do not decode to themselves."""
    workdir, name, template, *opened = task
    path = workdir / TOKENS / f"{name}.array_record"
    mark = path.with_suffix(".done.json")
    if mark.exists() and path.exists() and (done := read_json(mark))["size"] == path.stat().st_size:
        return name, done
    tokenizer = _opened(*opened)
    not_lossless = 0

    def encoded():
        nonlocal not_lossless
        for document in read_documents(workdir / CURATED / f"{name}.parquet"):
            own = {"bytes": len(document.text.encode()), "license": document.license}
            if is_conversation(document):
                talk = encode_document(tokenizer, template, document)
                not_lossless += not talk.lossless
                own |= {"ids": talk.ids, "trained": talk.trained, "trained_bytes": talk.trained_bytes}
            else:
                own["ids"] = tokenizer.document(document.text)
                not_lossless += tokenizer.decode(own["ids"]) != document.text
            yield TokenDocument(document.id, document.source, **own)

    shard = write_shard(path, encoded(), token_dtype(tokenizer.vocab_size))
    shard["not_lossless"] = not_lossless
    write_json(mark, shard)
    return name, shard


def _summary(tokenizer: Tokenizer, shards: list[dict[str, Any]]) -> dict[str, Any]:
    splits = {}
    for split in ("train", "heldout"):
        own = [shard for shard in shards if shard["name"].startswith(split)]
        counts = {key: sum(shard[key] for shard in own) for key in ("documents", "tokens", "bytes")}
        splits[split] = {**counts, "shards": own}
    return {
        **splits,
        "vocab_size": tokenizer.vocab_size,
        "dtype": token_dtype(tokenizer.vocab_size).str,
        "not_lossless": sum(shard["not_lossless"] for shard in shards),
    }
