"""The export stage: the newest checkpoint and the tokenizer as a folder that Hugging Face tools load."""

import dataclasses
from pathlib import Path

from core.errors import UserError
from core.files import Stage, hash_file
from core.progress import say
from data.tokenize import TEMPLATE, TOKENS, open_tokenizer
from data.tokenizer_hf import write_tokenizer
from model.config import MultiToken
from model.hf import write_model
from train.config import ExportConfig
from train.run import Run, load_params, made_from
from train.start import imported_positions

VERSION = 2
FOLDER = "export"


def export(config: ExportConfig, run: Run, workdir: Path) -> Path:
    """Makes `workdir/export` and returns it."""
    if config.multi_token and not run.model.multi_token.modules:
        raise UserError(
            "config export.multi_token keeps modules, and model.multi_token has none; leave one of both out"
        )
    params, step = load_params(run, workdir)
    tokenizer = open_tokenizer(workdir)
    length = max(run.row_length, imported_positions(run.start, workdir))
    spec = {
        "version": VERSION,
        "train": made_from(run, workdir),
        "model": dataclasses.asdict(run.model),  # of which an import alone leaves some to the config
        "max_positions": length,
        "step": step,
        "export": dataclasses.asdict(config),
        "tokenizer": tokenizer.fingerprint,
    }
    model = run.model
    if not config.multi_token:
        model = dataclasses.replace(model, multi_token=MultiToken())
        del spec["export"]["multi_token"]  # so that what was exported before there was a choice is up to date
    stage = Stage(workdir / FOLDER, spec, stale="replace")
    if stage.finished:
        say(f"export: {stage.folder} is up to date")
        return stage.folder
    ends = {"bos": tokenizer.bos, "eos": tokenizer.eos, "stop_ids": tokenizer.stop_ids}
    write_model(stage.folder, model, params, max_positions=length, dtype=config.dtype, **ends)
    write_tokenizer(stage.folder, tokenizer, length)
    if (template := workdir / TOKENS / TEMPLATE).exists():  # that conversations were trained on with
        (stage.folder / TEMPLATE).write_bytes(template.read_bytes())
    files = sorted(path for path in stage.folder.iterdir() if path.name != "manifest.json")
    weights = {path.name: hash_file(path) for path in files if path.suffix == ".safetensors"}
    stage.finish(files, {"step": step, "weights": weights})
    say(f"export: AutoModelForCausalLM.from_pretrained({str(stage.folder)!r}) loads step {step:,}")
    return stage.folder
