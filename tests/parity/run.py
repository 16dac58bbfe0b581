"""Our exported folder beside Hugging Face transformers: logits, token ids and greedy text.

    make parity                 random weights of several shapes, both kinds of tokenizer
    python tests/parity/run.py --peer-python=... --workdir=runs/quickstart      a trained model

Prints a table; exits 1 where a row is out of bounds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax.numpy as jnp
import numpy as np

from data.config import TokenizerConfig
from data.document import Document
from data.sources import python_installation
from data.tokenizer import Tokenizer, open_tokenizer_file
from data.tokenizer_hf import write_tokenizer
from data.tokenizer_sentencepiece import train
from model import transformer
from model.config import ModelConfig
from model.generate import generate
from model.hf import write_model

LOGIT_BOUND = 1e-4  # float32, largest absolute difference
LENGTHS = (1, 2, 17, 64, 127)
SHAPES = {
    "quickstart": {"num_layers": 8, "d_model": 64, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "d_ff": 128},
    "head_dim is not D / N": {
        "num_layers": 5, "d_model": 48, "num_heads": 4, "num_kv_heads": 1, "head_dim": 32, "d_ff": 96,
    },
    "RoPE everywhere, MHA": {
        "num_layers": 2, "d_model": 64, "num_heads": 4, "num_kv_heads": 4, "head_dim": 16, "d_ff": 64,
        "no_rope_every": 0,
    },
}  # fmt: skip


def python_texts(count: int) -> list[str]:
    """Documents of the Python installation, and the characters that break tokenizers.

    No `<s>` spelled out: transformers reads special tokens in text, ours never does.
    """
    found = [
        item.text
        for partition in python_installation.partitions(Path())[:3]
        for item in python_installation.read(Path(), partition)
        if isinstance(item, Document)
    ]
    hard = ["", " ", "\n\n  \n", "tab\t\r\n", "  lead", "trail  ", "é漢😀\u0301", "a\0b", "x" * 500]
    return found[: count - len(hard)] + hard


def our_logits(config: ModelConfig, params: dict, ids: list[int]) -> np.ndarray:
    tokens = jnp.array([ids])
    output = transformer.apply(config, params, tokens, jnp.ones_like(tokens), jnp.arange(len(ids))[None])
    return np.asarray(transformer.logits(config, params, output.hidden_BTD[0]))


def ask_peer(python: str, folder: Path, texts: list[str], ids: list[list[int]], answers: Path) -> tuple:
    questions = answers / "questions.json"
    questions.write_text(json.dumps({"texts": texts, "ids": ids}))
    peer = Path(__file__).with_name("peer.py")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    subprocess.run([python, peer, folder, questions, answers], check=True, env=environment)
    logits = list(np.load(answers / "logits.npz").values())
    return (
        json.loads((answers / "tokens.json").read_text()),
        logits,
        json.loads((answers / "greedy.json").read_text()),
    )


def compare(python: str, folder: Path, config: ModelConfig, params: dict, tokenizer: Tokenizer, row: str) -> bool:
    texts = python_texts(120)
    random = np.random.default_rng(0)
    ids = [[tokenizer.bos, *random.integers(3, config.vocab_size, length - 1).tolist()] for length in LENGTHS]
    with tempfile.TemporaryDirectory() as answers:
        tokens, logits, greedy = ask_peer(python, folder, texts, ids, Path(answers))
    worst = max(np.abs(our_logits(config, params, one) - theirs).max() for one, theirs in zip(ids, logits))
    # Equal pieces in another order have equal unigram scores; the two libraries break such ties differently.
    order = list if tokenizer.kind == "bpe" else sorted
    same_ids = sum(order(tokenizer.prompt(x)) == order(theirs) for x, theirs in zip(texts, tokens["ids"]))
    same_text = sum(text == theirs for text, theirs in zip(texts, tokens["texts"]))
    steps = list(generate(config, params, ids[:2], window=128, max_tokens=16, temperature=0, stop_id=tokenizer.eos))
    ours = [prompt + [step[i] for step in steps if step[i] is not None] for i, prompt in enumerate(ids[:2])]
    same_greedy = sum(
        one == [token for token in theirs if token != tokenizer.eos] for one, theirs in zip(ours, greedy)
    )
    good = worst < LOGIT_BOUND and same_ids == same_text == len(texts) and same_greedy == 2
    counts = f"{same_ids}/{len(texts)} | {same_text}/{len(texts)} | {same_greedy}/2"
    print(f"| {row} | {worst:.1e} | {counts} | {'yes' if good else 'NO'} |", flush=True)
    return good


def random_models(python: str) -> bool:
    good = True
    for (name, shape), kind in zip(SHAPES.items(), ("bpe", "unigram", "bpe")):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "source.model"
            train(python_texts(200), TokenizerConfig(vocab_size=1024, model=kind, train_mb=1.0), path)
            tokenizer = open_tokenizer_file(path)
            config = ModelConfig(vocab_size=1024, init_std=0.1, **shape)
            params = transformer.init(config, 0)
            write_model(Path(folder), config, params, max_positions=128, bos=tokenizer.bos, eos=tokenizer.eos)
            write_tokenizer(Path(folder), tokenizer, 128)
            good &= compare(python, Path(folder), config, params, tokenizer, f"{name}, {kind}")
    return good


def trained_model(python: str, workdir: Path, experiment: Path) -> bool:
    import launch
    from train.export import FOLDER
    from train.run import load_params

    arguments = launch.parse_arguments([f"--config={experiment}", f"--workdir={workdir}"])
    run = launch.open_experiment(arguments).training
    params, step = load_params(run, workdir)
    tokenizer = open_tokenizer_file(workdir / "tokenizer")
    return compare(python, workdir / FOLDER, run.model, params, tokenizer, f"{workdir}, step {step}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="an interpreter with torch and transformers")
    parser.add_argument("--workdir", type=Path, help="compare a trained model instead")
    parser.add_argument("--config", type=Path, default=Path("experiments/quickstart.py"))
    arguments = parser.parse_args()
    print("| model | largest logit difference | token ids equal | texts equal | greedy equal | holds |")
    print("|---|---|---|---|---|---|", flush=True)
    if arguments.workdir:
        return not trained_model(arguments.peer_python, arguments.workdir, arguments.config)
    return not random_models(arguments.peer_python)


if __name__ == "__main__":
    sys.exit(main())
