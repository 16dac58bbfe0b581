"""Rows brought together by key: Daft, on the cores of this machine or on a cluster of Ray; no other module knows it.

Its names differ between releases, hence the bounds on its version in setup.py.
"""

import functools
import os
from pathlib import Path
from types import ModuleType
from typing import Literal

import pyarrow as pa

from core.errors import UserError
from data.packages import package

Runner = Literal["native", "ray"]
SCHEMA = pa.schema([("high", pa.int64()), ("low", pa.int64()), ("number", pa.int64())])  # a key, and what it is of


def repeated(files: list[Path], first: int, last: int, on: Runner = "native", address: str | None = None) -> pa.Table:
    """Rows of Parquet files of `SCHEMA` whose key others have too, sorted by key and number.

    Of keys whose `high` lies between `first` and `last`, both included; what is held in memory are their rows.
    """
    daft = _daft(on, address)
    high, low, number = (daft.col(name) for name in SCHEMA.names)
    rows = daft.read_parquet([str(path) for path in files]).where((high >= first) & (high <= last))
    groups = rows.groupby(high, low).agg(number.list_agg().alias("numbers"), number.count().alias("count"))
    shared = groups.where(daft.col("count") > 1).explode("numbers").select(high, low, daft.col("numbers"))
    table = shared.to_arrow().rename_columns(SCHEMA.names)
    return table.sort_by([(name, "ascending") for name in SCHEMA.names])  # Daft's order differs from run to run


@functools.cache
def _daft(on: Runner, address: str | None) -> ModuleType:
    os.environ.update(DAFT_ANALYTICS_ENABLED="0", DO_NOT_TRACK="1", DAFT_PROGRESS_BAR="0")  # read when it is imported
    daft = package("daft")
    if on != daft.get_or_infer_runner_type():
        try:
            daft.set_runner_ray(address) if on == "ray" else daft.set_runner_native()
        except ImportError as error:
            raise UserError(f"a cluster of Ray needs another package ({error}): pip install 'daft[ray]'") from error
    return daft
