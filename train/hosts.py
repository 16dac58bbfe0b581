"""Several processes that train as one: they start together, and when one is lost the others end at once."""

import contextlib
import os
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from core.errors import Stopped, UserError, explain
from core.files import fingerprint
from core.progress import say

LOST = (
    "another process of this run ended; start all processes again with the same command, "
    "they continue from the last checkpoint"
)
START_SECONDS = 300  # for all processes to be started
GOODBYE = b"."

peers: list[socket.socket] = []
over = threading.Event()


def initialise(coordinator: str, num_processes: int, process_id: int) -> None:
    """Joins the run, before any other use of JAX; returns when all processes have.

    Each process keeps a connection to process 0, at the coordinator's port + 1. However a process ends, the system
    closes its connections; JAX alone would notice after 100 s, or abort with a stack trace. When process 0 is the one
    that is lost, JAX may still write lines of its own before this one.
    """
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 65535 and 0 <= process_id < num_processes):
        raise UserError(f"process {process_id} of {num_processes} at {coordinator}: give HOST:PORT and 0, 1, ...")
    say(f"process {process_id} of {num_processes}: waits for the others")
    peers[:] = gather(int(port), num_processes) if process_id == 0 else [join(host, int(port), process_id)]
    threading.Thread(target=watch, daemon=True).start()
    jax.distributed.initialize(coordinator, num_processes, process_id, cluster_detection_method="deactivate")


@contextlib.contextmanager
def together(coordinator: str, num_processes: int, process_id: int) -> Iterator[None]:
    """What is inside runs in all processes; an error in one ends this one at once, and by that the others."""
    initialise(coordinator, num_processes, process_id)
    try:
        yield
    except Stopped:  # all processes stop after the same step
        finish()
        raise
    except BaseException as error:  # noqa: BLE001 (told, and the process ends)
        if not isinstance(error, UserError | KeyboardInterrupt):
            time.sleep(1)  # where it echoes the loss of another process, the watch speaks meanwhile
        abandon(error)
    finish()


def finish() -> None:
    """The orderly end, which all processes reach: waits for the others, then lets go of them."""
    jax.distributed.shutdown()
    over.set()
    for peer in peers:
        with contextlib.suppress(OSError):
            peer.send(GOODBYE)


def abandon(error: BaseException) -> NoReturn:
    """Tells an error and ends; at an ordinary exit JAX would wait for the others, which now end too."""
    explained = explain(error)
    if explained is None or "--debug" in sys.argv:
        traceback.print_exception(error)
    else:
        os.write(2, f"launch.py: {explained.line}\n".encode())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if explained is None else explained.exit_code)


def barrier(name: str) -> None:
    """Waits until all processes are here; nothing with one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def require_same(settings: Any) -> None:
    """Refuses processes that were started with different configs or flags; `settings` is anything JSON can say."""
    if jax.process_count() > 1:
        own = np.frombuffer(bytes.fromhex(fingerprint(settings)), np.uint8)
        if (multihost_utils.process_allgather(own) != own).any():
            raise UserError("the processes of this run were started with different configs or flags; start all alike")


def shown() -> str:
    """How many hosts there are, for messages; nothing with one."""
    return f" of {jax.process_count()} hosts" if jax.process_count() > 1 else ""


def gather(port: int, num_processes: int) -> list[socket.socket]:
    """Process 0: a connection from each of the others."""
    joined: dict[int, socket.socket] = {}
    try:
        socket.create_server(("", port)).close()  # where it is taken, JAX would crash
        server = socket.create_server(("", port + 1))
    except OSError as error:
        reason = os.strerror(error.errno)
        raise UserError(f"ports {port} and {port + 1} must be free ({reason}); give another") from error
    with server:
        server.settimeout(START_SECONDS)
        while missing := set(range(1, num_processes)) - set(joined):
            try:
                peer, _ = server.accept()
            except TimeoutError:
                raise UserError(f"processes {sorted(missing)} did not start in {START_SECONDS} s") from None
            peer.settimeout(5)
            hello = b""
            with contextlib.suppress(OSError):
                hello = peer.recv(64)
            if hello.isdigit() and int(hello) not in missing:
                raise UserError(f"process {int(hello)} of {num_processes} joined, which is one too many")
            if hello.isdigit():  # others may knock at a port
                joined[int(hello)] = keep_alive(peer)
    return list(joined.values())


def join(host: str, port: int, process_id: int) -> socket.socket:
    """The others: a connection to process 0, which may start later."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            peer = keep_alive(socket.create_connection((host, port + 1), timeout=5))
            peer.send(str(process_id).encode())
            return peer
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(f"process 0 is not reached at {host}:{port + 1} ({error})") from error
            time.sleep(0.2)


def keep_alive(peer: socket.socket) -> socket.socket:
    """A machine that vanishes closes nothing; the system then gives up after 5 + 2 x 5 s."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 2}.items():
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return peer


def watch() -> None:
    """Ends this process as soon as a connection ends without a goodbye."""
    with selectors.DefaultSelector() as selector:
        for peer in peers:
            selector.register(peer, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                said = b""
                with contextlib.suppress(OSError):
                    said = key.fileobj.recv(1)
                if said != GOODBYE and not over.is_set():
                    os.write(2, f"\nlaunch.py: {LOST}\n".encode())
                    os._exit(2)
                selector.unregister(key.fileobj)
