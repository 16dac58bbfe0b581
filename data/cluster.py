"""The data stages' tasks on a Ray cluster: `process_map` of `data/workers.py` on many machines.

All of them see the workdir and the documents under the same paths and have this program installed. A task writes its
result whole or not at all, so that one which was lost with its machine is simply done again elsewhere.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

from core.errors import UserError

ANSWER_SECONDS = 10  # Ray itself asks an address where nothing listens for minutes
TRIES = 3  # of a task whose machine or worker died, beside the first


def cluster_map(function: Callable[[Any], Any], tasks: list[Any], address: str) -> Iterator[Any]:
    """Yields `function(task)` for every task as it finishes; `address` may be `auto`, this machine's."""
    ray = _connect(address)
    remote = ray.remote(max_retries=TRIES)(_run)
    pending = [remote.remote(os.getcwd(), function, task) for task in tasks]
    try:
        while pending:
            (done,), pending = ray.wait(pending, num_returns=1)
            yield ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # what the task itself raised
    except ray.exceptions.RayError as error:
        line = str(error).strip().splitlines()[0]
        raise UserError(f"the cluster lost a task {TRIES + 1} times ({line}); the same command continues") from error
    finally:
        with contextlib.suppress(ray.exceptions.RayError):  # of a cluster that is gone; the error is on its way
            for left in pending:
                ray.cancel(left, force=True)


def _run(folder: str, function: Callable[[Any], Any], task: Any) -> Any:
    """One task, where relative paths mean what they do here."""
    os.chdir(folder)
    return function(task)


def _connect(address: str) -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read at the import
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ModuleNotFoundError:
        line = "data.cluster needs the package ray; install it with `pip install -e .[cluster]`"
        raise UserError(line) from None
    if not ray.is_initialized():
        try:
            _require_listener(address)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except OSError as error:
            line = str(error).strip().splitlines()[0]
            raise UserError(f"data.cluster={address}: no Ray cluster answers ({line})") from None
    return ray


def _require_listener(address: str) -> None:
    """`OSError` unless something listens there; `auto`, names and `ray://` are Ray's own to find."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
