"""Milliseconds of one Muon update of a 124M GPT's matrices on one GPU, ours beside PyTorch's, in one run.

    make bench-gpu MUON=DIR SPEEDRUN=DIR TORCH_PYTHON=/path/to/python
    PYTHONPATH=. python benchmarks/muon_gpu.py [--muon=DIR] [--speedrun=DIR] [--torch-python=FILE] [--output=PAGE]
    PYTHONPATH=. python benchmarks/muon_gpu.py --platform=cpu --layers=1 --width=64

The model is that of modded-nanogpt's optimisation track: per layer a query, key, value and output projection
[768, 768] and a feed-forward layer of 4 x 768 without a gate, 12 layers, 84.9M parameters; embedding and head are
Adam's. An update is momentum, Newton-Schulz in bfloat16, scale, weight decay and the new float32 parameters, from
float32 gradients that are there. Ours: every coefficient set and implementation. PyTorch's: the files of checkouts,
`muon.py` of KellerJordan/Muon (--muon) and `train_gpt.py` of modded-nanogpt (--speedrun), in a process of its own.

All take turns, several updates at a time; the median of the rounds counts. TFLOP/s are those of the products as they
are written down, halves of symmetric ones included. RMS is that of the first update over the learning rate, so that
one sees that all compute alike. Without a GPU or JAX: one line and exit code 2.
"""

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

if any(importlib.util.find_spec(name) is None for name in ("jax", "optax", "numpy")):
    print(f'benchmarks/muon_gpu.py: no JAX or Optax here: {sys.executable} -m pip install "jax[cuda13]" optax')
    sys.exit(2)

import jax
import jax.numpy as jnp
import numpy as np
import optax
from gpu_timing import BUSY, FAILURES, ROUNDS, describe, first_line, table
from turns import Side

from optim.config import MuonConfig
from optim.muon import scale_by_muon

HERE = Path(__file__).resolve().parent
SETTINGS = {"lr": 0.025, "weight_decay": 0.05, "momentum": 0.95}  # the track's
HEAD = 128
IMPLEMENTATIONS = {"gpu": ("gpu", "xla"), "cpu": ("gpu_interpret", "xla")}
STEPS = 5  # of Newton-Schulz, of both sets
COEFFICIENTS = ("polar_express", "standard")


class Update(NamedTuple):
    """One way to compute it."""

    coefficients: str
    rms: float  # of the first update, over the learning rate
    seconds: Callable[[int], float]  # mean of so many, one behind the other


def main() -> int:
    options = arguments()
    if options.platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves memory to PyTorch
    if jax.default_backend() != options.platform:
        found = jax.default_backend()
        print(f"benchmarks/muon_gpu.py: JAX finds no GPU here (it has: {found}); nothing was measured")
        return 2
    for flag, name in (("muon", "muon.py"), ("speedrun", "train_gpt.py")):
        folder = getattr(options, flag)
        if folder and not (folder / name).exists():
            print(f"benchmarks/muon_gpu.py: --{flag}={folder} has no {name}; name a checkout that has it")
            return 2
    updates, peer, version = ours(options), None, ""
    if options.muon or options.speedrun:
        peer, version = start_peer(options)
    else:
        FAILURES.append("PyTorch: neither --muon nor --speedrun names a checkout")
    if peer:
        updates |= {name: theirs(peer, name, about) for name, about in peer.about["updates"].items()}
    page = page_of(options, updates, in_turns(updates), version)
    if peer:
        peer.close()
    print(page)
    output = options.output or (Path("docs/benchmarks/muon_gpu.md") if options.platform == "gpu" else None)
    if output:
        output.write_text(page)
        print(f"written to {output}")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--muon", type=Path, help="a checkout of KellerJordan/Muon")
    parser.add_argument("--speedrun", type=Path, help="a checkout of modded-nanogpt")
    parser.add_argument("--torch-python", default=sys.executable, help="an interpreter with torch")
    parser.add_argument("--output", type=Path, help="the page; docs/benchmarks/muon_gpu.md of a GPU")
    parser.add_argument("--platform", choices=list(IMPLEMENTATIONS), default="gpu", help="cpu to try it out")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    return parser.parse_args()


# Ours


def ours(options: argparse.Namespace) -> dict[str, Update]:
    """Those that compile and run, on the same gradients."""
    random, updates = np.random.default_rng(0), {}
    shapes = parameter_shapes(options.layers, options.width)
    grads = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    for coefficients in COEFFICIENTS:
        for implementation in IMPLEMENTATIONS[options.platform]:
            name = f"ours, {implementation}, {coefficients}"
            try:
                updates[name] = our_update(grads, coefficients, implementation)
            except Exception as error:  # noqa: BLE001 (the others go on)
                FAILURES.append(f"{name}: {first_line(error)}")
    return updates


def our_update(grads: dict[str, np.ndarray], coefficients: str, implementation: str) -> Update:
    """A warm one; parameters and state are given to each update and come back from it, in the same memory."""
    optimizer, update = program(coefficients, implementation)
    grads, params = jax.device_put(grads), {name: jnp.zeros(own.shape) for name, own in grads.items()}
    held = params, optimizer.init(params)
    compiled = jax.jit(update, donate_argnums=(0, 1)).lower(*held, grads).compile()
    held = compiled(*held, grads)
    first = [np.asarray(leaf) for leaf in held[0].values()]
    square = sum(np.square(leaf, dtype=np.float64).sum() for leaf in first)
    rms = (square / sum(leaf.size for leaf in first)) ** 0.5 / SETTINGS["lr"]

    def seconds(count: int) -> float:
        nonlocal held
        began = time.perf_counter()
        for _ in range(count):
            held = compiled(*held, grads)
        jax.block_until_ready(held)
        return (time.perf_counter() - began) / count

    return Update(coefficients, rms, seconds)


def program(coefficients: str, implementation: str) -> tuple[optax.GradientTransformation, Callable]:
    """The optimiser, and what is timed of it: `update(params, state, grads)`, both of them new."""
    config = MuonConfig(momentum=SETTINGS["momentum"], coefficients=coefficients, scaling="spectral")
    optimizer = optax.chain(
        scale_by_muon(config, implementation=implementation),
        optax.add_decayed_weights(SETTINGS["weight_decay"]),
        optax.scale_by_learning_rate(SETTINGS["lr"]),
    )

    def update(params: dict, state: optax.OptState, grads: dict) -> tuple[dict, optax.OptState]:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return optimizer, update


def parameter_shapes(layers: int, width: int) -> dict[str, tuple[int, ...]]:
    """By path (`optim/matrices.py`); heads of 128 where the width has such."""
    H = width if width % HEAD else HEAD
    L, D, N, F = layers, width, width // H, 4 * width
    attention = dict.fromkeys(("query", "key", "value"), (L, D, N, H)) | {"output": (L, N, H, D)}
    feed_forward = {"up": (L, D, F), "down": (L, F, D)}
    return {f"layers/attention/{name}": shape for name, shape in attention.items()} | {
        f"layers/feed_forward/{name}": shape for name, shape in feed_forward.items()
    }


# PyTorch's


def start_peer(options: argparse.Namespace) -> tuple[Side | None, str]:
    """The process, once its updates are warm, and its version; what it cannot run is among FAILURES."""
    given = {
        "layers": options.layers,
        "width": options.width,
        "settings": SETTINGS,
        "device": "cuda" if options.platform == "gpu" else "cpu",
        **{flag: str(path.resolve()) if (path := getattr(options, flag)) else "" for flag in ("muon", "speedrun")},
    }
    command = [options.torch_python, str(HERE / "muon_torch.py"), json.dumps(given)]
    try:
        peer = Side(*command, threads=os.cpu_count())
    except OSError as error:
        FAILURES.append(f"PyTorch: --torch-python={options.torch_python}: {error.strerror}")
        return None, ""
    if "failed" in peer.about:
        FAILURES.append(f"PyTorch: {peer.about['failed']}; name another interpreter with --torch-python")
        return None, ""
    FAILURES.extend(f"{name}: {why}" for name, why in peer.about["left_out"].items())
    return peer, peer.about["version"]


def theirs(peer: Side, name: str, about: dict) -> Update:
    def seconds(count: int) -> float:
        return peer.turn(json.dumps({"name": name, "count": count}))["seconds"]

    return Update(about["coefficients"], about["rms"], seconds)


# All


def in_turns(updates: dict[str, Update]) -> dict[str, list[float]]:
    """Milliseconds of an update in every round."""
    counts = {name: max(1, int(BUSY / own.seconds(2))) for name, own in updates.items()}
    times: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(ROUNDS):
        for name, own in updates.items():
            times[name].append(1e3 * own.seconds(counts[name]))
    return times


def page_of(
    options: argparse.Namespace, updates: dict[str, Update], times: dict[str, list[float]], version: str
) -> str:
    """Markdown. The ratio is to our first implementation with the same coefficients."""
    shapes = parameter_shapes(options.layers, options.width)
    size = sum(map(np.prod, shapes.values()))
    D = options.width
    # Five steps of 2 (2 R^2 C + R^3): four square matrices a layer, and two of D x 4 D.
    flops = STEPS * options.layers * (4 * 6 + 2 * 18) * D**3
    first = {own.coefficients: float(np.median(times[name])) for name, own in reversed(updates.items())}
    rows = []
    for name, own in updates.items():
        ms = float(np.median(times[name]))
        spread = f"{min(times[name]):.2f} to {max(times[name]):.2f}"
        cells = [f"{ms:.2f}", spread, f"{flops / ms / 1e9:.1f}", f"{ms / first[own.coefficients]:.2f}"]
        rows.append([name, own.coefficients, *cells, f"{own.rms:.4f}"])
    columns = ["update", "coefficients", "ms", "least to greatest", "TFLOP/s", "of ours", "RMS"]
    lines = [
        "# A Muon update on a GPU",
        "",
        "    make bench-gpu MUON=DIR SPEEDRUN=DIR TORCH_PYTHON=/path/to/python",
        "",
        describe() + (f" PyTorch's side: {version}." if version else ""),
        f"{options.layers} layers of width {D:,}, {size:,} parameters in {6 * options.layers} matrices;"
        " `benchmarks/muon_gpu.py` says what an update is.",
        "",
        table(columns, rows),
        "",
    ]
    if FAILURES:
        lines += ["## What did not run", "", *(f"- {line}" for line in dict.fromkeys(FAILURES)), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
