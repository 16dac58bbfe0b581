"""Attention and rotation where the mesh axis `context` splits the tokens of a row: results of one device."""

import textwrap

import pytest

from cross_entropy_lab import QUICKLY
from lab import on_devices

PROGRAM = """
    import logging
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from kernels.attention import tpu_blocks
    from kernels.attention.api import attention
    from kernels.rope.api import rotate

    sizes = tpu_blocks.Sizes  # of the interpreted kernels, so that a stretch has several blocks
    tpu_blocks.OTHERS = tpu_blocks.Kernels(sizes(128, 128), sizes(256, 128), sizes(128, 128))
    rng = np.random.default_rng(0)
    B, N, K, H = 4, 4, 2, 32
    given = {}

    def inputs(T):
        q, k, v, dout = (jnp.asarray(rng.standard_normal((B, T, n, H)), jnp.float32) for n in (N, K, K, N))
        documents = np.arange(T) // np.array([[T // 5], [T // 3], [T - 5], [T]])  # the last row is one document
        return q, k, v, dout, jnp.asarray(documents)

    def step(q, k, v, dout, ids, window, cap, implementation):
        def attend(q, k, v):
            return tuple(attention(q, k, v, segment_ids_BT=ids, window=window, soft_cap=cap,
                                   implementation=implementation))
        outputs, pull = jax.vjp(attend, q, k, v)
        return outputs, pull((dout, dout.mean(-1), jnp.zeros_like(outputs[2])))

    run = jax.jit(step, static_argnums=(6, 7))

    def check(implementation, axes, T=72, window=None, cap=None, split=True):
        arrays = given[T] = given.get(T) or inputs(T)
        want = run(*arrays, window, cap, implementation if implementation in ("xla", "reference") else "xla")
        devices = jax.devices()[: int(np.prod(list(axes.values())))]
        mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), (AxisType.Auto,) * len(axes), devices=devices)
        batch, context, heads = (name if name in axes else None for name in ("fsdp", "context", "tensor"))
        context = context if split else None
        heads, rows = NamedSharding(mesh, P(batch, context, heads)), NamedSharding(mesh, P(batch, context))
        placed = [jax.device_put(a, rows if a is arrays[4] else heads) for a in arrays]
        with jax.set_mesh(mesh):
            compiled = run.lower(*placed, window, cap, implementation).compile()
        got = compiled(*placed, window)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=2e-6 * np.abs(b).max())
        if split:
            for a in (got[0][0], *got[1]):
                assert a.sharding.is_equivalent_to(heads, 4), a.sharding
            text = compiled.as_text()
            gathered = [line for line in text.splitlines() if " all-gather(" in line]
            assert len(gathered) == 3, gathered  # keys, values and segment ids
            assert text.count(" reduce-scatter(") == 2, text.count(" reduce-scatter(")
            assert "all-to-all" not in text and "collective-permute" not in text

    def check_rotation(implementation, axes):
        x, angles = inputs(72)[0], rng.uniform(0, 6, (B, 72, H // 2))
        both = lambda x, cos, sin, name: jax.vjp(lambda x: rotate(x, cos, sin, implementation=name), x)
        run = jax.jit(lambda x, cos, sin, dy, name: (lambda y, pull: (y, *pull(dy)))(*both(x, cos, sin, name)),
                      static_argnums=4)
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        want = run(x, cos, sin, x[::-1], "reference")
        mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), (AxisType.Auto,) * len(axes))
        layout = NamedSharding(mesh, P(None, "context"))
        args = [jax.device_put(a, layout) for a in (x, cos, sin, x[::-1])]
        with jax.set_mesh(mesh):
            compiled = run.lower(*args, implementation).compile()
        for a, b in zip(compiled(*args), want):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=2e-6 * np.abs(b).max())
            assert a.sharding.is_equivalent_to(layout, 4), a.sharding
        assert "all-gather" not in compiled.as_text()
"""
MESHES = "dict(context=2), dict(context=4), dict(fsdp=2, context=2), dict(context=2, tensor=2)"


def on_four_devices(calls: str) -> str:
    return on_devices(4, textwrap.dedent(PROGRAM) + textwrap.dedent(calls), **QUICKLY)


def test_split_rows_give_the_same():
    """On every mesh, with documents and windows across the ends of stretches: keys and values alone are gathered."""
    on_four_devices(f"""
        for axes in ({MESHES}):
            check("xla", axes, window=jnp.int32(20))
        check("xla", dict(context=4), cap=4.0)
        check("xla", dict(context=2), T=150, window=100)  # two blocks of queries a stretch
        check("reference", dict(fsdp=2, context=2), window=20)
    """)


@pytest.mark.slow
def test_kernels_give_the_same_of_split_rows():
    on_four_devices("""
        check("tpu_interpret", dict(context=2, tensor=2), T=600, window=jnp.int32(250))  # a stretch has three blocks
        check("tpu_interpret", dict(fsdp=2, context=2), cap=4.0)
        check("gpu_interpret", dict(context=4), window=30)
    """)


def test_rows_that_the_axis_does_not_divide_stay_whole():
    """As with every other axis the log says that its devices compute the same."""
    said = on_four_devices("""
        logging.basicConfig(level=logging.WARNING)
        check("xla", dict(context=4), T=70, split=False)
    """)
    assert "mesh axis context (4 devices) does not divide 70, so its devices compute the same" in said


def test_rotation_of_split_rows_is_the_same():
    on_four_devices("""
        for implementation in ("xla", "tpu_interpret"):
            check_rotation(implementation, dict(context=4))
    """)
