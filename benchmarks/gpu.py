"""Times and errors of the GPU kernels on one GPU, beside cuDNN, JAX's own Pallas kernels and plain XLA.

    make bench-gpu
    PYTHONPATH=. python benchmarks/gpu.py [--only=attention,errors,loss,newton_schulz] [--output=PAGE]
    PYTHONPATH=. python benchmarks/gpu.py --tune

Columns of a row are timed in turns, several calls at a time, and the median of the rounds counts. TFLOP/s are those
of the products that causality needs, 4 B N T^2 H / 2 forward and 3.5 times that with the backward pass. What fails is
printed and the next row begins. `--tune` prints the fastest tiles for the tables of `kernels/attention/gpu.py`.
Without a GPU, JAX or absl: one line and exit code 2.
"""

import argparse
import importlib.util
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

if any(importlib.util.find_spec(name) is None for name in ("jax", "absl", "numpy")):  # absl: JAX's Mosaic kernel
    print(f'benchmarks/gpu.py: no JAX or absl here: {sys.executable} -m pip install "jax[cuda13]" absl-py')
    sys.exit(2)

import jax
import jax.numpy as jnp
import numpy as np
from gpu_timing import FAILURES, describe, guarded, interleaved, table, tune, working

from core.errors import suggest
from kernels.attention import gpu, reference
from kernels.cross_entropy.api import linear_cross_entropy
from kernels.newton_schulz.api import newton_schulz

# What a section of the page consists of: its heading, a sentence, column names, rows of text.
Section = tuple[str, str, list[str], list[list[str]]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="errors,attention,loss,newton_schulz", help="sections, by comma")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks/gpu.md"))
    parser.add_argument("--tune", action="store_true", help="find tiles of the attention kernels")
    options = parser.parse_args()
    names = options.only.split(",")
    for name in names:
        if name not in SECTIONS:
            print(f"benchmarks/gpu.py: --only has no section {name!r}{suggest(name, SECTIONS)}")
            return 2
    if jax.default_backend() != "gpu":
        print(f"benchmarks/gpu.py: JAX finds no GPU here (it has: {jax.default_backend()}); nothing was measured")
        return 2
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # of Pallas' Triton lowering, in JAX 0.11
    if options.tune:
        return tune()
    page = page_of([SECTIONS[name]() for name in names])
    options.output.write_text(page)
    print(f"\n{page}\nwritten to {options.output}")
    return 0


# Attention: time


def attention_rows() -> Section:
    """Rows of T tokens in bfloat16, forward, and forward + backward."""
    columns = [
        "heads (kv) x size, row",
        "",
        "ours ms",
        "TFLOP/s",
        "cuDNN ms",
        "speed / cuDNN's",
        "Pallas ms",
        "Mosaic ms",
    ]
    cases: list[tuple[str, tuple, dict]] = [
        ("causal", (2, 8192, 16, 16, 128), {}),
        ("causal", (2, 8192, 16, 4, 128), {}),
        ("causal", (2, 8192, 32, 32, 64), {}),
        ("causal", (2, 8192, 8, 8, 256), {}),
        ("causal", (8, 2048, 16, 16, 128), {}),
        ("packed", (2, 8192, 16, 16, 128), {"ids": True}),
        ("window 1,024", (2, 8192, 16, 16, 128), {"window": 1024}),
        ("soft cap 50", (2, 8192, 16, 16, 128), {"soft_cap": 50.0}),
    ]
    rows = []
    for name, shape, options in cases:
        for backward in (False, True):
            rows += guarded(f"attention {name} {shape}", partial(attention_row, name, shape, backward, **options))
    text = (
        "bfloat16. cuDNN sees packed documents as a bias, the others not at all"
        " (empty cells); documents are drawn log-normally around 800 tokens."
    )
    return "Attention", text, columns, rows


def attention_row(name, shape, backward, ids=False, window=None, soft_cap=None) -> list[list[str]]:
    B, T, N, K, H = shape
    q, k, v, dout = (normal((B, T, n, H), jnp.bfloat16, seed) for seed, n in enumerate((N, K, K, N)))
    segments = jnp.asarray(documents(B, T)) if ids else None

    def ours(q, k, v):
        return gpu.attention(q, k, v, segments, H**-0.5, soft_cap, window)[0]

    def cudnn(q, k, v):
        mask = None if segments is None else (segments[:, None, :, None] == segments[:, None, None])
        local = None if window is None else (window - 1, 0)
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, local_window_size=local,
                                            implementation="cudnn")  # fmt: skip

    peers: dict[str, Callable] = {"ours": ours}
    if soft_cap is None:
        peers["cuDNN"] = cudnn
    if N == K and not window and not soft_cap and not ids:
        peers["Pallas"] = lambda q, k, v: pallas_attention(q, k, v, H)
    if not (window or soft_cap or ids):
        peers["Mosaic"] = lambda q, k, v: mosaic_attention(q, k, v, backward)
    runs = {}
    for peer, attend in peers.items():
        both = jax.jit(lambda q, k, v, dout, attend=attend: jax.vjp(attend, q, k, v)[1](dout))
        run = (both, (q, k, v, dout)) if backward else (jax.jit(attend), (q, k, v))
        runs |= working(peer, *run)
    ms = interleaved(runs)
    flops = 4 * B * N * T * T * H / 2 * (3.5 if backward else 1)
    least = ms["ours"]
    rate = "" if ids or window else f"{flops / least / 1e9:.0f}"
    ratio = f"{ms['cuDNN'] / least:.2f}" if "cuDNN" in ms else ""
    others = [f"{ms[peer]:.2f}" if peer in ms else "" for peer in ("cuDNN", "Pallas", "Mosaic")]
    what = f"{N} ({K}) x {H}, {B} x {T:,}, {name}"
    return [[what, "fwd + bwd" if backward else "fwd", f"{least:.2f}", rate, others[0], ratio, *others[1:]]]


def pallas_attention(q, k, v, H):
    ops = importlib.import_module("jax.experimental.pallas.ops.gpu.attention")
    return ops.mha(q, k, v, None, H**-0.5, True, ops.BlockSizes(128, 64, 64, 64, 64, 64))


def mosaic_attention(q, k, v, backward):
    """JAX's kernel for Hopper; it does not scale its logits."""
    ops = importlib.import_module("jax.experimental.pallas.ops.gpu.attention_mgpu")
    sizes = {"block_q_dkv": 64, "block_kv_dkv": 64, "block_q_dq": 64, "block_kv_dq": 64} if backward else {}
    return ops.attention(q, k, v, ops.TuningConfig(64, 128 if q.shape[-1] <= 128 else 64, 2, causal=True, **sizes))


def normal(shape: tuple[int, ...], dtype, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def documents(B: int, T: int) -> np.ndarray:
    """Segment ids of rows packed with documents of about 800 tokens."""
    rng = np.random.default_rng(0)
    ends = np.cumsum(np.exp(rng.normal(np.log(800), 1, (B, T // 8))).astype(int) + 1, 1)
    return np.stack([np.searchsorted(row, np.arange(T), side="right") for row in ends]).astype(np.int32)


# Attention: errors against float64


def error_rows() -> Section:
    """Our kernel, and cuDNN's where it takes the case, against the plain one in float64 on the same GPU."""
    columns = ["case", "", "out", "lse", "max logit", "dq", "dk", "dv", "same bits twice"]
    cases: list[tuple[str, tuple, str, dict]] = [
        ("causal", (1, 2048, 4, 4, 128), "bfloat16", {}),
        ("causal", (1, 2048, 4, 4, 64), "bfloat16", {}),
        ("causal", (1, 2048, 4, 2, 256), "bfloat16", {}),
        ("packed, window 300, soft cap 50", (2, 1500, 6, 2, 128), "bfloat16",
         {"ids": True, "window": 300, "soft_cap": 50.0}),
        ("packed, odd sizes", (3, 777, 6, 3, 96), "bfloat16", {"ids": True}),
        ("causal", (1, 1024, 4, 2, 64), "float32", {}),
        ("packed, window 300, soft cap 5", (2, 777, 6, 2, 40), "float32",
         {"ids": True, "window": 300, "soft_cap": 5.0}),
    ]  # fmt: skip
    rows = []
    for name, shape, dtype, options in cases:
        rows += guarded(f"errors {name}", partial(error_row, name, shape, dtype, **options))
    return "Attention: errors against float64", "Norm of the difference over norm of the exact array.", columns, rows


def error_row(name, shape, dtype, ids=False, window=None, soft_cap=None) -> list[list[str]]:
    B, T, N, K, H = shape
    q, k, v, dout = (normal((B, T, n, H), dtype, seed) for seed, n in enumerate((N, K, K, N)))
    segments = jnp.asarray(documents(B, T)) if ids else None
    beside_cudnn = dtype == "bfloat16" and not (soft_cap or ids or window)  # it returns no log-sum-exp

    def gradients(attend):
        def both(q, k, v, dout):
            outputs, pull = jax.vjp(attend, q, k, v)
            weights = [dout, *(jnp.zeros_like(a) for a in outputs[1:])]
            if not beside_cudnn:
                weights[1] = jnp.ones_like(outputs[1])
            return [*outputs, *pull(tuple(weights))]

        return jax.jit(both)

    run = gradients(lambda *qkv: gpu.attention(*qkv, segments, H**-0.5, soft_cap, window))
    ours, again = (list(map(np.asarray, run(q, k, v, dout))) for _ in range(2))
    same = all((a == b).all() for a, b in zip(ours, again))
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a), jnp.float64) for a in (q, k, v, dout)]
        plain = gradients(lambda *qkv: reference.attention(*qkv, segments, H**-0.5, soft_cap, window))
        exact = [np.asarray(a) for a in plain(*wide)]
    errors = [f"{distance(a, b):.1e}" for a, b in zip(ours, exact)]
    title = f"{dtype} {B} x {T:,}, {N} ({K}) x {H}, {name}"
    rows = [[title, "ours", *errors, "yes" if same else "NO"]]
    cudnn = lambda *qkv: (jax.nn.dot_product_attention(*qkv, is_causal=True, implementation="cudnn"),)  # noqa: E731
    for run, args in working("cuDNN", gradients(cudnn), (q, k, v, dout)).values() if beside_cudnn else ():
        out, *rest = (f"{distance(a, b):.1e}" for a, b in zip(run(*args), [exact[0], *exact[3:]]))
        rows.append([title, "cuDNN", out, "", "", *rest, ""])
    return rows


def distance(got, exact) -> float:
    return float(np.linalg.norm(np.asarray(got, float) - exact) / np.linalg.norm(exact))


# The loss

LOSS = 1, 8192, 2048, 131072  # B, T, D, V


def loss_rows() -> Section:
    """Loss and gradients of x and of the output layer, beside logits that are written."""
    B, T, D, V = LOSS
    text = f"bfloat16, {B * T:,} tokens x {D:,} x {V:,}, forward + backward; memory beside arguments and results."
    columns = ["implementation", "ms", "speed-up", "MB", "of the plain one"]
    return "Linear cross entropy", text, columns, guarded("loss", loss_times)


def loss_times() -> list[list[str]]:
    """A row for each implementation that runs."""
    B, T, D, V = LOSS
    x, w = normal((B, T, D), jnp.bfloat16), normal((V, D), jnp.bfloat16, 1) * jnp.bfloat16(D**-0.5)
    targets, weights = jax.random.randint(jax.random.key(2), (B, T), 0, V), jnp.ones((B, T))

    def plain(x, w):
        logits = jnp.einsum("BTD,VD->BTV", x, w, preferred_element_type=jnp.float32)
        nats = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
        return jnp.sum(weights * nats)

    def ours(name):
        return lambda x, w: linear_cross_entropy(x, w, targets, weights, implementation=name).loss

    runs, megabytes = {}, {}
    for name, loss in {"plain": plain, "xla": ours("xla"), "gpu": ours("gpu")}.items():
        found = working(name, jax.jit(jax.value_and_grad(loss, (0, 1))), (x, w))
        runs |= found
        if found:
            megabytes[name] = found[name][0].memory_analysis().temp_size_in_bytes / 1e6
    ms = interleaved(runs)
    return [
        [name, f"{ms[name]:.2f}", f"{ms['plain'] / ms[name]:.2f}" if "plain" in ms else "", f"{megabytes[name]:,.0f}",
         f"{megabytes[name] / megabytes['plain']:.3f}" if "plain" in megabytes else ""]
        for name in ms
    ]  # fmt: skip


# Newton-Schulz

MATRIX = 2048, 11008


def plain_newton_schulz(x):
    """Five steps of x (a + b x^T x + c (x^T x)^2) with every product computed whole (Muon)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x / jnp.linalg.norm(x.astype(jnp.float32)).astype(x.dtype)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def our_newton_schulz(x):
    """The same by the op."""
    x = x / jnp.linalg.norm(x.astype(jnp.float32)).astype(x.dtype)
    return newton_schulz(x, [(3.4445, -4.7750, 2.0315)] * 5)


# Name -> function of a [2048, 11008] matrix.
NEWTON_SCHULZ: dict[str, Callable[[jax.Array], jax.Array]] = {"plain": plain_newton_schulz, "ours": our_newton_schulz}


def newton_schulz_rows() -> Section:
    """Five steps of orthogonalisation of one matrix."""
    text, columns = f"bfloat16, five steps at {MATRIX}.", ["implementation", "ms", "speed-up"]
    return "Newton-Schulz", text, columns, guarded("newton_schulz", newton_schulz_times)


def newton_schulz_times() -> list[list[str]]:
    """A row for each function that runs."""
    x = normal(MATRIX, jnp.bfloat16)
    runs = {}
    for name, function in NEWTON_SCHULZ.items():
        runs |= working(name, jax.jit(function), (x,))
    ms = interleaved(runs)
    return [[name, f"{ms[name]:.2f}", f"{ms['plain'] / ms[name]:.2f}" if "plain" in ms else ""] for name in ms]


SECTIONS: dict[str, Callable[[], Section]] = {
    "errors": error_rows,
    "attention": attention_rows,
    "loss": loss_rows,
    "newton_schulz": newton_schulz_rows,
}


# The page


def page_of(sections: list[Section]) -> str:
    lines = ["# The kernels on a GPU", "", "    make bench-gpu", "", describe(), ""]
    for heading, text, columns, rows in sections:
        lines += [f"## {heading}", "", text, "", table(columns, rows), ""]
    if FAILURES:
        lines += ["## What did not run", "", *(f"- {line}" for line in dict.fromkeys(FAILURES)), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
