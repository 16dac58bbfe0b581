"""Processes for the data stages: results in order of finishing, a dead worker told in one line."""

import concurrent.futures
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from core.errors import UserError

WATCH_SECONDS = 0.5
Watch = Callable[[int], None]

_tell: Watch | None = None  # where this process says how far it is


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_map(
    function: Callable[[Any], Any], tasks: list[Any], workers: int = 0, watch: Watch | None = None
) -> Iterator[Any]:
    """Yields `function(task)` for every task as it finishes; `workers` 0 is one a core.

    `watch` is told now and then the sum of what functions gave to `advance`. Workers are spawned, not forked: JAX may
    already run threads in this process.
    """
    workers = min(workers or available_cores(), len(tasks))
    if workers <= 1:
        yield from _here(function, tasks, watch)
        return
    context = multiprocessing.get_context("spawn")
    done, finished = context.Value("q", 0), queue.SimpleQueue()
    with concurrent.futures.ProcessPoolExecutor(workers, context, _begin_worker, (done,)) as pool:
        for task in tasks:
            pool.submit(function, task).add_done_callback(finished.put)
        try:
            for _ in tasks:
                yield _next(finished, watch, done).result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UserError("a worker process died, perhaps for want of memory; lower data.workers") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def advance(number: int) -> None:
    """Tells whoever watches that so much more is done, of documents for example."""
    if _tell is not None:
        _tell(number)


def _here(function: Callable[[Any], Any], tasks: list[Any], watch: Watch | None) -> Iterator[Any]:
    """All tasks in this process."""
    global _tell
    done = 0

    def tell(number: int) -> None:
        nonlocal done
        done += number
        watch(done)

    before, _tell = _tell, tell if watch else None
    try:
        yield from map(function, tasks)
    finally:
        _tell = before


def _next(finished: queue.SimpleQueue, watch: Watch | None, done: Any) -> concurrent.futures.Future:
    """The next that finishes; meanwhile whoever watches is told how far the workers are."""
    while True:
        try:
            future = finished.get(timeout=WATCH_SECONDS)
        except queue.Empty:
            future = None
        if watch:
            watch(done.get_obj().value)  # without its lock, which a worker may have died with
        if future is not None:
            return future


def _begin_worker(done: Any) -> None:
    """Ctrl-C is the parent's to handle; a parent that was killed takes its workers along."""
    global _tell

    def tell(number: int) -> None:
        with done.get_lock():
            done.value += number

    _tell = tell
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core is enough
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def leave() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
