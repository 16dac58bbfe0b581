"""What Daft does for curation, on the cores of this machine or on a cluster of Ray. No other module knows of it.

Its names differ between releases, hence the bounds on its version in setup.py.
"""

import functools
import hashlib
import os
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import pyarrow as pa

from core.errors import UserError
from data.packages import package

Runner = Literal["native", "ray"]
SCHEMA = pa.schema([("high", pa.int64()), ("low", pa.int64()), ("number", pa.int64())])  # a key, and what it is of


def repeated(files: list[Path], first: int, last: int, on: Runner = "native", address: str | None = None) -> pa.Table:
    """Rows of Parquet files of `SCHEMA` whose key others have too, sorted by key and number.

    Of keys whose `high` lies between `first` and `last`, both included; what is held in memory are their rows.
    """
    daft = _runner(on, address)
    high, low, number = (daft.col(name) for name in SCHEMA.names)
    rows = daft.read_parquet([str(path) for path in files]).where((high >= first) & (high <= last))
    groups = rows.groupby(high, low).agg(number.list_agg().alias("numbers"), number.count().alias("count"))
    shared = groups.where(daft.col("count") > 1).explode("numbers").select(high, low, daft.col("numbers"))
    table = shared.to_arrow().rename_columns(SCHEMA.names)
    return table.sort_by([(name, "ascending") for name in SCHEMA.names])  # Daft's order differs from run to run


def sha1(values: pa.BinaryArray) -> np.ndarray:
    """The first 8 bytes of the SHA-1 of each value as a little-endian integer; a tenth of hashlib's time."""
    return _hashed(values, _sha1())


@functools.cache
def _sha1() -> object:
    """The expression, which is not in Daft's documentation to the bit."""
    daft = _daft()
    expression = daft.functions.hash(daft.col("value"), hash_function="sha1")
    known = int.from_bytes(hashlib.sha1(b"abc", usedforsecurity=False).digest()[:8], "little")
    if int(_hashed(pa.array([b"abc"]), expression)[0]) != known:
        raise UserError(
            f"daft {daft.__version__} does not give the hashes of FineWeb's signatures; `pip install -e .[web]`"
        )
    return expression


def _hashed(values: pa.BinaryArray, expression: object) -> np.ndarray:
    """In this thread, without a runner."""
    batch = pa.record_batch([values], ["value"])
    found = _daft().recordbatch.RecordBatch.from_arrow_record_batches([batch], batch.schema)
    return found.eval_expression_list([expression]).get_column(0).to_arrow().to_numpy()


@functools.cache
def _runner(on: Runner, address: str | None) -> ModuleType:
    daft = _daft()
    if on != daft.get_or_infer_runner_type():
        try:
            daft.set_runner_ray(address) if on == "ray" else daft.set_runner_native()
        except ImportError as error:
            raise UserError(f"a cluster of Ray needs another package ({error}): pip install 'daft[ray]'") from error
    return daft


@functools.cache
def _daft() -> ModuleType:
    """The package, which tells its makers of its use unless it is asked not to when it is imported."""
    os.environ.update(DAFT_ANALYTICS_ENABLED="0", DO_NOT_TRACK="1", DAFT_PROGRESS_BAR="0")
    return package("daft")
