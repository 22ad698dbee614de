"""What the C libraries beneath a process can be asked for: threads that step aside."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

__all__ = ["retire_threads"]

_PAUSE_SOFT = 1


def retire_threads() -> None:
    """End the OpenMP threads that wait for this thread's next parallel loop, which starts them anew.

    GNU's OpenMP lets a thread that has nothing to do spin for milliseconds, on a core that others may need in the
    meantime. Without OpenMP nothing happens.
    """
    pause = _function("omp_pause_resource_all")
    if pause is not None:
        pause(_PAUSE_SOFT)


@cache
def _function(name: str) -> Callable[..., int] | None:
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # no such function, or a system without a table of all of them
        return None
    return found
