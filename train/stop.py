"""SIGTERM and Ctrl-C as a wish that the loop grants: it saves, then leaves."""

import os
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils

from core.errors import Stopped


class Stop:
    """Inside the block, `asked` says whether a signal asked to stop; a second Ctrl-C stops at once.

    With several processes JAX itself takes the notice of SIGTERM and has all stop after the same step; a handler of
    ours would keep it from that (`jax.distributed`).
    """

    def __init__(self):
        self.received: signal.Signals | None = None

    def __enter__(self) -> "Stop":
        numbers = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else (signal.SIGINT,)
        self.before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def asked(self, step: int) -> bool:
        """True when the loop is to stop after `step`, the same in all processes."""
        if jax.process_count() == 1:
            return self.received is not None
        if multihost_utils.reached_preemption_sync_point(step):
            self.received = self.received or signal.SIGTERM
            return True
        return False

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        # Not print: the handler may run inside a write to the same stream.
        os.write(2, f"\n{self.received.name}: saves after this step, then stops\n".encode())
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # which JAX tells all processes

    def raise_if_asked(self) -> None:
        """After the save: ends the program with 128 + the signal's number, as shells expect."""
        if self.received is not None:
            raise Stopped(self.received)
