"""The proof of docs/reliability.md: kills real runs at random instants, corrupts real files, prints what came of it.

    python tests/chaos/run.py                          200 kills of one process, 40 of two, 1,500 corruptions
    python tests/chaos/run.py --kills=20 --pairs=4     fewer
Results are kept in the folder given by --folder as they come; the same command goes on where it was stopped.
"""

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # before anything imports JAX

from chaos import corruptions
from chaos.kills import PHASES, PHASES_OF_SEVERAL, SURVIVOR_SECONDS, Lab, differences, disturbed_run, environment

from core.progress import say, track
from lab import make_corpus

KILLS_A_RUN = 10


def main() -> None:
    """Runs what is missing, then prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="of a run of one process (200)")
    parser.add_argument("--pairs", type=int, default=40, help="kills of a run of two processes (40)")
    parser.add_argument("--corruptions", type=int, default=1500, help="a third each of shards and checkpoints (1500)")
    parser.add_argument("--folder", type=Path, default=Path("runs/chaos"), help="where results are kept (runs/chaos)")
    given = parser.parse_args()
    folder = given.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    environment(folder / "cache")
    corpus = folder / "corpus"
    if not corpus.exists():  # its times of change belong to what is curated from it
        make_corpus(corpus)
    for processes, kills in ((1, given.kills), (2, given.pairs)):
        if kills:
            disturb(Lab(folder, corpus, processes), folder / f"kills-{processes}.jsonl", kills)
            print(f"\n{kill_table(folder / f'kills-{processes}.jsonl', processes)}\n", flush=True)
    if given.corruptions:
        corrupt(given.corruptions // 3)


def disturb(lab: Lab, results: Path, kills: int) -> None:
    """Runs until as many kills are recorded; each run is one line of the file."""
    lab.prepare()
    done = read(results)
    hit = sum(len(run["kills"]) for run in done)
    began, first = time.monotonic(), hit
    while hit < kills:
        number = len(done)
        chance = random.Random(1000 * lab.processes + number)
        phases = PHASES if lab.processes == 1 else PHASES_OF_SEVERAL
        wanted = chance.choices(phases, k=min(KILLS_A_RUN, kills - hit))
        workdir = lab.folder / f"run-{lab.processes}-{number}"
        run, failure = disturbed_run(lab, workdir, wanted, chance)
        count = differences(lab, workdir) if failure is None else None
        record = {"kills": [vars(kill) for kill in run], "failure": failure, "differences": count}
        with results.open("a") as file:
            file.write(json.dumps(record) + "\n")
        done.append(record)
        hit += len(run)
        if count == 0:
            shutil.rmtree(workdir)
        left = (kills - hit) * (time.monotonic() - began) / max(hit - first, 1)
        result = f"failed: {failure}" if failure else f"{count} bytes different"
        say(f"chaos: {hit} of {kills} kills, {result}, {left / 60:.0f} min left")


def read(results: Path) -> list[dict]:
    """The runs recorded so far."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def kill_table(results: Path, processes: int) -> str:
    """As Markdown: kills by phase, those whose run came to its end, and those whose run ended with other bits."""
    injected, recovered, different = Counter(), Counter(), Counter()
    late, slowest, told, survivors = 0, 0.0, 0, 0
    runs = read(results)
    for run in runs:
        for kill in run["kills"]:
            injected[kill["phase"]] += 1
            recovered[kill["phase"]] += run["failure"] is None
            different[kill["phase"]] += bool(run["differences"])
            if kill["survivor_seconds"] is not None:
                survivors += 1
                told += bool(kill["told"])
                slowest = max(slowest, kill["survivor_seconds"])
                late += kill["survivor_seconds"] > SURVIVOR_SECONDS
    lines = ["| killed while | injected | recovered | in runs with a bit different |", "|---|---|---|---|"]
    lines += [f"| {phase} | {injected[phase]} | {recovered[phase]} | {different[phase]} |" for phase in injected]
    total = injected.total()
    lines += [f"| all | {total} | {recovered.total()} | {different.total()} |", ""]
    count = sum(run["differences"] or 0 for run in runs)
    lines += [f"{total} kills in {len(runs)} runs of {processes} process(es); bytes different in all runs: {count}."]
    if survivors:
        lines += [
            f"{survivors} times a process survived the other: it stopped after {slowest:.2f} s at most, {late} times "
            f"later than {SURVIVOR_SECONDS} s, and said why {told} times."
        ]
    return "\n".join(lines)


def corrupt(count: int) -> None:
    """Corruptions of token shards and, their arrays covered in both ways, of checkpoints."""
    from chaos.corrupt_checkpoints import check as check_checkpoint
    from chaos.corrupt_shards import check as check_shards

    kinds = {
        "token shards": lambda folder: check_shards(folder / "tokens", 1, count),
        "a checkpoint, small files of arrays hashed": lambda folder: check_checkpoint(folder, None, 1, count),
        "a checkpoint, arrays by size and fingerprint": lambda folder: check_checkpoint(folder, 0, 1, count),
    }
    for name, check in track(kinds.items(), "corruptions", len(kinds)):
        with tempfile.TemporaryDirectory() as folder:
            print(f"\n{name}\n\n{corruptions.table(check(Path(folder)))}", flush=True)


if __name__ == "__main__":
    main()
