"""Clocks: which section of an update takes how long.

Code that is to be measured calls `watch(section)` when a section begins; it ends where the next one begins, so that
the sections add up to the whole. `unwatched` stands in where nobody measures.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

__all__ = ["Stopwatch", "Watch", "unwatched"]

Watch = Callable[[str], None]
"""Called with the name of the section that begins."""


def unwatched(section: str) -> None:
    """Measure nothing."""


class Stopwatch:
    """Adds up the time that each section takes.

    Args:
        synchronize: called before the clock is read, to wait for a GPU that works on its own.

    Attributes:
        seconds: by section, without the one that runs.
        tracing: whether sections are also marked in a trace of `torch.profiler`.
    """

    def __init__(self, synchronize: Callable[[], object] | None = None) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.tracing = False
        self._synchronize = synchronize
        self._section: str | None = None
        self._since = 0.0
        self._mark: Any = None

    def __call__(self, section: str | None) -> None:
        """Begin a section; None ends the last one and begins none."""
        if self._synchronize is not None:
            self._synchronize()
        now = time.perf_counter()
        if self._section is not None:
            self.seconds[self._section] += now - self._since
        if self._mark is not None:
            self._mark.__exit__(None, None, None)
            self._mark = None
        self._section, self._since = section, now
        if self.tracing and section is not None:
            from torch.profiler import record_function

            self._mark = record_function(section)
            self._mark.__enter__()

    def reset(self) -> None:
        """Forget the time so far."""
        self(self._section)
        self.seconds.clear()
