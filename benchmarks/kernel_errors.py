"""Errors of every implementation of every kernel against float64, beside libraries: a part of docs/kernels.md.

An error is |got - exact| / |exact|, in the norm of a whole array. Inputs are rounded to the dtype first and the exact
result is the reference's in float64 from these. Kernels of other platforms run step by step (`interpret`).
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from kernels.attention.api import attention
from kernels.cross_entropy.api import linear_cross_entropy
from kernels.newton_schulz import reference as newton_schulz_reference
from kernels.newton_schulz.api import newton_schulz
from kernels.rope.api import rotate

IMPLEMENTATIONS = ("xla", "tpu_interpret", "gpu_interpret")
DTYPES = ("float32", "bfloat16")
AS_ON_A_TPU = "splash, as on a TPU"
JORDAN = [(3.4445, -4.7750, 2.0315)] * 5


class Case(NamedTuple):
    """An op, what is special about the case, what goes in, and who computes it: (forward, residuals) of arrays."""

    op: str
    what: str
    arrays: tuple[np.ndarray, ...]  # that have gradients
    by: dict[str, Callable[..., tuple[Any, Any]]]  # "reference" among them
    differentiable: bool = True


class Row(NamedTuple):
    """Errors of one implementation: the largest over forward results, residuals and gradients."""

    op: str
    what: str
    dtype: str
    by: str
    forward: float
    residuals: float | None
    gradients: float | None
    repeats: bool  # the same bits twice


def rows() -> Iterator[Row]:
    """Of all cases, dtypes and implementations."""
    for case in [*attention_cases(), *loss_cases(), *newton_schulz_cases(), *rope_cases()]:
        for dtype in DTYPES:
            arrays = [jnp.asarray(a, dtype) for a in case.arrays]
            with jax.enable_x64(True):
                exact = _compute(case, "reference", [jnp.asarray(np.asarray(a, np.float64)) for a in arrays])
            for name in case.by:
                if name == "reference":
                    continue
                got, again = (_compute(case, name, arrays) for _ in range(2))
                same = all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(again)))
                yield Row(case.op, case.what, dtype, name, *map(_error, got, exact), same)


def _compute(case: Case, name: str, arrays) -> tuple[Any, Any, Any]:
    """(forward, residuals, gradients) as NumPy arrays; the cotangent is fixed."""
    run = case.by[name]

    @jax.jit
    def both(*arrays):
        if not case.differentiable:
            return (*run(*arrays), ())
        forward, pull, residuals = jax.vjp(run, *arrays, has_aux=True)
        cotangent = jax.random.normal(jax.random.key(0), forward.shape, jnp.float32).astype(forward.dtype)
        return forward, residuals, pull(cotangent)

    with _matrix_unit() if name == AS_ON_A_TPU else contextlib.nullcontext():
        return jax.tree.map(np.asarray, both(*arrays))


def _error(got, exact) -> float | None:
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(exact))
    wide = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    return max((float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in wide), default=None)


def attention_cases() -> Iterator[Case]:
    """Against splash attention, which scales nothing: the scale is a power of two, so it rounds nothing."""
    T, N, H, scale = 384, 2, 128, 0.125
    random = np.random.default_rng(0)
    arrays = tuple(random.standard_normal((1, T, N, H)) for _ in range(3))
    ids = jnp.asarray(np.cumsum(random.random((1, T)) < 5 / T, axis=1), jnp.int32)
    options = {
        "causal": {},
        "packed": {"segment_ids_BT": ids},
        "window": {"window": 100},
        "soft cap": {"soft_cap": 5.0},
    }
    for what, masked in options.items():

        def ours(name, masked=masked):
            def run(q, k, v):
                out = attention(q, k, v, scale=scale, implementation=name, **masked)
                return out.out_BTNH, (out.lse_BTN, out.max_logit_N)

            return run

        by = {name: ours(name) for name in ("reference", *IMPLEMENTATIONS)}
        theirs = functools.partial(_splash, scale=scale, **masked)
        yield Case("attention", what, arrays, by | {"splash": theirs, AS_ON_A_TPU: theirs})


def _splash(q, k, v, *, scale, segment_ids_BT=None, window=None, soft_cap=None):
    T, N = q.shape[1:3]
    mask = masks.CausalMask((T, T)) if window is None else masks.LocalMask((T, T), (window - 1, 0), 0)
    sizes = {f"block_{axis}{of}": 128 for axis in ("q", "kv") for of in ("", "_dkv", "_dq")}
    sizes |= {"block_kv_compute": 128, "block_kv_dkv_compute": 128}
    attend = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * N), head_shards=1, q_seq_shards=1, interpret=True,
        attn_logits_soft_cap=soft_cap, block_sizes=splash.BlockSizes(**sizes),
    )  # fmt: skip
    segments = None if segment_ids_BT is None else splash.SegmentIds(segment_ids_BT[0], segment_ids_BT[0])
    q, k, v = (a[0].swapaxes(0, 1) for a in (q * jnp.asarray(scale, q.dtype), k, v))
    return attend(q, k, v, segments).swapaxes(0, 1)[None], ()


@contextlib.contextmanager
def _matrix_unit():
    """Products of float32 arrays without a precision as the TPU's matrix unit has them: of rounded operands."""
    plain = jax.lax.dot_general

    def rounded(a, b, *args, **options):
        if a.dtype == b.dtype == jnp.float32 and options.get("precision") is None:
            a, b = (c.astype(jnp.bfloat16).astype(jnp.float32) for c in (a, b))
        return plain(a, b, *args, **options)

    jax.clear_caches()  # of what was traced with the other products
    with mock.patch.object(jax.lax, "dot_general", rounded):
        yield
    jax.clear_caches()


def loss_cases() -> Iterator[Case]:
    """Against the plain product and softmax in the dtype of the inputs."""
    B, T, D, V = 2, 65, 128, 1000
    random = np.random.default_rng(0)
    arrays = (random.standard_normal((B, T, D)), random.standard_normal((V, D)) * D**-0.5)
    targets, weights = jnp.asarray(random.integers(0, V, (B, T))), jnp.asarray(random.random((B, T)), jnp.float32)
    for what, options in {"plain": {}, "z-loss, soft cap": {"z_loss": 1e-3, "soft_cap": 5.0}}.items():

        def ours(name, options=options):
            def run(x, w):
                out = linear_cross_entropy(x, w, targets, weights, implementation=name, **options)
                return out.loss, out.nats_BT

            return run

        def plain(x, w, z_loss=0.0, soft_cap=None):
            logits = jnp.einsum("BTD,VD->BTV", x, w, preferred_element_type=jnp.float32)
            logits = logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
            lse = jax.nn.logsumexp(logits, -1)
            nats = lse - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
            return jnp.sum(weights * (nats + z_loss * lse**2)), nats

        by = {name: ours(name) for name in ("reference", *IMPLEMENTATIONS)}
        yield Case("cross_entropy", what, arrays, {**by, "plain": functools.partial(plain, **options)})


def newton_schulz_cases() -> Iterator[Case]:
    """Against the plain products in the dtype of the inputs: five steps of Muon's coefficients."""
    random = np.random.default_rng(0)

    def plain(x):
        dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32, precision="highest")
        for a, b, c in JORDAN:
            gram = dot("LRC,LSC->LRS", x, x).astype(x.dtype)
            polynomial = (b * gram + c * dot("LRS,LST->LRT", gram, gram)).astype(x.dtype)
            x = (a * x + dot("LRS,LSC->LRC", polynomial, x)).astype(x.dtype)
        return x, ()

    for what, (R, C) in {"100 x 300": (100, 300), "256 x 256": (256, 256)}.items():
        x = random.standard_normal((2, R, C))
        x /= np.linalg.norm(x, axis=(1, 2), keepdims=True)
        by = {
            name: lambda x, name=name: (newton_schulz(x, JORDAN, implementation=name), ()) for name in IMPLEMENTATIONS
        }
        by["reference"] = lambda x: (newton_schulz_reference.newton_schulz(x, JORDAN), ())  # the op takes no float64
        yield Case("newton_schulz", what, (x,), {**by, "plain": plain}, differentiable=False)


def rope_cases() -> Iterator[Case]:
    """Against the halves and one of them negated, in the dtype of the inputs."""
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 50, 4, 128))
    angle = jnp.asarray(random.random((2, 50, 64)) * 6, jnp.float32)
    cos, sin = jnp.cos(angle), jnp.sin(angle)

    def plain(x):
        first, second = jnp.split(x, 2, axis=-1)
        wide = [jnp.concatenate([a, a], -1)[:, :, None].astype(x.dtype) for a in (cos, sin)]
        return x * wide[0] + jnp.concatenate([-second, first], -1) * wide[1], ()

    for pairs in ("half_split", "interleaved"):
        by = {
            name: lambda x, name=name, pairs=pairs: (rotate(x, cos, sin, pairs=pairs, implementation=name), ())
            for name in ("reference", "xla", "tpu_interpret")
        }
        yield Case("rope", pairs, (x,), by | ({"plain": plain} if pairs == "half_split" else {}))
