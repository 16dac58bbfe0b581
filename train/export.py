"""The export stage: the newest checkpoint and the tokenizer as a folder that Hugging Face tools load."""

from pathlib import Path

import jax

from core.files import Stage, hash_file
from core.progress import say
from data.tokenize import TEMPLATE, TOKENS, open_tokenizer
from data.tokenizer_hf import write_tokenizer
from model.hf import write_model
from train.run import Run, load_params, run_spec

VERSION = 1
FOLDER = "export"


def export(run: Run, workdir: Path) -> Path:
    """Makes `workdir/export` and returns it."""
    params, step = load_params(run, workdir)
    tokenizer = open_tokenizer(workdir)
    spec = {
        "version": VERSION,
        "train": run_spec(run, workdir),
        "step": step,
        "tokenizer": tokenizer.fingerprint,
    }
    stage = Stage(workdir / FOLDER, spec, stale="replace")
    if stage.finished:
        say(f"export: {stage.folder} is up to date")
        return stage.folder
    length = run.row_length
    ends = {"bos": tokenizer.bos, "eos": tokenizer.eos}
    write_model(stage.folder, run.model, jax.device_get(params), max_positions=length, **ends)
    write_tokenizer(stage.folder, tokenizer, length)
    if (template := workdir / TOKENS / TEMPLATE).exists():  # that conversations were trained on with
        (stage.folder / TEMPLATE).write_bytes(template.read_bytes())
    files = sorted(path for path in stage.folder.iterdir() if path.name != "manifest.json")
    stage.finish(files, {"step": step, "weights": hash_file(stage.folder / "model.safetensors")})
    say(f"export: AutoModelForCausalLM.from_pretrained({str(stage.folder)!r}) loads step {step:,}")
    return stage.folder
