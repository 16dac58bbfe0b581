"""Progress with time left: one rewritten line on a terminal, a line every few seconds elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

T = TypeVar("T")

REWRITE_SECONDS = 0.1  # on a terminal
LINE_SECONDS = 10.0  # in a log file

_silent = False


def silence() -> None:
    """From here on nothing is said: another process tells how the work goes. Errors are told elsewhere."""
    global _silent
    _silent = True


def duration(seconds: float) -> str:
    """1:05 or 2:03:45."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def count(number: float) -> str:
    """12,345 as 12.3k, 4,720,000 as 4.72M."""
    for scale, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= scale:
            return f"{number / scale:.3g}{unit}"
    return f"{number:.3g}"


def quantity(number: float, unit: str = "B") -> str:
    """10,400,000 bytes as 10.4 MB; with the unit FLOP as 10.4 MFLOP."""
    for power, prefix in zip(range(21, 0, -3), "ZEPTGMk"):
        if number >= 10**power:
            return f"{number / 10**power:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}" if number else "0"


class Progress:
    """A bar over `total` units of work, from `start` on; the rate counts only what this process did.

    Writes to standard error, so that standard output can be piped.
    """

    def __init__(self, label: str, total: int, *, start: int = 0, stream: TextIO | None = None):
        self.label, self.total, self.start, self.done = label, total, start, start
        self.stream = stream if stream is not None else sys.stderr
        self.terminal = self.stream.isatty()
        self.began = time.monotonic()
        self.shown = self.began if not self.terminal else 0.0
        self.width, self.note = 0, ""

    def update(self, done: int, note: str | None = None) -> None:
        """Shows `done` of the total, with a note such as the loss or else the last one, when it is time to."""
        self.done, self.note = done, self.note if note is None else note
        now = time.monotonic()
        if now - self.shown >= (REWRITE_SECONDS if self.terminal else LINE_SECONDS):
            self.shown = now
            self._write(self._line(now, self.note))

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the items and counts them."""
        try:
            for index, item in enumerate(items, self.start):
                yield item
                self.update(index + 1)
        except BaseException:
            self.interrupt()
            raise

    def rate(self, number: float) -> float:
        """So much in a second since the beginning."""
        return number / max(time.monotonic() - self.began, 1e-3)

    def finish(self, note: str = "") -> None:
        """The last line, which stays."""
        seconds = duration(time.monotonic() - self.began)
        self._write(f"{self.label}: {note or self.done} in {seconds}", last=True)

    def interrupt(self) -> None:
        """Ends the rewritten line so that a message can follow."""
        if self.terminal and self.width:
            self.stream.write("\n")
            self.width = 0

    def _line(self, now: float, note: str) -> str:
        fraction = self.done / self.total if self.total else 1.0
        worked = self.done - self.start
        left = (self.total - self.done) * (now - self.began) / worked if worked else None
        filled = int(fraction * 20)
        bar = "█" * filled + "░" * (20 - filled)
        time_left = f"{duration(left)} left" if left is not None else "starting"
        parts = [f"{self.label} {bar} {self.done:,}/{self.total:,}", note, time_left]
        return " · ".join(part for part in parts if part)

    def _write(self, line: str, last: bool = False) -> None:
        if _silent:
            return
        if self.terminal:
            self.stream.write("\r" + line.ljust(self.width) + ("\n" if last else ""))
            self.width = 0 if last else len(line)
        else:
            self.stream.write(line + "\n")
        self.stream.flush()


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Yields the items under a progress bar that counts them."""
    bar = Progress(label, total)
    yield from bar.over(items)
    bar.finish(f"{bar.done:,}")


class _Said(logging.Handler):
    """What a room logs, as lines for the person watching."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def say_log(name: str) -> None:
    """From here on, what the logger of this name is told appears as lines, once."""
    logger = logging.getLogger(name)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # some libraries give the root logger a handler of their own
    logger.handlers = [_Said()]


def say(message: str) -> None:
    """One line for the person watching, on standard error."""
    if not _silent:
        print(message, file=sys.stderr, flush=True)  # noqa: T201
