"""The loss on several devices: tokens split over `replica`, `fsdp` and `context`, the vocabulary over `tensor`."""

import textwrap

import pytest

from cross_entropy_lab import QUICKLY
from lab import on_devices

PROGRAM = """
    import contextlib
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from kernels.cross_entropy import gpu, tpu, xla
    from kernels.cross_entropy.api import linear_cross_entropy
    from kernels.cross_entropy.problem import Head, TopK

    xla.CHUNK_LOGITS = 2 * 16 * 150  # chunks of 16 and 4 tokens
    tpu.TOKENS, tpu.VOCABULARY, gpu.BLOCK_LOGITS = (32,), (64,), 2**12
    rng = np.random.default_rng(0)
    B, T, D, V, E = 4, 20, 32, 300, 16
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    x, w, targets, weights = normal(B, T, D), normal(V, D), jnp.asarray(rng.integers(0, V, (B, T))), abs(normal(B, T))
    named = TopK(jnp.asarray(rng.integers(0, V, (B, T, 3))), abs(normal(B, T, 3)) / 3)
    whole = Head(normal(B, T, E), normal(V, E))

    def step(x, w, targets, weights, teacher, implementation):
        def loss(x, w):
            loss, *nats = linear_cross_entropy(x, w, targets, weights, z_loss=1e-3, soft_cap=9.0, teacher=teacher,
                                               implementation=implementation)
            return loss, nats
        return jax.value_and_grad(loss, (0, 1), has_aux=True)(x, w)

    run = jax.jit(step, static_argnums=5)
    kept = {}  # what the reference gives

    def check(implementation, axes, teacher, tokens, vocabulary):
        key = x.shape, len(w), type(teacher)
        want = kept[key] = kept.get(key) or run(x, w, targets, weights, teacher, "reference")
        mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))
        tokens = tokens if isinstance(tokens, P) else P(tokens)
        rows, layer = (NamedSharding(mesh, spec) for spec in (tokens, P(vocabulary)))
        if isinstance(teacher, Head):
            teacher = Head(*(jax.device_put(a, to) for a, to in zip(teacher, (rows, layer))))
        elif teacher is not None:
            teacher = jax.device_put(teacher, rows)
        args = [jax.device_put(a, to) for a, to in zip((x, w, targets, weights), (rows, layer, rows, rows))]
        with jax.set_mesh(mesh):
            compiled = run.lower(*args, teacher, implementation).compile()
        got = compiled(*args, teacher)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=2e-5)
        dx, dw = got[1]
        assert dx.sharding.is_equivalent_to(rows, 3), dx.sharding
        split = vocabulary if isinstance(vocabulary, tuple) else (vocabulary,) if vocabulary else ()
        parts = (*split, *(axis for axis in ("fsdp", "context") if axis in str(tokens)))
        whole_parts = len(w) % np.prod([axes[axis] for axis in parts], dtype=int) == 0
        if implementation != "xla" and whole_parts:  # each part of the parameters gets the sum of its rows
            layer = NamedSharding(mesh, P(parts or None))
        assert dw.sharding.is_equivalent_to(layer, 2), dw.sharding
        assert "all-gather" not in compiled.as_text() and "all-to-all" not in compiled.as_text()
"""


def on_four_devices(calls: str) -> None:
    on_devices(4, textwrap.dedent(PROGRAM) + textwrap.dedent(calls), **QUICKLY)


def test_split_vocabulary_gives_the_same():
    """Loss, nats and gradients of one device; neither logits nor output layers are gathered."""
    on_four_devices("""
        for implementation in ("xla", "tpu_interpret", "gpu_interpret"):
            check(implementation, dict(fsdp=2, tensor=2), whole, "fsdp", "tensor")
            check(implementation, dict(replica=2, tensor=2), named, "replica", "tensor")
    """)


@pytest.mark.slow
def test_split_batch_gives_the_same():
    """Over two axes, or the first alone where both do not divide; a vocabulary that the mesh does not divide stays
    whole; `xla` needs no mesh in context.
    """
    on_four_devices("""
        x, targets, weights = (a[:, :2] for a in (x, targets, weights))
        check("xla", dict(replica=2, fsdp=2), None, ("replica", "fsdp"), ())
        check("tpu_interpret", dict(replica=2, fsdp=2), None, ("replica", "fsdp"), ())
        with_mesh, jax.set_mesh = jax.set_mesh, contextlib.nullcontext
        check("xla", dict(data=4), None, "data", ())
        jax.set_mesh = with_mesh
        x, targets, weights = (a[:2] for a in (x, targets, weights))
        for implementation in ("xla", "gpu_interpret"):
            check(implementation, dict(replica=2, fsdp=2), None, "replica", ())
        w, targets = w[:299], targets % 299
        check("tpu_interpret", dict(fsdp=2, tensor=2), None, "fsdp", ())
        check("xla", dict(tensor=4), None, (), ())
    """)


@pytest.mark.slow
def test_split_rows_give_the_same():
    """The tokens of a row over `context`, with the batch or the vocabulary over another axis; 18 tokens that it does
    not divide stay whole.
    """
    on_four_devices("""
        for implementation in ("xla", "tpu_interpret", "gpu_interpret"):
            check(implementation, dict(context=2, tensor=2), whole, P(None, "context"), "tensor")
        check("xla", dict(fsdp=2, context=2), named, P("fsdp", "context"), ())
        check("tpu_interpret", dict(context=4), named, P(None, "context"), ())
        x, targets, weights = (a[:, :18] for a in (x, targets, weights))
        check("xla", dict(context=4), None, (), ())
    """)
