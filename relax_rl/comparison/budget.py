"""How long trials have been worked on, over all calls of the command."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from relax_rl.compute.serialization import write_json
from relax_rl.runs.record import object_in

__all__ = ["Budget"]

_EVERY = 5.0
"""Seconds from one look at the clock that is kept to the next: a `kill -9` loses no more."""


class Budget:
    """Minutes of work, kept in a file.

    Args:
        path: of the file.
        minutes: that there are; None for no limit, and then nothing is kept.
        clock: gives seconds.
    """

    def __init__(self, path: Path, minutes: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._limit, self._clock = path, math.inf if minutes is None else 60.0 * minutes, clock
        kept = object_in(path).get("seconds", 0.0) if minutes is not None else 0.0
        self.seconds = float(kept) if isinstance(kept, (int, float)) else 0.0
        self._last: float | None = None

    @property
    def spent(self) -> bool:
        """Whether nothing more is to be begun."""
        return self.seconds >= self._limit

    @contextmanager
    def working(self) -> Iterator[None]:
        """The time of the block counts."""
        self._last = self._clock()
        try:
            yield
        finally:
            self._add()
            self._last = None

    def look(self) -> None:
        """Keep the time so far, now and then; called again and again while the work goes on."""
        if self._last is not None and self._clock() - self._last >= _EVERY:
            self._add()

    def _add(self) -> None:
        assert self._last is not None
        now = self._clock()
        self.seconds += now - self._last
        self._last = now
        if self._limit < math.inf:
            write_json(self._path, {"seconds": self.seconds})
