"""Several processes that train as one: they start together, and when one is lost or stuck all end and name it."""

import contextlib
import os
import secrets
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from core import progress
from core.errors import Stopped, UserError, explain
from core.files import fingerprint
from core.progress import say
from train.clusters import Cluster
from train.peers import Patience, Peers, meet

peers: Peers | None = None  # with one process, none


def run(cluster: Cluster, patience: Patience, verbs: list[str], do: Callable[..., None]) -> None:
    """All processes train as one; process 0 does the verbs before and after, alone."""
    first = cluster.process_id == 0
    if "train" not in verbs:
        if first:
            do(*verbs)
        else:
            say(f"{cluster.name}: process 0 runs {verbs[0]} alone")
        return
    place = verbs.index("train")
    with together(cluster, patience):
        if first:
            do(*verbs[:place])
        barrier("the beginning of train")  # the others wait for as long as that takes
        begin(cluster)
        do("train")
    if first and verbs[place + 1 :]:  # JAX knows the devices of all until this program ends
        if cluster.kind == "tpu":
            os.environ["JAX_PLATFORMS"] = "cpu"
        os.execv(sys.executable, [*of_what_follows(sys.orig_argv), "--cluster=none"])


def of_what_follows(argv: list[str]) -> list[str]:
    """The command without what changes a run: that has been done, by all processes and on all their devices."""
    own = [word for word, before in zip(argv, ["", *argv]) if before != "--skip"]
    return [word for word in own if word not in ("--rebuild", "--amend") and word.partition("=")[0] != "--skip"]


@contextlib.contextmanager
def together(cluster: Cluster, patience: Patience) -> Iterator[None]:
    """What is inside runs in all processes; an error in one ends this one at once, and by that the others.

    JAX itself starts with `begin`. Only process 0 says what it does.
    """
    global peers
    if cluster.process_id == 0:
        found = "" if cluster.kind == "flags" else f"{cluster.kind}: "
        say(f"{found}process 0 of {cluster.num_processes} on {socket.gethostname()} waits for the others")
    else:
        progress.silence()
    address = cluster.coordinator, cluster.num_processes, cluster.process_id
    peers = meet(*address, patience, cluster.hosts)
    try:
        yield
    except Stopped as stopped:
        if not jax.distributed.is_initialized():
            abandon(peers, stopped)
        finish()  # all processes stop after the same step
        if peers.process:
            raise SystemExit(stopped.exit_code) from None
        raise
    except BaseException as error:  # noqa: BLE001 (told, and the process ends)
        if not isinstance(error, UserError | KeyboardInterrupt):
            time.sleep(1)  # where it echoes the loss of another process, the watch speaks meanwhile
        abandon(peers, error)
    finish()


def begin(cluster: Cluster) -> None:
    """Joins JAX's processes, before any other use of its devices; returns when all have."""
    assert peers is not None
    # On CPUs, programs that exchange and run at once can take the threads that each other waits for: processes of
    # several devices then stand still for good (seen while saving).
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.distributed.initialize(
        cluster.coordinator,
        cluster.num_processes,
        cluster.process_id,
        local_device_ids=cluster.local_devices,
        cluster_detection_method="deactivate",
        heartbeat_timeout_seconds=round(max(100, 2 * peers.patience.silent)),  # ours names who is silent, and first
    )


def finish() -> None:
    """The orderly end, which all processes reach: waits for the others, then lets go of them."""
    assert peers is not None
    peers.wait("the end")
    jax.distributed.shutdown()
    peers.finish()


def abandon(peers: Peers, error: BaseException) -> NoReturn:
    """Tells an error and ends; at an ordinary exit JAX would wait for the others, which now end too."""
    peers.over.set()  # this process has its own reason to end
    explained = explain(error)
    who = f"{peers.name}: " if peers.process else ""
    if explained is None or "--debug" in sys.argv:
        os.write(2, f"launch.py: {who}\n".encode() if who else b"")
        traceback.print_exception(error)
    else:
        os.write(2, f"launch.py: {who}{explained.line}\n".encode())
    sys.stdout.flush()
    sys.stderr.flush()
    peers.fail(explained.line if explained is not None else f"{type(error).__name__}, a traceback in its own output")
    os._exit(1 if explained is None else explained.exit_code)


def reached(mark: str) -> None:
    """Notes how far this process is, for the case that it gets no further; costs two assignments."""
    if peers is not None:
        peers.reached(mark)


def barrier(name: str) -> None:
    """Waits until all processes are here; nothing with one. Whoever does not arrive in time is named, and all end."""
    if peers is not None:
        peers.wait(name)


def require_same(settings: Any) -> None:
    """Refuses processes that were started with different configs or flags; `settings` is anything JSON can say."""
    if peers is None:
        return
    if jax.process_index() != peers.process:
        raise UserError(
            f"the devices call this process {jax.process_index()}, its launcher {peers.process}; say with "
            "--coordinator, --processes and --process what the devices say"
        )
    own = np.frombuffer(bytes.fromhex(fingerprint(settings)), np.uint8)
    if (multihost_utils.process_allgather(own) != own).any():
        raise UserError("the processes of this run were started with different configs or flags; start all alike")


def require_shared(workdir: Path) -> None:
    """Refuses processes whose workdir is another folder than that of process 0, as on hosts that share no disk."""
    if peers is None:
        return
    token = int(multihost_utils.broadcast_one_to_all(np.int32(secrets.randbits(31))))
    mark = workdir / f".shared-{token}"
    if peers.process == 0:
        mark.touch()
    barrier("the look at the workdir")
    found = mark.exists()
    barrier("the end of that look")
    if peers.process == 0:
        mark.unlink()
    if not found:
        raise UserError(f"{workdir} is not where process 0 writes; give all processes one folder that they share")


def shown() -> str:
    """How many hosts there are, for messages; nothing with one."""
    return f" of {jax.process_count()} hosts" if jax.process_count() > 1 else ""
