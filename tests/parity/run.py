"""Our models and tokenizers beside Hugging Face transformers, live.

    make parity                 every preset made small, every way to stretch RoPE, both kinds of tokenizer
    python tests/parity/run.py --peer-python=... --workdir=runs/quickstart      a trained model
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

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from models import compared, weights
from texts import compare_tokenizers, python_texts, row

from data.tokenize import open_tokenizer
from model import transformer
from model.config import ModelConfig
from model.decode import Decoder
from model.generate import generate
from model.hf import read_params, tensors, write_weights
from model.hf_config import read_config, to_hf
from model.presets import PRESETS
from model.safetensors_file import read_header, read_tensor, write
from model.sample import Sampling
from objectives import next_token
from train.export import FOLDER
from train.run import load_params

LOGITS, HALF, GRADIENTS = 1e-4, 2e-2, 1e-3  # the bounds: absolute; relative in norm; relative to the largest
LENGTHS = (1, 2, 17, 64, 127)
GOLDEN = Path(__file__).resolve().parents[1] / "model" / "golden_logits.npz"


class Batch:
    """One row that predicts its own next tokens."""

    def __init__(self, ids: list[int]):
        self.tokens_BT = jnp.array([ids])
        self.segment_ids_BT = jnp.ones_like(self.tokens_BT)
        self.positions_BT = jnp.arange(len(ids))[None]
        self.targets_BT = jnp.array([[*ids[1:], 0]])
        self.weights_BT = jnp.array([[1.0] * (len(ids) - 1) + [0.0]])


def ask(python: str, folder: Path, questions: list[dict[str, Any]]) -> list[Any]:
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


def our_logits(config: ModelConfig, params: dict, ids: list[int]) -> np.ndarray:
    """Of one document alone."""
    batch = Batch(ids)
    output = transformer.apply(config, params, batch.tokens_BT, batch.segment_ids_BT, batch.positions_BT)
    return np.asarray(transformer.logits(config, params, output.hidden_BTD[0]), np.float32)


def our_packed(config: ModelConfig, params: dict, documents: list[list[int]], padding: int) -> list[np.ndarray]:
    """Of documents packed into one row with padding behind them."""
    lengths = [len(one) for one in documents]
    tokens = jnp.array([[token for one in documents for token in one] + [0] * padding])
    segments = jnp.array([np.repeat(np.arange(len(documents) + 1), [*lengths, padding])])
    positions = jnp.array([np.concatenate([np.arange(n) for n in (*lengths, padding)])])
    hidden = transformer.apply(config, params, tokens, segments, positions).hidden_BTD
    return np.split(np.asarray(transformer.logits(config, params, hidden[0])), np.cumsum(lengths))[:-1]


def through_cache(config: ModelConfig, params: dict, prompts: list[list[int]], answer: dict) -> tuple[float, bool]:
    """Prompts of different lengths continued together by our cache.

    Largest difference of its logits from theirs for the ids of `prompts[-1]`, fed one by one after the first; and
    whether the greedy continuations of all are the same.
    """
    decoder = Decoder(config, params, context=160)
    greedy = Sampling(temperature=0)
    steps = list(generate(decoder, prompts, max_tokens=12, sampling=greedy))
    same = np.array_equal(np.array(steps).T, answer["greedy"])
    last = prompts[-1]
    logits_1V, caches = decoder.prefill([last[:1]])
    found = [logits_1V]
    for position, token in enumerate(last[1:], 1):
        found.append(decoder.step(caches, jnp.array([token]), np.array([position])))
    worst = np.abs(np.concatenate(found) - answer[f"alone{len(LENGTHS) - 1}"]).max()
    return float(worst), same


def their_gradients(answer: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix("gradient "): array for name, array in answer.items() if name.startswith("gradient ")}


def worst_gradient(config: ModelConfig, params: dict, ids: list[int], answer: dict[str, np.ndarray]) -> float:
    """Largest difference of a tensor's gradients, relative to its largest element, over all tensors."""
    ours = jax.jit(jax.grad(lambda params: next_token.loss(config, params, Batch(ids))[0]))(params)
    theirs, worst = their_gradients(answer), 0.0
    for tensor in tensors(config):
        leaf = ours
        for name in tensor.path:
            leaf = leaf[name]
        own = tensor.theirs(np.asarray(leaf if tensor.layer is None else leaf[tensor.layer]))
        there = theirs.pop(tensor.name)
        worst = max(worst, float(np.abs(own - there).max() / np.abs(there).max()))
    assert not theirs, theirs.keys()
    return worst


def same_bits(config: ModelConfig, params: dict, source: Path, folder: Path) -> bool:
    """Whether our export of what we read is the file that was read, tensor by tensor."""
    write_weights(folder, config, params)
    ours, theirs = (read_header(where / "model.safetensors") for where in (folder, source))
    return ours.keys() == theirs.keys() and all(
        np.array_equal(read_tensor(ours[name]), read_tensor(theirs[name])) for name in ours
    )


def make_folder(folder: Path, config: ModelConfig) -> None:
    """A Hugging Face folder of deterministic weights."""
    folder.mkdir()
    described = to_hf(config, max_positions=128, bos=1, eos=None, dtype="float32")
    (folder / "config.json").write_text(json.dumps(described))
    made = weights(config)
    write(folder / "model.safetensors", {name: a.shape for name, a in made.items()}, "F32", made.__getitem__)


def compare_models(python: str, write_golden: bool) -> bool:
    """A row a model: logits alone, padded, packed, in bfloat16, gradients, and the weights there and back."""
    print("| model | logits | packed | cache | bfloat16 | theirs | gradients | a step there | same bits | holds |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
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
        answers = ask(python, folder, questions)
        for number, name in enumerate(models):
            answer, after = answers[2 * number : 2 * number + 2]
            source = folder / str(number)
            config = read_config(source)
            params = read_params(source, config)
            alone = [our_logits(config, params, one) for one in ids]
            worst = max(
                np.abs(own - answer[f"{how}{i}"]).max() for how in ("alone", "padded") for i, own in enumerate(alone)
            )
            packed = our_packed(config, params, ids, padding=9)
            worst_packed = max(np.abs(own - answer[f"alone{i}"]).max() for i, own in enumerate(packed))
            in_bfloat16 = dataclasses.replace(config, dtype="bfloat16")
            half = np.concatenate([our_logits(in_bfloat16, params, one) for one in ids])
            off = float(np.linalg.norm(half - answer["bfloat16"]) / np.linalg.norm(answer["bfloat16"]))
            exact = np.concatenate([answer[f"alone{i}"] for i in range(len(ids))])
            their_off = float(np.linalg.norm(answer["bfloat16"] - exact) / np.linalg.norm(exact))
            cached, same_text = through_cache(config, params, ids[-3:], answer)
            gradient = worst_gradient(config, params, ids[-1], answer)
            back = folder / f"{number}-after"
            stepped = our_logits(read_config(back), read_params(back, read_config(back)), ids[3])
            step = float(np.abs(stepped - after["logits"]).max())
            (folder / f"{number}-ours").mkdir()
            bits = same_bits(config, params, source, folder / f"{number}-ours")
            holds = max(worst, worst_packed, cached, step) < LOGITS and off < HALF and gradient < GRADIENTS
            holds &= bits and same_text
            good &= holds
            numbers = (worst, worst_packed, cached, off, their_off, gradient, step)
            shown = " | ".join(f"{number:.1e}" for number in numbers)
            print(f"| {name} | {shown} | {'yes' if bits else 'NO'} | {'yes' if holds else 'NO'} |", flush=True)
            golden[name] = answer["alone2"].astype(np.float32)
    if write_golden:
        np.savez_compressed(GOLDEN, ids=np.array(ids[2]), **golden)
    return good


def compare_presets(python: str) -> bool:
    """A row a preset: its parameters there, and its rotary frequencies."""
    print("\n| preset | parameters | in transformers | holds |\n|---|---|---|---|", flush=True)
    described = [to_hf(config, max_positions=8192, bos=1, eos=2, dtype="float32") for config in PRESETS.values()]
    with tempfile.TemporaryDirectory() as folder:
        answers = ask(python, Path(folder), [{"task": "size", "config": config} for config in described])
    good = True
    for (name, config), answer in zip(PRESETS.items(), answers):
        holds = config.num_parameters == answer["parameters"]
        good &= holds
        print(f"| {name} | {config.num_parameters:,} | {int(answer['parameters']):,} | {'yes' if holds else 'NO'} |")
    return good


def trained_model(python: str, workdir: Path, experiment: Path) -> bool:
    """The exported folder of a run: its logits there and ours of the checkpoint, and its tokenizer."""
    import launch

    run = launch.open_experiment(launch.parse_arguments([f"--config={experiment}", f"--workdir={workdir}"])).training
    params, step = load_params(run, workdir)
    rng, source = np.random.default_rng(0), str(workdir / FOLDER)
    ids = [rng.integers(3, run.model.vocab_size, length).tolist() for length in LENGTHS]
    texts = python_texts()
    with tempfile.TemporaryDirectory() as folder:
        questions = [{"task": "logits", "folder": source, "ids": ids}]
        questions.append({"task": "tokens", "folder": source, "texts": texts})
        answer, tokens = ask(python, Path(folder), questions)
    worst = max(np.abs(our_logits(run.model, params, one) - answer[f"alone{i}"]).max() for i, one in enumerate(ids))
    print(f"{workdir}, step {step}: logits differ by {worst:.1e} at most\n")
    print("| tokenizer | token ids equal | texts equal | holds |\n|---|---|---|---|")
    return row("its own", open_tokenizer(workdir), texts, tokens) and bool(worst < LOGITS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="an interpreter with torch and transformers")
    parser.add_argument("--workdir", type=Path, help="compare a trained model instead")
    parser.add_argument("--config", type=Path, default=Path("experiments/quickstart.py"))
    parser.add_argument("--write-golden", action="store_true", help="record the logits that tests compare with")
    arguments = parser.parse_args()
    python = arguments.peer_python
    if arguments.workdir:
        return not trained_model(python, arguments.workdir, arguments.config)
    good = compare_models(python, arguments.write_golden)
    good &= compare_presets(python)
    good &= compare_tokenizers(functools.partial(ask, python))
    return not good


if __name__ == "__main__":
    sys.exit(main())
