"""Our models and tokenizers beside Hugging Face transformers, live.

    make parity                 every preset made small, every way to stretch RoPE, modules kept, both kinds
                                of tokenizer, and a model trained for seconds
    python tests/parity/run.py --peer-python=... --workdir=runs/quickstart      a trained model alone; also takes its
                                --config=FILE and --config.a.b=VALUE
    python tests/parity/run.py --peer-python=... --write-golden     also tests/model/golden_logits.npz

Prints tables; exits 1 where a row is out of bounds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import functools

import numpy as np
from models import compared, make_folder
from modules import compare_modules
from ours import (
    GRADIENTS,
    HALF,
    LENGTHS,
    LOGITS,
    in_bfloat16,
    our_logits,
    our_packed,
    relative,
    through_cache,
    worst_gradient,
)
from rotary import compare_rotary
from texts import Ask, compare_tokenizers
from trained import compare_trained, trained_model

from model.config import ModelConfig
from model.hf import read_params, write_weights
from model.hf_config import read_config, to_hf
from model.presets import PRESETS
from model.safetensors_file import read_header, read_tensor

GOLDEN = Path(__file__).resolve().parents[1] / "model" / "golden_logits.npz"


def ask_peer(python: str, folder: Path, questions: list[dict[str, Any]]) -> list[Any]:
    """The answers of the peer, one process for all questions."""
    (folder / "questions.json").write_text(json.dumps(questions))
    peer = Path(__file__).with_name("peer.py")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    subprocess.run([python, peer, folder / "questions.json", folder], check=True, env=environment)
    found = []
    for number, question in enumerate(questions):
        if question["task"] == "tokens":
            found.append(json.loads((folder / f"{number}.json").read_text()))
        else:
            found.append(dict(np.load(folder / f"{number}.npz")))
    return found


def same_bits(config: ModelConfig, params: dict, source: Path, folder: Path) -> bool:
    """Whether our export of what we read is the file that was read, tensor by tensor."""
    write_weights(folder, config, params)
    ours, theirs = (read_header(where / "model.safetensors") for where in (folder, source))
    return ours.keys() == theirs.keys() and all(
        np.array_equal(read_tensor(ours[name]), read_tensor(theirs[name])) for name in ours
    )


def compare_models(ask: Ask, write_golden: bool) -> bool:
    """A row a model: logits alone, padded, packed, in bfloat16, gradients, and the weights there and back."""
    print("| model | logits | packed | cache | bfloat16 | packed | cache | theirs | gradients ", end="")
    print("| a step there | same bits | holds |\n" + "|---" * 12 + "|", flush=True)
    rng, good, golden = np.random.default_rng(0), True, {}
    ids = [rng.integers(2, 96, length).tolist() for length in LENGTHS]
    with tempfile.TemporaryDirectory() as name:
        folder, models = Path(name), compared()
        questions = []
        for number, config in enumerate(models.values()):
            make_folder(folder / str(number), config)
            here = {"folder": str(folder / str(number)), "ids": ids}
            questions.append({"task": "logits", **here})
            there = {"ids": ids[3], "out": str(folder / f"{number}-after"), "learning_rate": 0.01}
            questions.append({"task": "one_step", **here, **there})
        answers = ask(folder, questions)
        for number, name in enumerate(models):
            answer, after = answers[2 * number : 2 * number + 2]
            source = folder / str(number)
            config = read_config(source)
            params = read_params(source, config)
            alone = [our_logits(config, params, one) for one in ids]
            worst = max(
                np.abs(own - answer[f"{how}{i}"]).max() for how in ("alone", "padded") for i, own in enumerate(alone)
            )
            packed = our_packed(config, params, ids)
            worst_packed = max(np.abs(own - answer[f"alone{i}"]).max() for i, own in enumerate(packed))
            halves = in_bfloat16(config, params, ids, answer)
            exact = np.concatenate([answer[f"alone{i}"] for i in range(len(ids))])
            their_off = relative(answer["bfloat16"], exact)
            cached, same_text = through_cache(config, params, ids[-3:], answer)
            gradient = worst_gradient(config, params, ids[-1], answer)
            back = folder / f"{number}-after"
            stepped = our_logits(read_config(back), read_params(back, read_config(back)), ids[3])
            step = float(np.abs(stepped - after["logits"]).max())
            (folder / f"{number}-ours").mkdir()
            bits = same_bits(config, params, source, folder / f"{number}-ours")
            holds = max(worst, worst_packed, cached, step) < LOGITS and max(halves) < HALF and gradient < GRADIENTS
            holds &= bits and same_text
            good &= holds
            numbers = (worst, worst_packed, cached, *halves, their_off, gradient, step)
            shown = " | ".join(f"{number:.1e}" for number in numbers)
            print(f"| {name} | {shown} | {'yes' if bits else 'NO'} | {'yes' if holds else 'NO'} |", flush=True)
            golden[name] = answer["alone2"].astype(np.float32)
    if write_golden:
        np.savez_compressed(GOLDEN, ids=np.array(ids[2]), **golden)
    return good


def compare_presets(ask: Ask) -> bool:
    """A row a preset: its parameters there."""
    print("\n| preset | parameters | in transformers | holds |\n|---|---|---|---|", flush=True)
    described = [to_hf(config, max_positions=8192, bos=1, eos=2, dtype="float32") for config in PRESETS.values()]
    with tempfile.TemporaryDirectory() as folder:
        answers = ask(Path(folder), [{"task": "size", "config": config} for config in described])
    good = True
    for (name, config), answer in zip(PRESETS.items(), answers):
        holds = config.num_parameters == answer["parameters"]
        good &= holds
        print(f"| {name} | {config.num_parameters:,} | {int(answer['parameters']):,} | {'yes' if holds else 'NO'} |")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="an interpreter with torch and transformers")
    parser.add_argument("--workdir", type=Path, help="compare a trained model instead")
    parser.add_argument("--config", type=Path, default=Path("experiments/quickstart.py"))
    parser.add_argument("--write-golden", action="store_true", help="record the logits that tests compare with")
    arguments, overrides = parser.parse_known_args()
    if overrides and not (arguments.workdir and all(one.startswith("--config.") for one in overrides)):
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    here = functools.partial(ask_peer, arguments.peer_python)
    if arguments.workdir:
        return not trained_model(here, [f"--config={arguments.config}", f"--workdir={arguments.workdir}", *overrides])
    good = compare_models(here, arguments.write_golden)
    good &= compare_modules(here)
    good &= compare_presets(here)
    good &= compare_rotary(here)
    good &= compare_tokenizers(here)
    good &= compare_trained(here)
    return not good


if __name__ == "__main__":
    sys.exit(main())
