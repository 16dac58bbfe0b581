"""Processes for the data stages: results in order of finishing, a dead worker told in one line."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from core.errors import UserError


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_map(function: Callable[[Any], Any], tasks: list[Any], workers: int = 0) -> Iterator[Any]:
    """Yields `function(task)` for every task as it finishes; `workers` 0 is one a core.

    Workers are spawned, not forked: JAX may already run threads in this process.
    """
    workers = min(workers or available_cores(), len(tasks))
    if workers <= 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=_live_with_parent) as pool:
        futures = [pool.submit(function, task) for task in tasks]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UserError("a worker process died, perhaps for want of memory; lower data.workers") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _live_with_parent() -> None:
    """Ctrl-C is the parent's to handle; a parent that was killed takes its workers along."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core is enough
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def leave() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
