"""The machine beneath a process: cores, threads and locks."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import IO

from relax_rl.compute import distributed

__all__ = ["lock", "retire_threads", "set_threads", "single_precision", "usable_cores"]

_PAUSE_SOFT = 1


def usable_cores() -> int:
    """CPU cores that this process may use; those of a machine are shared among the workers that `torchrun` started on it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // distributed.local_count())


def set_threads(threads: int, stack: ExitStack) -> None:
    """CPU threads for tensor work; 0 takes all usable cores.

    Put back when `stack` is closed.
    """
    import torch

    stack.callback(torch.set_num_threads, torch.get_num_threads())
    torch.set_num_threads(threads or usable_cores())


@contextmanager
def single_precision() -> Iterator[None]:
    """Makes float32 torch's default, whatever a user has made it, until the end of the block."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def retire_threads() -> None:
    """End the OpenMP threads that wait for this thread's next parallel loop, which starts them anew.

    GNU's OpenMP lets a thread that has nothing to do spin for milliseconds, on a core that others may need in the
    meantime. Without OpenMP nothing happens.
    """
    pause = _function("omp_pause_resource_all")
    if pause is not None:
        pause(_PAUSE_SOFT)


def lock(file: IO[bytes]) -> bool:
    """Lock a file for this process and those that inherit it; False if others hold it, True where there are no such locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return True
    except OSError as error:  # some file systems of networks have none
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
    return True


@cache
def _function(name: str) -> Callable[..., int] | None:
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # no such function, or a system without a table of all of them
        return None
    return found
