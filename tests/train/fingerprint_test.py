"""Any changed bit and any exchange changes a fingerprint; the layout over devices does not."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lab import on_devices
from train import fingerprint
from train.fingerprint import fingerprints

DTYPES = [np.float32, ml_dtypes.bfloat16, np.float16, np.int32, np.uint32, np.int8, np.uint8, np.int16, np.bool_]
SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 4)]


def one(array):
    return fingerprints({"a": jnp.asarray(array)})["a"]


def random_bits(dtype, shape, seed):
    values = np.random.default_rng(seed)
    if dtype == np.bool_:
        return np.array(values.random(shape) < 0.5)
    size = np.dtype(dtype).itemsize
    return np.frombuffer(values.bytes(int(np.prod(shape, dtype=int)) * size), dtype).reshape(shape)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(DTYPES), st.sampled_from(SHAPES), st.integers(0, 2**32 - 1), st.data())
def test_one_bit_changes_it(dtype, shape, seed, data):
    array = random_bits(dtype, shape, seed)
    changed = array.copy()
    raw = changed.reshape(-1).view(np.uint8)
    bit = data.draw(st.integers(0, 0 if dtype == np.bool_ else 7))
    raw[data.draw(st.integers(0, raw.size - 1))] ^= np.uint8(1 << bit)
    assert one(array) == one(array.copy())
    assert one(array) != one(changed)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(DTYPES), st.sampled_from([s for s in SHAPES if np.prod(s) > 1]), st.integers(0, 99), st.data())
def test_an_exchange_changes_it(dtype, shape, seed, data):
    array = random_bits(dtype, shape, seed).copy()
    flat = array.reshape(-1)
    i, j = data.draw(st.integers(0, flat.size - 1)), data.draw(st.integers(0, flat.size - 1))
    before = one(array)
    differs = flat[i].tobytes() != flat[j].tobytes()
    flat[i], flat[j] = flat[j].copy(), flat[i].copy()
    assert (one(array) != before) == differs


def test_structured_values_and_neighbours_do_not_collide():
    """Counters, constants and small integers: every exchange of two of 200 elements is noticed by both words."""
    seen = set()
    array = np.arange(200, dtype=np.int32)
    for i in range(200):
        for j in range(i + 1, min(i + 12, 200)):
            array[[i, j]] = array[[j, i]]
            seen.add(one(array))
            array[[i, j]] = array[[j, i]]
    pairs = sum(min(11, 199 - i) for i in range(200))
    assert len(seen) == pairs
    assert len({value[:8] for value in seen}) == len({value[8:] for value in seen}) == pairs


def test_shape_dtype_and_sign_of_zero_count():
    zeros = [np.zeros(shape, dtype) for shape in [(), (1,), (0,), (0, 2), (2, 0), (6,), (2, 3)] for dtype in DTYPES]
    assert len({one(array) for array in zeros}) == len(zeros)
    assert one(np.float32(0.0)) != one(np.float32(-0.0))
    assert one(np.array([1, np.nan], np.float32)) == one(np.array([1, np.nan], np.float32))


def test_wide_types():
    with jax.enable_x64(True):
        for dtype in (np.int64, np.uint64, np.float64):
            array = random_bits(dtype, (5,), 3)
            found = {one(array)}
            for bit in range(64):
                changed = array.copy()
                changed.view(np.uint64)[2] ^= np.uint64(1) << np.uint64(bit)
                found.add(one(changed))
            assert len(found) == 65


def test_an_array_with_more_elements_than_a_word_counts(monkeypatch):
    """With words of three bits: exchanges across the second word of the index are noticed too."""
    monkeypatch.setattr(fingerprint, "WORD", 8)
    array = np.arange(6 * 5 * 4, dtype=np.uint32).reshape(6, 5, 4)
    low, high = fingerprint._index(array.shape)
    assert len(set(zip(np.ravel(low).tolist(), np.ravel(high).tolist()))) == array.size
    find = jax.jit(lambda a: fingerprint._sums(a))
    found = {tuple(find(array).tolist())}
    for i, j in [(0, 20), (0, 100), (3, 43), (8, 16), (1, 119)]:
        changed = array.copy().reshape(-1)
        changed[[i, j]] = changed[[j, i]]
        found.add(tuple(find(changed.reshape(array.shape)).tolist()))
    assert len(found) == 6


def test_names_and_values_are_stable():
    """Checkpoints of last year are read by these numbers."""
    found = fingerprints({"w": jnp.arange(6, dtype=jnp.float32).reshape(2, 3), "n": (jnp.int32(7),)})
    assert found == {"n/0": "803a5cde29ebcb58", "w": "2d8b86170ab4b19b"}


SCRIPT = """
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from train import fingerprint
from train.fingerprint import fingerprints

values = np.random.default_rng(0)
tree = {
    "a": values.normal(size=(8, 12)).astype(np.float32),
    "b": jnp.asarray(values.normal(size=(4, 8, 4)), jnp.bfloat16),
    "c": np.int32(5),
    "d": values.integers(0, 2, (16,)).astype(bool),
}
expected = fingerprints(jax.tree.map(jnp.asarray, tree))
for shape in [(1, 1), (4, 1), (2, 2), (1, 4)]:
    mesh = Mesh(np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape), ("x", "y"))
    for spec in [P(), P("x"), P("y"), P("x", "y"), P(None, "x"), P(("x", "y"))]:
        def place(array):
            fits = NamedSharding(mesh, P(*spec[: np.ndim(array)]))
            return jax.device_put(array, fits)
        placed = jax.tree.map(place, tree)
        assert fingerprints(placed) == expected, (shape, spec)
        texts = [
            fingerprint._compiled(fingerprint._replicated(leaf)).lower(leaf).compile().as_text()
            for leaf in jax.tree.leaves(placed)
        ]
        for line in "".join(texts).splitlines():  # partial sums alone travel, one a device
            for moved in re.findall(r"= .*?(\\w+)\\[([\\d,]*)\\].* all-gather\\(", line):
                assert moved[0] == "u32" and np.prod([int(n) for n in moved[1].split(",")]) <= 4, line
print("the same on", jax.device_count(), sorted(expected.items()))
"""


def test_every_layout_over_four_devices_gives_the_same_without_moving_arrays():
    assert "the same on 4" in on_devices(4, SCRIPT)
