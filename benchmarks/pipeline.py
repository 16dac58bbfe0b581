"""The input pipeline alone: throughput, resuming, memory; beside Grain's own packing and PyTorch's DataLoader.

    make bench-pipeline

Documents of 800 tokens on average (lognormal) in 4 shards and 3 sources; rows of 4,096 tokens, 32 a batch. All sides
read the same tokens, from the page cache, and take turns of a second, so that a busy machine slows all of them.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from turns import Side

from data.shards import TokenDocument, write_shard

HERE = Path(__file__).resolve().parent
VOCABULARY = 49_152  # ids of two bytes
SHARDS = 4
SHAPE = {"rows": 32, "row_length": 4096}
TOKENS = SHAPE["rows"] * SHAPE["row_length"]  # of a batch
MIXTURE = {"web": 0.6, "code": 0.3, "math": 0.1}
OURS = {
    "split, one pool": {"packing": "split"},
    "split, 3 sources": {"packing": "split", "mixture": MIXTURE},
    "best fit, 3 sources": {"packing": "best_fit", "mixture": MIXTURE},
}
# Grain's default is 16 threads; over local files 0 is faster, as its documentation says.
GRAIN = {
    "concat then split": {"packing": "split", "threads": 0},
    "concat then split, 16 threads": {"packing": "split", "threads": 16},
    "best fit": {"packing": "best_fit", "threads": 0},
}
FAR = 1_000_000  # step at which ours resumes
NEAR = 2_000  # and Grain's


def write_corpus(folder: Path, tokens: int) -> int:
    """Token shards, what their manifest says, and the same tokens in one flat file; returns the documents."""
    random, made = np.random.default_rng(0), []
    with (folder / "tokens.bin").open("wb") as flat:
        for shard in range(SHARDS):
            lengths = random.lognormal(6.2, 1.0, tokens // 800 // SHARDS).astype(int) + 2
            sources = random.choice(list(MIXTURE), len(lengths))
            documents = []
            for number, (length, source) in enumerate(zip(lengths.tolist(), sources.tolist())):
                ids = random.integers(0, VOCABULARY, length, np.uint16)
                flat.write(ids.tobytes())
                documents.append(TokenDocument(f"{shard}/{number}", source, ids, 4 * length))
            made.append(write_shard(folder / f"train-{shard:05}.array_record", documents, np.dtype("<u2")))
    (folder / "shards.json").write_text(json.dumps(made))
    return sum(shard["documents"] for shard in made)


def side(mode: str, name: str, folder: Path, given: dict) -> list[str]:
    return [sys.executable, str(HERE / "pipeline_side.py"), mode, name, str(folder), json.dumps({**SHAPE, **given})]


def throughput(folder: Path, arguments: argparse.Namespace) -> None:
    commands = {}
    for name, given in OURS.items():
        commands[f"Quintet, {name}"] = side("turns", "quintet", folder, {**given, "read_ahead": True})
    alone = {**OURS["best fit, 3 sources"], "read_ahead": False}
    commands["Quintet, best fit, 3 sources, `batch(k)`"] = side("turns", "quintet", folder, alone)
    for name, given in GRAIN.items():
        commands[f"Grain, {name}"] = side("turns", "grain", folder, given)
    for workers in (0, 2) if arguments.peer_python else ():
        given = json.dumps({**SHAPE, "workers": workers})
        commands[f"DataLoader, {workers} workers"] = [
            arguments.peer_python, str(HERE / "pipeline_torch.py"), str(folder), given
        ]  # fmt: skip
    sides = {name: Side(*command) for name, command in commands.items()}
    for _ in range(arguments.turns):
        for one in sides.values():
            one.turn(arguments.seconds)
    print("| pipeline | M tokens/s per core | min .. max | M tokens/s | min .. max | padding | resident, MB |")
    print("|---|---|---|---|---|---|---|")
    for name, one in sides.items():
        core, wall = ([TOKENS * turn["batches"] / turn[key] / 1e6 for turn in one.turns] for key in ("cpu", "wall"))
        print(
            f"| {name} | {statistics.median(core):.1f} | {min(core):.1f} .. {max(core):.1f} "
            f"| {statistics.median(wall):.1f} | {min(wall):.1f} .. {max(wall):.1f} "
            f"| {one.about['padding']:.2%} | {one.turns[-1]['resident_mb']:,.0f} |"
        )
        one.close()
    print(
        "\nPer core is by CPU seconds of all threads and workers; padding counts as tokens. Quintet reads ahead by "
        "two threads, but for `batch(k)`.\nGrain gives no weights, mixes nothing, and its best fit drops what of a "
        "document is longer than a row.\nThe DataLoader gives tokens and targets alone. Resident is without workers."
    )
    if not arguments.peer_python:
        print("The DataLoader was left out; give --peer-python.")
    else:
        print(f"{one.about['version']}; grain {importlib.metadata.version('grain')}; {os.cpu_count()} cores")


def ask_side(*command: str) -> list[dict]:
    """What a side says until it ends."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return [json.loads(line) for line in found.stdout.splitlines()]


def resuming(folder: Path, turns: int) -> None:
    """Fresh processes each, by turns; imports are not counted."""
    print("\n| to the first batch of | step | seconds | min .. max | of them opening | documents read |")
    print("|---|---|---|---|---|---|")
    commands = {}
    for name, given in OURS.items():
        for step in (0, FAR):
            command = side("resume", "quintet", folder, {**given, "step": step})
            commands[f"Quintet, {name}", f"{step:,}"] = command
    for name, given in GRAIN.items():
        if given["threads"]:
            continue
        command = side("resume", "grain", folder, {**given, "step": NEAR})
        (forwarded,) = ask_side(*command)  # once; it saves its state for the others
        total = forwarded["total"]
        print(f"| Grain, {name}, from step 0, {1000 * total / NEAR:.1f} ms each | {NEAR:,} | {total:.2f} | | | |")
        commands[f"Grain, {name}, from a saved state", f"{NEAR:,}"] = command
    found = {key: [] for key in commands}
    for _ in range(turns):
        for key, command in commands.items():
            found[key] += ask_side(*command)
    for (name, step), answers in found.items():
        total = [answer["total"] for answer in answers]
        opened, documents = "", ""
        if "opened" in answers[0]:
            opened = f"{statistics.median(answer['opened'] for answer in answers):.2f}"
            documents = f"{answers[0]['documents']:,}"
        print(
            f"| {name} | {step} | {statistics.median(total):.2f} | {min(total):.2f} .. {max(total):.2f} "
            f"| {opened} | {documents} |"
        )


def memory(folder: Path, seconds: float) -> None:
    print("\n| resident, MB, after batches | " + " | ".join(OURS) + " |")
    print("|---" * (len(OURS) + 1) + "|")
    columns = []
    for given in OURS.values():
        asked = {**given, "at": [1_000, 4_000, 20_000], "seconds": seconds}
        columns.append(ask_side(*side("memory", "quintet", folder, asked)))
    for row in zip(*columns):
        counts = sorted({answer["batches"] for answer in row})
        cells = " | ".join(f"{answer['resident_mb']:,.0f}" for answer in row)
        print(f"| {' / '.join(f'{count:,}' for count in counts)} | {cells} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="an interpreter with torch and numpy")
    parser.add_argument("--tokens", type=int, default=60_000_000, help="of the corpus")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn")
    parser.add_argument("--resume-turns", type=int, default=5)
    parser.add_argument("--memory-seconds", type=float, default=60.0, help="at most, of each pipeline")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        documents = write_corpus(folder, arguments.tokens)
        size = (folder / "tokens.bin").stat().st_size // 2
        print(
            f"{size:,} tokens in {documents:,} documents; {SHAPE['rows']} rows of {SHAPE['row_length']:,} a batch\n"
        )
        throughput(folder, arguments)
        resuming(folder, arguments.resume_turns)
        memory(folder, arguments.memory_seconds)


if __name__ == "__main__":
    main()
