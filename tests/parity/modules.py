"""Exports that keep modules for further tokens: transformers loads the trunk as without them and passes them over."""

import dataclasses
import tempfile
from pathlib import Path

import jax
import numpy as np
from models import compared, make_folder
from ours import LENGTHS, LOGITS, our_logits
from texts import Ask

from model.config import ModelConfig, MultiToken
from model.hf import SINGLE, read_params, write_model
from model.hf_config import read_config
from model.safetensors_file import read_header

MODELS = ("smollm3-3b", "llama-2-7b", "gemma-2-2b")  # the output layer is the embedding, or one of its own
KINDS = (MultiToken("sequential", 3), MultiToken("parallel", 4))
PARTS = ("kept", "dropped")


def export_both(folder: Path, config: ModelConfig) -> dict:
    """Writes `kept` and `dropped`, the model with its modules and without them, and returns its parameters."""
    make_folder(folder, config)
    params = read_params(folder, config)
    for part, model in zip(PARTS, (config, dataclasses.replace(config, multi_token=MultiToken()))):
        (folder / part).mkdir()
        write_model(folder / part, model, params, max_positions=128, bos=1, eos=None)
    return params


def same_params(one: dict, other: dict) -> bool:
    """To the bit."""
    same = jax.tree.map(np.array_equal, one, other)
    return all(jax.tree.leaves(same))


def compare_modules(ask: Ask) -> bool:
    """A row a model and kind of modules: the export that keeps them there, beside the one that does not, and here."""
    print("\n| model | modules | logits | as without | tensors passed over | back | holds |\n" + "|---" * 7 + "|")
    ids, good = np.random.default_rng(0).integers(2, 96, LENGTHS[-1]).tolist(), True
    cases = {
        (name, kind): dataclasses.replace(compared()[name], multi_token=kind) for name in MODELS for kind in KINDS
    }
    with tempfile.TemporaryDirectory() as made:
        folders = [Path(made) / str(number) for number in range(len(cases))]
        params = [export_both(folder, config) for folder, config in zip(folders, cases.values())]
        questions = [
            {"task": "loaded", "folder": str(folder / part), "ids": ids} for folder in folders for part in PARTS
        ]
        answers = ask(Path(made), questions)
        for number, ((name, kind), config) in enumerate(cases.items()):
            kept, dropped = answers[2 * number : 2 * number + 2]
            headers = [read_header(folders[number] / part / SINGLE) for part in PARTS]
            worst = np.abs(our_logits(config, params[number], ids) - kept["logits"]).max()
            same = np.array_equal(kept["logits"], dropped["logits"])
            passed = set(kept["unexpected"]) == headers[0].keys() - headers[1].keys() and not len(kept["missing"])
            passed &= not len(dropped["unexpected"])
            back = folders[number] / "kept"
            returns = read_config(back).multi_token == kind and same_params(params[number], read_params(back, config))
            holds = worst < LOGITS and same and passed and returns
            good &= holds
            shown = ["yes" if one else "NO" for one in (same, passed, returns, holds)]
            count = f"{len(kept['unexpected'])}: {shown[1]}"
            modules = f"{kind.modules} {kind.kind}"
            print(
                f"| {name} | {modules} | {worst:.1e} | {shown[0]} | {count} | {shown[2]} | {shown[3]} |", flush=True
            )
    return good
