"""Ctrl-C and SIGTERM as a request to leave at the next good moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interruption", "exit_code", "interruptible"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def exit_code(stopped_by: str) -> int:
    """Of a process whose run was ended by what has this name: 130 or 143 after a signal, else 0."""
    return next((128 + number for number in SIGNALS if number.name == stopped_by), 0)


class Interruption:
    """Which signal has asked to leave, if any."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Within the block, the first SIGINT or SIGTERM is only noted; the second one kills the process at once.

    Outside the main thread, where Python lets nobody handle signals, nothing is noted. Nothing is printed either: a
    handler may run in the middle of another print.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def note(number: int, _: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        interruption.signal = signal.Signals(number)

    before = [signal.signal(each, note) for each in SIGNALS]
    try:
        yield interruption
    finally:
        for each, handler in zip(SIGNALS, before, strict=True):
            signal.signal(each, handler)
