"""The connections between the processes of a run: who is there, how far each got, and who is lost or stuck.

Process 0 has one connection from each of the others; messages are lines of JSON. About every second the others say
which mark they have reached, and process 0 which mark all have. However a process ends, the system closes its
connection: process 0 tells the others whose it was, and all end. JAX alone would notice after 100 s, or abort with a
stack trace, and would name nobody. Nothing here needs JAX or a device.
"""

import contextlib
import dataclasses
import json
import math
import os
import selectors
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any, NamedTuple, NoReturn

from core.errors import UserError

AGAIN = "start all processes again with the same command, they continue from the last checkpoint"
SEND_SECONDS = 2.0  # for a few bytes; a process that takes none is silent before long
LONGEST_LINE = 1 << 16


class Patience(NamedTuple):
    """Seconds after which a process is given up."""

    stuck: float  # furthest behind, and not at its next mark
    silent: float  # without a word, which a thread says every second
    start: float = 300  # not started


def name(process: int, host: str) -> str:
    """How a process is called in messages."""
    return f"process {process} on {host}" if host else f"process {process}"


@dataclasses.dataclass
class Peer:
    """One connection, and what is known of the process at its other end."""

    process: int
    host: str
    connection: socket.socket
    unread: bytes = b""
    mark: int = 0  # how many marks it has reached
    at: str = "the start"  # what it calls the last
    moved: float = 0.0  # when
    waits: bool = False  # in `wait`, not yet told that all are there
    heard: float = dataclasses.field(default_factory=time.monotonic)
    failed: str = ""  # what it said before it ended

    @property
    def name(self) -> str:
        """As in messages."""
        return name(self.process, self.host)

    def reach(self, mark: int, at: str) -> None:
        """Notes how far it is."""
        self.at, self.mark, self.moved = at, mark, time.monotonic()

    def send(self, **message: Any) -> None:
        """A line; a peer that is gone is noticed when it is read."""
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """The lines that came; None at the end of the connection."""
        try:
            read = self.connection.recv(LONGEST_LINE)
        except TimeoutError:
            return []
        except OSError:
            return None
        *lines, self.unread = (self.unread + read).split(b"\n")
        if not read or len(self.unread) > LONGEST_LINE:
            return None
        self.heard = time.monotonic()
        return [message for line in lines if (message := _parse(line)) is not None]


def meet(
    coordinator: str, num_processes: int, process: int, patience: Patience, hosts: tuple[str, ...] = ()
) -> "Peers":
    """Waits until all processes of the run are connected; `hosts` are their names where known."""
    host, _, port = coordinator.rpartition(":")
    if process == 0:
        return Peers(0, _gather(int(port), num_processes, patience.start, hosts), patience)
    return Peers(process, [_join(host.strip("[]"), int(port), num_processes, process, patience.start)], patience)


def _gather(port: int, num_processes: int, seconds: float, hosts: tuple[str, ...]) -> list[Peer]:
    """Process 0: a connection from each of the others, at the port after the one that is left to JAX."""
    joined: dict[int, Peer] = {}
    knocked: Peer | None = None
    deadline = time.monotonic() + seconds
    try:
        _listen(port).close()  # where it is taken, JAX would crash
        server = _listen(port + 1)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(f"ports {port} and {port + 1} must be free ({reason}); give another") from error
    with server:
        try:
            while missing := sorted(set(range(1, num_processes)) - set(joined)):
                server.settimeout(max(deadline - time.monotonic(), 0.01))
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    absent = [Peer(number, hosts[number] if hosts else "", server) for number in missing]
                    raise UserError(f"{_names(absent)} did not start in {seconds:.0f} s") from None
                knocked = Peer(0, "", connection)
                if _says_hello(knocked, num_processes):
                    _require_absent(knocked, joined, num_processes)
                    joined[knocked.process] = knocked
        except UserError as error:
            for peer in (*joined.values(), knocked):
                if peer:
                    peer.send(end=str(error))
            raise
    for peer in joined.values():
        peer.send(host=socket.gethostname())
    return list(joined.values())


def _listen(port: int) -> socket.socket:
    """On every address of this host, of both kinds where it has both."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _says_hello(peer: Peer, num_processes: int) -> bool:
    """Who knocked; False for what is no process of a run, since others may knock at a port."""
    peer.connection.settimeout(5)
    match peer.receive():
        case [{"process": int(process), "of": int(count), "host": str(host)}, *_]:
            peer.process, peer.host = process, host[:255]
            if count != num_processes:
                raise UserError(f"{peer.name} was started as one of {count} processes, process 0 of {num_processes}")
            keep_alive(peer.connection)
            return True
    peer.connection.close()
    return False


def _require_absent(peer: Peer, joined: dict[int, Peer], num_processes: int) -> None:
    """Refuses a number that is taken, unless whoever took it is gone and was started once more."""
    before = joined.get(peer.process)
    if 0 < peer.process < num_processes and (before is None or _is_gone(before)):
        return
    other = f", as {before.name} did" if before else ""
    raise UserError(f"{peer.name} joined{other}; number the processes 0 to {num_processes - 1}, each once")


def _is_gone(peer: Peer) -> bool:
    """Whether its connection ended; before all have joined it says nothing more."""
    peer.connection.settimeout(0)
    try:
        return peer.connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        peer.connection.settimeout(SEND_SECONDS)


def _join(host: str, port: int, num_processes: int, process: int, seconds: float) -> Peer:
    """The others: a connection to process 0, which may start later; returns when all have joined."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            connection = keep_alive(socket.create_connection((host, port + 1), timeout=5))
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(f"process 0 is not reached at {host}:{port + 1} ({error})") from error
            time.sleep(0.2)
    first = Peer(0, host, connection)
    first.send(process=process, of=num_processes, host=socket.gethostname())
    connection.settimeout(seconds + 30)
    match first.receive():
        case [{"host": str(name_of_first)}, *_]:
            first.host = name_of_first[:255]
        case [{"end": str(line)}, *_]:
            raise UserError(line)
        case _:
            raise UserError(f"{first.name} ended before all processes had joined; its own words say why")
    connection.settimeout(SEND_SECONDS)
    return first


def keep_alive(connection: socket.socket) -> socket.socket:
    """A machine that vanishes closes nothing; the system then gives up after 15 s.

    Probes are for a quiet connection. Both ends of these write every second, so that something is always on its way:
    then it is the time without an answer that ends it.
    """
    connection.settimeout(SEND_SECONDS)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    limits = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 2, "TCP_USER_TIMEOUT": 15_000}  # s, s, -, ms
    for option, value in limits.items():
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return connection


class Peers:
    """This process among the others: process 0 knows them all, the others know process 0."""

    def __init__(self, process: int, peers: Iterable[Peer], patience: Patience):
        """From here on the others are watched, and watch."""
        self.process, self.peers = process, {peer.process: peer for peer in peers}
        self.patience, self.beat = patience, min(1.0, patience.stuck / 5, patience.silent / 5)
        self.began = math.inf  # when this process reached its first mark; until then process 0 prepares, others wait
        self.reached_by_all, self.all_are_there = 0, threading.Condition()
        self.over, self.lock = threading.Event(), threading.Lock()
        self.poked, self.poke = socket.socketpair()
        self.this = Peer(process, socket.gethostname(), self.poked)
        for peer in self.peers.values():
            peer.heard = time.monotonic()
        threading.Thread(target=self._watch, daemon=True, name="peers").start()

    @property
    def name(self) -> str:
        """As in messages."""
        return self.this.name

    def reached(self, mark: str) -> None:
        """Notes what this process has reached; all processes pass the same marks in the same order."""
        if self.this.mark == 0:
            self.began = time.monotonic()
        self.this.reach(self.this.mark + 1, mark)

    def wait(self, mark: str) -> None:
        """Returns when all have reached this mark."""
        self.reached(mark)
        self.this.waits = True
        self.poke.send(b"!")
        with self.all_are_there:
            self.all_are_there.wait_for(lambda: self.reached_by_all >= self.this.mark)
        self.this.waits = False

    def finish(self) -> None:
        """The orderly end, after which a closed connection means nothing."""
        self.over.set()
        self._tell(bye=True)

    def fail(self, line: str) -> None:
        """Tells why this process is about to end."""
        self.over.set()
        if self.process:
            self._tell(failed=line)
        else:
            self._end_all(f"{self.name} ended: {line}")

    def _tell(self, **message: Any) -> None:
        with self.lock:
            for peer in list(self.peers.values()):
                peer.send(**message)

    def _watch(self) -> None:
        """Reads, beats and judges, until no connection is left; on a thread of its own."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.poked, selectors.EVENT_READ)
            for peer in self.peers.values():
                selector.register(peer.connection, selectors.EVENT_READ, peer)
            woke, spoke = time.monotonic(), 0.0
            while self.peers:
                for key, _ in selector.select(self.beat):
                    if key.data is None:
                        self.poked.recv(4096)
                        spoke = 0.0
                    elif (messages := key.data.receive()) is None:
                        selector.unregister(key.fileobj)
                        self._gone(key.data)
                    else:
                        for message in messages:
                            self._take(key.data, message)
                now = time.monotonic()
                if now - woke > self.patience.silent / 2:  # it was this process that slept
                    for peer in self.peers.values():
                        peer.heard = peer.moved = now
                    self.this.moved = now
                woke = now
                if self.process == 0:
                    self._release(min(peer.mark for peer in self._everyone()))
                if now - spoke >= self.beat:
                    spoke = now
                    self._tell(all=self.reached_by_all) if self.process == 0 else self._tell_mark()
                self._judge(now)

    def _everyone(self) -> list[Peer]:
        return [self.this, *self.peers.values()]

    def _tell_mark(self) -> None:
        self._tell(mark=self.this.mark, at=self.this.at, waits=self.this.waits)

    def _take(self, peer: Peer, message: dict[str, Any]) -> None:
        """One message."""
        match message:
            case {"mark": int(mark), "at": str(at), "waits": bool(waits)}:
                peer.waits = waits
                if mark != peer.mark:
                    peer.reach(mark, at)
            case {"all": int(mark)}:
                self._free(mark)
            case {"failed": str(line)}:
                peer.failed = line
            case {"end": str(line)} if not self.over.is_set():
                self._end(line)
            case {"bye": True}:
                self.peers.pop(peer.process, None)  # what follows is the end of the connection

    def _release(self, mark: int) -> None:
        """Process 0: those that wait for all, and are not waiting in vain, hear at once."""
        for peer in self.peers.values():
            if peer.waits and peer.mark <= mark:
                peer.waits = False
                with self.lock:
                    peer.send(all=mark)
        self._free(mark)

    def _free(self, mark: int) -> None:
        with self.all_are_there:
            self.reached_by_all = max(self.reached_by_all, mark)
            self.all_are_there.notify_all()

    def _gone(self, peer: Peer) -> None:
        """A connection ended; without a goodbye the process did."""
        if self.peers.pop(peer.process, None) and not self.over.is_set():
            self._end(f"{peer.name} ended: {peer.failed}" if peer.failed else f"{peer.name} ended; {AGAIN}")

    def _judge(self, now: float) -> None:
        """Ends the run where a process is silent or, once process 0 has reached a mark, some get no further."""
        if self.over.is_set():
            return
        silent = [peer for peer in self.peers.values() if now - peer.heard > self.patience.silent]
        if silent:
            verb = "does not answer" if len(silent) == 1 else "do not answer"
            self._end(f"{_names(silent)} {verb} for {self.patience.silent:,.0f} s; {AGAIN}")
        if self.process == 0:
            behind = min(peer.mark for peer in self._everyone())
            late = [peer for peer in self._everyone() if peer.mark == behind]
            if now - max(self.began, *(peer.moved for peer in late)) > self.patience.stuck:
                self._end(f"{self._stuck(late)}; {AGAIN}")

    def _stuck(self, late: list[Peer]) -> str:
        """What those furthest behind are called."""
        everyone = self._everyone()
        if len(late) == len(everyone):
            return f"no process got beyond {late[0].at} in {self.patience.stuck:,.0f} s"
        ahead = max(everyone, key=lambda peer: peer.mark)
        verb = "is" if len(late) == 1 else "are"
        return (
            f"{_names(late)} {verb} stuck at {late[0].at} for {self.patience.stuck:,.0f} s, others are at {ahead.at}"
        )

    def _end(self, line: str) -> NoReturn:
        """Says why on all processes, and ends this one; at an ordinary exit JAX would wait for the others."""
        if self.process == 0:
            self._end_all(line)
            line = f"\nlaunch.py: {line}"
        else:
            line = f"launch.py: {self.name} stops: {line}"
        os.write(2, f"{line}\n".encode())
        os._exit(2)

    def _end_all(self, line: str) -> None:
        """Process 0: the others end."""
        self._tell(end=line)
        for peer in list(self.peers.values()):
            with contextlib.suppress(OSError):
                peer.connection.shutdown(socket.SHUT_WR)
        time.sleep(0.2)  # a connection closed with words unread would lose those on their way


def _names(peers: list[Peer]) -> str:
    """At most four of them."""
    named = [peer.name for peer in sorted(peers, key=lambda peer: peer.process)]
    return ", ".join(named[:4]) + (f" and {len(named) - 4} more" if len(named) > 4 else "")


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
