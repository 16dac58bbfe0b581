"""Greedy decoding on this CPU beside `transformers.generate`, the same weights in the same file.

    make bench-decode

Both sides hold one process each and take turns, a whole generation at a time: prompts of 32 random tokens, continued
by 64. `first` is the time to the first token, prefill and one choice; the rate counts the tokens after it. Medians,
and the ratio of each pair of turns (median, minimum, maximum). `equal` is the share of rows with the same ids there.

PyTorch's threads wait for one another and suffer more than XLA's from other work on the machine. So each turn waits
for quiet, up to --patience seconds; `others` is the share of the cores' time that went elsewhere all the same, during
our turns and during theirs; `undisturbed` is the rate of each side in the fastest tenth of all stretches of 8 tokens.
"""

import argparse
import functools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from turns import Side, machine_seconds, wait_until_quiet

from core.errors import raise_on_sigterm
from model import transformer
from model.config import ModelConfig
from model.hf import write_model
from model.presets import preset

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # as launch.py sets it for itself
PROMPT, TOKENS = 32, 64
BATCHES = (1, 8)


def models() -> dict[str, ModelConfig]:
    """The 10M of cpu_throughput.py, and SmolLM2's smallest."""
    return {"10M": ModelConfig(8192, 7, 320, 8, 4, 40, 768), "135M": preset("smollm2-135m")}


def turn(side: Side, batch: int, patience: float) -> dict:
    """A turn, and the share of the cores' time that others took during it."""
    wait_until_quiet(patience)
    began, busy = time.perf_counter(), machine_seconds()
    found = side.turn(batch)
    elapsed, busy = time.perf_counter() - began, machine_seconds() - busy
    return {**found, "others": max(0.0, busy - found["cpu"]) / (elapsed * os.cpu_count())}


def undisturbed(batch: int, turns: tuple[dict, ...]) -> float:
    """Tokens a second in the faster tenth of all stretches of 8 tokens."""
    stretches = [b - a for turn in turns for a, b in zip(turn["times"], turn["times"][8:])]
    return 8 * batch / statistics.quantiles(stretches, n=10)[0]


def row(name: str, batch: int, pairs: list[tuple[dict, dict]]) -> str:
    """A line of the table from the turns of both sides."""
    sides = list(zip(*pairs))
    rates = [[batch * (TOKENS - 1) / (turn["times"][-1] - turn["times"][0]) for turn in side] for side in sides]
    ratios = [ours / theirs for ours, theirs in zip(*rates)]
    best = [undisturbed(batch, side) for side in sides]
    firsts = [statistics.median(1000 * turn["times"][0] for turn in side) for side in sides]
    equal = statistics.mean(one == other for ours, theirs in pairs for one, other in zip(ours["ids"], theirs["ids"]))
    shown = [name, str(batch), *(f"{statistics.median(side):,.1f}" for side in rates)]
    shown += [f"{of(ratios):.2f}" for of in (statistics.median, min, max)]
    shown += [f"{rate:,.1f}" for rate in best] + [f"{best[0] / best[1]:.2f}"]
    shown += [f"{first:,.0f}" for first in firsts]
    shown += ["/".join(f"{statistics.median(turn['others'] for turn in side):.0%}" for side in sides)]
    return "| " + " | ".join([*shown, f"{equal:.0%}"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="an interpreter with torch and transformers")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--patience", type=float, default=20.0, help="seconds that a turn waits for a quiet machine")
    parser.add_argument("--only", choices=models())
    parser.add_argument(
        "--peer-huge-pages", action="store_const", const=HUGE_PAGES, default={}, help="give PyTorch the same setting"
    )
    arguments = parser.parse_args()
    raise_on_sigterm()  # so that what lies in the temporary folder goes
    here, threads = Path(__file__).parent, os.cpu_count()
    print("| model | rows | Quintet tokens/s | transformers tokens/s | ratio | min | max ", end="")
    print("| Quintet undisturbed | transformers undisturbed | ratio ", end="")
    print("| Quintet first, ms | transformers first, ms | others | equal |\n" + "|---" * 14 + "|", flush=True)
    for name in [arguments.only] if arguments.only else models():
        with tempfile.TemporaryDirectory() as folder:
            config = models()[name]
            params = transformer.init(config, 0)
            write_model(Path(folder), config, params, max_positions=PROMPT + TOKENS, bos=None, eos=None)
            del params
            given = [folder, str(PROMPT), str(TOKENS)]
            ours = Side(sys.executable, str(here / "decode_quintet.py"), *given, threads=threads, **HUGE_PAGES)
            settings = {"HF_HUB_OFFLINE": "1", **arguments.peer_huge_pages}
            peer = Side(arguments.peer_python, str(here / "decode_torch.py"), *given, threads=threads, **settings)
            assert ours.about["parameters"] == peer.about["parameters"], "not the same model"
            for batch in BATCHES:
                measure = functools.partial(turn, batch=batch, patience=arguments.patience)
                for side in (ours, peer):
                    side.turn(batch)  # warms up
                pairs = [(measure(ours), measure(peer)) for _ in range(arguments.turns)]
                print(row(name, batch, pairs), flush=True)
            ours.close()
            peer.close()
    print(f"\n{ours.about['versions']}; {peer.about['versions']}; {threads} cores; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
