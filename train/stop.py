"""SIGTERM and Ctrl-C as a wish that the loop grants: it saves, then leaves."""

import os
import signal
from types import FrameType

from core.errors import Stopped


class StopSignals:
    """Inside the block, `received` is the first signal that asked to stop; a second Ctrl-C stops at once."""

    def __init__(self):
        self.received: signal.Signals | None = None

    def __enter__(self) -> "StopSignals":
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        # Not print: the handler may run inside a write to the same stream.
        os.write(2, f"\n{self.received.name}: saves after this step, then stops\n".encode())

    def raise_if_received(self) -> None:
        """After the save: ends the program with 128 + the signal's number, as shells expect."""
        if self.received is not None:
            raise Stopped(self.received)
