"""Times of the CPU kernels, forward and forward + backward, against plain JAX and PyTorch eager.

    python benchmarks/kernels_cpu.py [--peer-python=/path/to/python/with/torch] [--rounds=15] [--only=loss]

Every round times each column once, one after the other, so that a busy machine slows all of them; the least of
the rounds is printed. `ratio` is the time of the plain row over that of the row, the last column the same for
PyTorch. Plain is `jax.nn.dot_product_attention`, and for the loss the reference, both under jit. Attention is
timed alone and as the model runs it: inside a scan over LAYERS layers (times are per layer).
"""

import argparse
import contextlib
import os
import subprocess
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from kernels.attention.api import attention
from kernels.cross_entropy.api import linear_cross_entropy

LAYERS = 6
ATTENTION_SHAPES = [  # B, T, N, K, H
    (8, 512, 4, 2, 64),
    (2, 2048, 4, 2, 64),
    (16, 256, 6, 2, 32),
    (8, 512, 8, 4, 40),
    (8, 512, 8, 4, 64),
    (1, 2048, 8, 2, 64),
]
LOSS_SHAPES = [  # B, T, D, V
    (16, 256, 192, 4096),
    (8, 512, 256, 8192),
    (8, 512, 320, 8192),
    (8, 512, 512, 8192),
]

# Runs in the interpreter of --peer-python: a line in is a case, a line out its milliseconds, forward and
# forward + backward.
PEER = """
import sys, time
import torch
import torch.nn.functional as F
torch.set_num_threads(int(sys.argv[1]))
cases = {}

def attention(B, T, N, K, H):
    q, k, v = (torch.randn(B, n, T, H, requires_grad=True) for n in (N, K, K))
    dout = torch.randn(B, N, T, H)
    run = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return run, lambda: torch.autograd.grad(run(), (q, k, v), dout)

def loss(B, T, D, V):
    x, w = torch.randn(B * T, D, requires_grad=True), (torch.randn(V, D) * D**-0.5).requires_grad_()
    targets = torch.randint(0, V, (B * T,))
    run = lambda: F.cross_entropy(F.linear(x, w), targets, reduction="sum")
    return run, lambda: torch.autograd.grad(run(), (x, w))

def once(run, grad):
    start = time.perf_counter()
    with torch.set_grad_enabled(grad):
        run()
    return (time.perf_counter() - start) * 1e3

for line in sys.stdin:
    name, *shape = line.split()
    if line not in cases:
        cases[line] = {"attention": attention, "loss": loss}[name](*map(int, shape))
    forward, both = cases[line]
    print(once(forward, False), once(both, True), flush=True)
"""


def attention_case(implementation, shape, layers=None):
    """(forward, forward and backward, arguments); with `layers`, a scan of so many."""
    B, T, N, K, H = shape
    rng = np.random.default_rng(0)
    args = [jnp.asarray(rng.standard_normal((B, T, n, H)), jnp.float32) for n in (N, K, K, N)]

    def attend(q, k, v):
        if implementation == "jax.nn":
            return jax.nn.dot_product_attention(q, k, v, is_causal=True), None
        out = attention(q, k, v, implementation=implementation)
        return out.out_BTNH, out.max_logit_N

    def forward(q, k, v):
        if layers is None:
            return attend(q, k, v)
        return jax.lax.scan(lambda q, _: attend(q, k, v), q, None, length=layers)

    def both(q, k, v, dout):
        out, pull, max_logit = jax.vjp(forward, q, k, v, has_aux=True)
        return out, max_logit, pull(dout)

    return jax.jit(lambda q, k, v, _: forward(q, k, v)), jax.jit(both), args


def loss_case(implementation, shape):
    """(forward, forward and backward, arguments)."""
    B, T, D, V = shape
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((B, T, D)), rng.standard_normal((V, D)) * D**-0.5
    targets, weights = jnp.asarray(rng.integers(0, V, (B, T))), jnp.ones((B, T))

    def loss(x, w):
        return linear_cross_entropy(x, w, targets, weights, implementation=implementation).loss

    args = jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)
    return jax.jit(loss), jax.jit(jax.value_and_grad(loss, (0, 1))), args


def milliseconds(run, args):
    start = time.perf_counter()
    jax.block_until_ready(run(*args))
    return (time.perf_counter() - start) * 1e3


def ask(peer, case):
    print(case, file=peer.stdin, flush=True)
    return [float(part) for part in peer.stdout.readline().split()]


def measure(name, shape, columns, peer, rounds, per=1):
    """Prints one row per column: least milliseconds, and speed against the reference and PyTorch."""
    case = " ".join(map(str, (name, *shape)))
    times = {column: [] for column in columns}
    torch_times = []
    for _ in range(rounds + 2):  # two to compile and warm up
        for column, (forward, both, args) in columns.items():
            times[column].append((milliseconds(forward, args) / per, milliseconds(both, args) / per))
        if peer:
            torch_times.append(ask(peer, case))
    least = {column: np.min(t[2:], 0) for column, t in times.items()}
    torch = np.min(torch_times[2:], 0) if peer else None
    for column, (forward, both) in least.items():
        ratio = least[next(iter(least))][1] / both
        against = "" if torch is None else f"{torch[0]:10.2f}{torch[1]:10.2f}{torch[1] / both:8.2f}"
        label, shape_text = name + (f" x{per}" if per > 1 else ""), " ".join(map(str, shape))
        row = f"{label:<14}{shape_text:<18}{column:<11}{forward:8.2f}{both:10.2f}{ratio:8.2f}{against}"
        print(row, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", help="an interpreter that has torch")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="attention or loss")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        peer = None
        if options.peer_python:
            command = [options.peer_python, "-c", PEER, str(os.cpu_count())]
            peer = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
        torch = f"{'torch fwd':>10}{'torch f+b':>10}{'ratio':>8}" if peer else ""
        print(f"{'op':<14}{'shape':<18}{'impl':<11}{'ms fwd':>8}{'ms f+b':>10}{'ratio':>8}{torch}")
        for shape in ATTENTION_SHAPES:
            for layers in (None, LAYERS) if options.only in ("", "attention") else ():
                columns = {name: attention_case(name, shape, layers) for name in ("jax.nn", "xla")}
                measure("attention", shape, columns, peer, options.rounds, layers or 1)
        for shape in LOSS_SHAPES if options.only in ("", "loss") else ():
            measure("loss", shape, {n: loss_case(n, shape) for n in ("reference", "xla")}, peer, options.rounds)


if __name__ == "__main__":
    sys.exit(main())
