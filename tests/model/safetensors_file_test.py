"""Our files by the library `safetensors` and its files by us; damaged ones never give wrong numbers."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from core.errors import UserError
from model.safetensors_file import read_header, read_rows, read_tensor, write

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3) + 1,
    "b.weight": np.linspace(-1, 1, 8, dtype=np.float32),
    "c": np.full((2, 1, 2), 7, np.float32),
}


def read(path):
    return {name: read_tensor(place) for name, place in read_header(path).items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("safetensors") / "whole"
    write(path, {name: array.shape for name, array in TENSORS.items()}, "F32", TENSORS.__getitem__)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "dtype"), [("F64", np.float64), ("F32", np.float32), ("F16", np.float16), ("BF16", ml_dtypes.bfloat16)]
)
def test_the_library_and_we_read_each_others_files(tmp_path, name, dtype):
    arrays = {key: array.astype(dtype) for key, array in TENSORS.items()} | {"none": np.zeros((0, 4), dtype)}
    write(tmp_path / "ours", {key: array.shape for key, array in arrays.items()}, name, arrays.__getitem__)
    save_file(arrays, tmp_path / "theirs", metadata={"format": "pt"})
    with safe_open(tmp_path / "ours", "np") as file:
        assert file.metadata() == {"format": "pt"}
    for found in (load_file(tmp_path / "ours"), read(tmp_path / "theirs"), read(tmp_path / "ours")):
        assert found.keys() == arrays.keys()
        for key, array in arrays.items():
            assert found[key].dtype == array.dtype
            np.testing.assert_array_equal(found[key], array)


def test_rows_in_blocks(tmp_path):
    array = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    write(tmp_path / "x", {"before": (2,), "x": (10, 3)}, "F32", {"before": np.ones(2), "x": array}.__getitem__)
    place = read_header(tmp_path / "x")["x"]
    for rows in (1, 3, 10, 64):
        np.testing.assert_array_equal(np.concatenate(list(read_rows(place, rows))), array)


def outcome(path, content: bytes) -> None:
    """A UserError, or numbers of which every one under its own name is right."""
    path.write_bytes(content)
    try:
        found = read(path)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017 - the other outcome is checked too
        return
    for name, array in found.items():
        if name in TENSORS:
            np.testing.assert_array_equal(array.ravel(), TENSORS[name].ravel())  # shapes are compared with the config


def test_a_file_cut_anywhere_is_refused(tmp_path, whole):
    path = tmp_path / "cut"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cut"):
            read_header(path)


def test_a_bit_flipped_anywhere_in_the_header_gives_no_wrong_number(tmp_path, whole):
    end = 8 + int.from_bytes(whole[:8], "little")
    for position in range(end):
        for bit in range(8):
            changed = bytearray(whole)
            changed[position] ^= 1 << bit
            outcome(tmp_path / "flipped", bytes(changed))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_bytes_changed_or_taken_out_of_the_header_give_no_wrong_number(tmp_path_factory, whole, data):
    end = 8 + int.from_bytes(whole[:8], "little")
    position = data.draw(st.integers(0, end - 1))
    taken, put = data.draw(st.integers(0, min(3, end - position))), data.draw(st.binary(max_size=3))
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    outcome(path, whole[:position] + put + whole[position + taken :])


def entry(shape=(2,), offsets=(0, 8), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"x": entry(dtype="I64", shape=[1])}, "tensor x has dtype I64; Quintet reads F64, F32, F16, BF16"),
        ({"x": entry(dtype="F8_E4M3", shape=[8])}, "tensor x has dtype F8_E4M3"),
        ({"x": entry(dtype=["F32"])}, "tensor x has dtype"),
        ({"x": entry(shape=[-2])}, "entry of x is damaged"),
        ({"x": entry(shape=[2.0])}, "entry of x is damaged"),
        ({"x": entry(shape=[True, 2])}, "entry of x is damaged"),
        ({"x": entry(shape="2")}, "entry of x is damaged"),
        ({"x": entry(shape=[1] * 8 + [2])}, "entry of x is damaged"),
        ({"x": entry(shape=[10**30])}, "entry of x is damaged"),
        ({"x": entry(shape=[2**62], offsets=(0, 2**64))}, "cut short: tensor x ends at byte"),
        ({"x": entry(offsets=(-8, 0))}, "entry of x is damaged"),
        ({"x": entry(offsets=(8, 0))}, "entry of x is damaged"),
        ({"x": entry(offsets=(0, 8, 16))}, "entry of x is damaged"),
        ({"x": entry(offsets=(0, 9))}, "entry of x is damaged"),
        ({"x": 3}, "entry of x is damaged"),
        ({"x": {"dtype": "F32"}}, "entry of x is damaged"),
        ({"x": entry(), "y": entry()}, "tensor y begins at byte"),
        ({"x": entry(), "y": entry(offsets=(4, 12))}, "tensor y begins at byte"),
        ({"x": entry(offsets=(8, 16))}, "tensor x begins at byte"),
        ({"x": entry()}, "its tensors end at byte .* of"),
        ([], "its header is not JSON"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, header, message):
    text = json.dumps(header).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(UserError, match=message):
        read_header(tmp_path / "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short or not a safetensors file"),
        (struct.pack("<Q", 2**63) + b"{}", "cut short or not a safetensors file"),
        (struct.pack("<Q", 2) + b"{", "cut short or not a safetensors file"),
        (struct.pack("<Q", 3) + b"{]}", "its header is not JSON"),
        (struct.pack("<Q", 2) + b"\xff\xfe", "its header is not JSON"),
        (struct.pack("<Q", 100_000) + b"[" * 100_000, "its header is not JSON"),
        (struct.pack("<Q", 15) + b'{"x":{},"x":{}}', "or says a name twice"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path, content, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_header(tmp_path / "x")


def test_a_file_that_shrinks_while_it_is_read(tmp_path, whole):
    (tmp_path / "x").write_bytes(whole)
    places = read_header(tmp_path / "x")
    (tmp_path / "x").write_bytes(whole[:-4])
    with pytest.raises(UserError, match="became shorter while it was read"):
        read_tensor(places["c"])
