"""Training throughput on this CPU beside the same model as SmolLM3ForCausalLM in PyTorch eager.

    make bench-cpu

Both sides hold one process each; they take turns, a few steps at a time, so that a busy machine slows both. The
table gives tokens a second (medians) and the ratio of each pair of turns (median, minimum, maximum).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = {
    "quickstart": None,  # read from experiments/quickstart.py
    "10M": {
        "model": {
            "vocab_size": 8192, "num_layers": 7, "d_model": 320, "num_heads": 8, "num_kv_heads": 4, "head_dim": 40,
            "d_ff": 768,
        },
        "batch": {"rows": 8, "row_length": 512},
    },
}  # fmt: skip


def settings(name: str) -> dict:
    """Model and batch of a row, as plain data for both sides."""
    if MODELS[name] is not None:
        return MODELS[name]
    sys.path.insert(0, str(ROOT))
    from core.config import load_experiment

    tree = load_experiment(ROOT / "experiments" / "quickstart.py")
    return {"model": tree["model"], "batch": tree["batch"]}


# As launch.py sets it for itself.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


class Side:
    """A process that trains when told to: a line with a number of steps in, a line with seconds out."""

    def __init__(self, command: list[str], given: dict, settings: dict[str, str]):
        environment = {
            **os.environ,
            **settings,
            "JAX_PLATFORMS": "cpu",
            "OMP_NUM_THREADS": str(os.cpu_count()),
        }
        self.process = subprocess.Popen(
            [*command, json.dumps(given)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.answer = self._read()  # what it says of itself, once warm

    def seconds(self, steps: int) -> float:
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self._read()["seconds"]

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.process.args[1]} ended early")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="an interpreter with torch and transformers")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3, help="of each turn")
    parser.add_argument("--only", choices=MODELS)
    parser.add_argument(
        "--peer-huge-pages", action="store_const", const=HUGE_PAGES, default={}, help="give PyTorch the same setting"
    )
    arguments = parser.parse_args()
    here = Path(__file__).parent
    print("| model | parameters | Quintet tokens/s | PyTorch tokens/s | ratio | min | max |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in [arguments.only] if arguments.only else MODELS:
        given = settings(name)
        ours = Side([sys.executable, str(here / "side_quintet.py")], given, HUGE_PAGES)
        peer = Side([arguments.peer_python, str(here / "side_torch.py")], given, arguments.peer_huge_pages)
        assert ours.answer["parameters"] == peer.answer["parameters"], "not the same model"
        pairs = [(ours.seconds(arguments.steps), peer.seconds(arguments.steps)) for _ in range(arguments.turns)]
        tokens = arguments.steps * given["batch"]["rows"] * given["batch"]["row_length"]
        rates = [[tokens / seconds for seconds in side] for side in zip(*pairs)]
        ratios = [b / a for a, b in pairs]
        print(
            f"| {name} | {ours.answer['parameters']:,} | {statistics.median(rates[0]):,.0f} | "
            f"{statistics.median(rates[1]):,.0f} | {statistics.median(ratios):.2f} | {min(ratios):.2f} | "
            f"{max(ratios):.2f} |",
            flush=True,
        )
        ours.close()
        peer.close()
    print(f"\n{ours.answer['versions']}; {peer.answer['versions']}; {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
