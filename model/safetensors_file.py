"""Safetensors files, tensor by tensor: nothing is mapped into memory, and nothing beyond one tensor is held.

A file is 8 bytes with the length of the header, the header (JSON: name to dtype, shape and place), and the data. The
library `safetensors` writes all tensors of a file at once and maps it when reading, which counts as memory.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from core.errors import UserError
from core.files import atomic_write

MAX_AXES = 8  # of a tensor: multiplying a million of them would take minutes
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
MAX_HEADER = 100 << 20  # the limit of the format


class Place(NamedTuple):
    """Where a tensor lies."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int  # bytes from the beginning of the file

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: Path) -> dict[str, Place]:
    """The tensors of a file by name. Raises UserError where the file is cut short or no safetensors file."""
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise UserError(f"{path} is cut short or not a safetensors file ({size:,} bytes)")
        try:
            header = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
        except (ValueError, RecursionError):
            header = None
    if not isinstance(header, dict):
        raise UserError(f"{path} is not a safetensors file: its header is not JSON, or says a name twice")
    header.pop("__metadata__", None)
    places = {name: _place(path, name, entry, 8 + length, size) for name, entry in header.items()}
    end = 8 + length  # of the tensor before: a shifted or shared place gives wrong numbers, not an error
    for name, place in sorted(places.items(), key=lambda item: (item[1].offset, item[1].size)):
        if place.offset != end:
            raise UserError(f"{path} is damaged: tensor {name} begins at byte {place.offset:,}, not {end:,}")
        end += place.size
    if end != size:
        raise UserError(f"{path} is damaged: its tensors end at byte {end:,} of {size:,}")
    return places


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which the standard library would keep the last of two equal keys."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key twice")
    return found


def _place(path: Path, name: str, entry: Any, start: int, size: int) -> Place:
    """An entry of the header, checked: numbers of the right kind, inside the file, as long as its shape says."""
    try:
        shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
        known = entry["dtype"]
        whole = len(shape) <= MAX_AXES and all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        raise UserError(f"{path}: the header entry of {name} is damaged") from None
    if not isinstance(known, str) or known not in DTYPES:
        raise UserError(f"{path}: tensor {name} has dtype {known}; Quintet reads {', '.join(DTYPES)}")
    if not whole or math.prod(shape) * DTYPES[known].itemsize != end - begin:
        raise UserError(f"{path}: the header entry of {name} is damaged")
    if start + end > size:
        raise UserError(f"{path} is cut short: tensor {name} ends at byte {start + end:,} of {size:,}")
    return Place(path, DTYPES[known], shape, start + begin)


def read_tensor(place: Place) -> np.ndarray:
    """The tensor, in the dtype of the file."""
    count = math.prod(place.shape)
    array = np.fromfile(place.path, place.dtype, count, offset=place.offset)
    if array.size != count:
        raise UserError(f"{place.path} became shorter while it was read")
    return array.reshape(place.shape)


def read_rows(place: Place, rows: int = 1024) -> Iterator[np.ndarray]:
    """The tensor in blocks of its first axis."""
    width = math.prod(place.shape[1:]) * place.dtype.itemsize
    for start in range(0, place.shape[0], rows):
        shape = (min(rows, place.shape[0] - start), *place.shape[1:])
        yield read_tensor(place._replace(shape=shape, offset=place.offset + start * width))


def write(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str, make: Callable[[str], np.ndarray]) -> None:
    """Writes tensors in the order of `shapes`, each made when its turn comes."""
    kind = DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, shape in shapes.items():
        end = begin + math.prod(shape) * kind.itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            tensor = np.ascontiguousarray(make(name), kind)
            assert tensor.shape == shape, (name, tensor.shape, shape)
            file.write(tensor.view(np.uint8).data)
