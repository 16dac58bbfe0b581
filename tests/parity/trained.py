"""A model trained here: its export in transformers, a step there, and what they saved imported again."""

import tempfile
from pathlib import Path

import numpy as np
from ours import LENGTHS, LOGITS, our_logits
from texts import Ask, python_texts, row

import lab
import launch
from data.tokenize import open_tokenizer
from model.hf import read_params
from model.hf_config import read_config
from train.export import FOLDER
from train.run import load_params


def compare_trained(ask: Ask) -> bool:
    """`trained_model` of a run of seconds, from documents to its export."""
    with tempfile.TemporaryDirectory() as name:
        command = lab.smoke(Path(name) / "run", lab.make_corpus(Path(name) / "corpus"))
        result = lab.launch(*command)
        if result.returncode:
            raise SystemExit(f"launch.py of experiments/smoke.py ended with {result.returncode}:\n{result.stderr}")
        return trained_model(ask, command)


def trained_model(ask: Ask, command: list[str]) -> bool:
    """The finished run of a command line of launch.py: logits of the checkpoint and of the export, and after a step.

    The step is taken by transformers and its folder read here. Prints both, and a row for the tokenizer.
    """
    experiment = launch.open_experiment(launch.parse_arguments(command))
    run, workdir = experiment.training, experiment.workdir
    params, step = load_params(run, workdir)
    rng, source = np.random.default_rng(0), str(workdir / FOLDER)
    ids = [rng.integers(3, run.model.vocab_size, length).tolist() for length in LENGTHS]
    texts = python_texts()
    with tempfile.TemporaryDirectory() as name:
        folder, back = Path(name), Path(name) / "after"
        answer, after, tokens = ask(
            folder,
            [
                {"task": "logits", "folder": source, "ids": ids},
                {"task": "one_step", "folder": source, "ids": ids[3], "out": str(back), "learning_rate": 0.01},
                {"task": "tokens", "folder": source, "texts": texts},
            ],
        )
        config = read_config(back)
        stepped = our_logits(config, read_params(back, config), ids[3])
    worst = max(np.abs(our_logits(run.model, params, one) - answer[f"alone{i}"]).max() for i, one in enumerate(ids))
    moved = np.abs(after["logits"] - answer["alone3"]).max()
    worst_after = np.abs(stepped - after["logits"]).max()
    holds = bool(max(worst, worst_after) < LOGITS < moved)
    print("\n| trained here | logits | the step moves | after it | holds |")
    print("|---|---|---|---|---|")
    shown = f"{worst:.1e} | {moved:.1e} | {worst_after:.1e}"
    model = f"{Path(experiment.arguments.config).stem}, step {step:,}"
    print(f"| {model} | {shown} | {'yes' if holds else 'NO'} |\n", flush=True)
    print("| tokenizer | token ids equal | texts equal | holds |\n|---|---|---|---|")
    return row("its own", open_tokenizer(workdir), texts, tokens) and holds
