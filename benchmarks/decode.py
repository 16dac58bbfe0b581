"""Greedy decoding on this CPU beside `transformers.generate`, the same weights in the same file.

    make bench-decode

Both sides hold one process each and take turns, a whole generation at a time: prompts of 32 random tokens, continued
by 64. Time to the first token is prefill and one choice; the rate counts the tokens after it. Medians, and the ratio of
each pair of turns (median, minimum, maximum). `equal` is the share of rows whose ids are the same on both sides.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from turns import Side

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


def row(name: str, batch: int, pairs: list[tuple[dict, dict]]) -> str:
    """A line of the table from the turns of both sides."""
    rates = [[batch * (TOKENS - 1) / turn["rest"] for turn in side] for side in zip(*pairs)]
    firsts = [[1000 * turn["first"] for turn in side] for side in zip(*pairs)]
    ratios = [ours / theirs for ours, theirs in zip(*rates)]
    sooner = [theirs / ours for ours, theirs in zip(*firsts)]
    equal = statistics.mean(one == other for ours, theirs in pairs for one, other in zip(ours["ids"], theirs["ids"]))
    shown = [name, str(batch), *(f"{statistics.median(side):,.1f}" for side in rates)]
    shown += [f"{of(ratios):.2f}" for of in (statistics.median, min, max)]
    shown += [f"{statistics.median(side):,.0f}" for side in firsts]
    return "| " + " | ".join([*shown, f"{statistics.median(sooner):.2f}", f"{equal:.0%}"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="an interpreter with torch and transformers")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--only", choices=models())
    parser.add_argument(
        "--peer-huge-pages", action="store_const", const=HUGE_PAGES, default={}, help="give PyTorch the same setting"
    )
    arguments = parser.parse_args()
    here, threads = Path(__file__).parent, os.cpu_count()
    print("| model | rows | Quintet tokens/s | transformers tokens/s | ratio | min | max ", end="")
    print("| Quintet first, ms | transformers first, ms | ratio | equal |")
    print("|---" * 11 + "|", flush=True)
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
                for side in (ours, peer):
                    side.turn(batch)  # warms up
                print(
                    row(name, batch, [(ours.turn(batch), peer.turn(batch)) for _ in range(arguments.turns)]),
                    flush=True,
                )
            ours.close()
            peer.close()
    print(f"\n{ours.about['versions']}; {peer.about['versions']}; {threads} cores; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
