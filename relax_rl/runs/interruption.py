"""Ctrl-C, SIGTERM and a lost terminal as a request to leave at the next good moment."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interruption", "Leaving", "exit_code", "interruptible", "warn_script"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
_PATIENCE = 3.0
"""Seconds without an answer to a signal after which the user is told what is being waited for."""


def exit_code(stopped_by: str) -> int:
    """Of a process whose run was ended by what has this name: 128 and its number after a signal, else 0."""
    return next((128 + number for number in SIGNALS if number.name == stopped_by), 0)


def warn_script(name: str) -> None:
    """Warn whoever called `train` in a script that a signal of this name has ended the run alone."""
    line = f"{name} has ended this run and nothing else: the script goes on; let a loop end where train(...).interrupted holds"
    warnings.warn(line, UserWarning, stacklevel=3)


class Leaving(BaseException):
    """A signal has asked to leave what could not be asked about it; see `Interruption.at_once`."""


class Interruption:
    """Which signal has asked to leave, if any; asking whether one has shows that it is heard."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._heard = threading.Event()
        self._at_once = False

    def __bool__(self) -> bool:
        if self.signal is not None:
            self._heard.set()
        return self.signal is not None

    def note(self, number: int) -> None:
        """Take in a signal; where nobody hears of it for a while, say so."""
        self.signal = signal.Signals(number)
        threading.Thread(target=self._wait, args=(self.signal.name,), daemon=True).start()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block, which can be left anywhere, a signal that asks to leave raises Leaving."""
        if self:
            raise Leaving
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def leave(self) -> None:
        """Raises Leaving where that is wanted."""
        if self._at_once:
            self._heard.set()
            raise Leaving

    def _wait(self, name: str) -> None:
        if not self._heard.wait(_PATIENCE) and sys.stderr is not None:
            line = f"\n{name} received: waiting for the step at hand to end; once more leaves at once\n"
            os.write(2, line.encode())  # the main thread may be in the middle of a print


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Within the block, the first SIGINT, SIGTERM or SIGHUP is only noted; the second one kills the process at once.

    One that the process ignores, as under nohup, stays ignored. Outside the main thread, where Python lets nobody handle
    signals, nothing is noted.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def note(number: int, _: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        interruption.note(number)
        interruption.leave()

    taken = [each for each in SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, note) for each in taken}
    try:
        yield interruption
    finally:
        for each, handler in before.items():
            # One that was set from C cannot be put back from here.
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
