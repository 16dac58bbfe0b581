"""What tests share: a small corpus, and launch.py as a user runs it."""

import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
WORDS = (
    "the model reads a row of tokens and learns to predict what follows each of them while gradients flow back "
    "through layers heads and norms until loss falls and text begins to look like text written by someone"
).split()


def make_corpus(folder: Path, files: int = 12, sentences: int = 60, seed: int = 0) -> Path:
    """Text files of made-up sentences; each file differs."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for number in range(files):
        lines = [" ".join(random.choice(WORDS, random.integers(6, 14))) + ".\n" for _ in range(sentences)]
        (folder / f"{number:03d}.txt").write_text("".join(lines))
    return folder


def launch(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    """Runs launch.py as a user would."""
    command = [sys.executable, str(ROOT / "launch.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


def smoke(workdir: Path, corpus: Path, *arguments: object) -> list[str]:
    """Arguments of a run of seconds over the small corpus."""
    return [
        "--config=" + str(ROOT / "experiments" / "smoke.py"),
        f"--workdir={workdir}",
        f"--config.data.path={corpus}",
        "--config.data.heldout_fraction=0.2",
        "--config.tokenizer.vocab_size=320",
        "--config.train.steps=24",
        *map(str, arguments),
    ]
