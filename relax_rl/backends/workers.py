"""Worker processes of asynchronous vector environments: how they live through signals, die, and are closed."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

import numpy as np
from gymnasium import Env, Wrapper
from gymnasium.vector import AsyncVectorEnv, VectorEnv

from relax_rl.errors import EnvironmentFault

__all__ = ["EnvironmentReport", "close_vector_env", "shielded_from_signals"]

SECONDS_TO_DIE = 5.0
"""How long a polite close may take before workers are killed."""

_PR_SET_PDEATHSIG = 1


class _OwnStreams(Wrapper[Any, Any, Any, Any]):
    """Seeds NumPy's and Python's global generators with the environment, for those that draw from them.

    Forked processes begin with the same state of both, and would draw the same numbers in every environment.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            np.random.seed(seed % 2**32)
            random.seed(seed)
        return super().reset(seed=seed, options=options)


def shielded_from_signals() -> Callable[[Env[Any, Any]], Env[Any, Any]]:
    """A sub-environment wrapper for worker processes: signals are handled by the process that calls this function, and
    each worker has random streams of its own.

    Ctrl-C reaches every process of the terminal, and what stops a job often every process of its group: a worker that died
    of it would take down the run while the main process still wants to save a checkpoint. Workers leave with the main
    process, however that ends.
    """
    main_process = os.getpid()
    # Linux ties this to the thread that starts the workers, and only the main one is sure to last.
    tied = threading.current_thread() is threading.main_thread()

    def shield(env: Env[Any, Any]) -> Env[Any, Any]:
        if os.getpid() != main_process:
            for each in ("SIGINT", "SIGTERM", "SIGHUP"):
                if hasattr(signal, each):
                    signal.signal(getattr(signal, each), signal.SIG_IGN)
            if tied:
                with suppress(OSError, AttributeError):  # no Linux
                    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            return _OwnStreams(env)
        return env

    return shield


class EnvironmentReport:
    """A context in which an environment that leaves, or the broken pipe of a dead worker, becomes one line.

    Raises:
        EnvironmentFault: if an environment calls `sys.exit`, or the other end of a pipe is gone.
    """

    def __init__(self, env_id: str, *, has_workers: bool) -> None:
        self._env_id, self._has_workers = env_id, has_workers

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._has_workers and isinstance(error, EOFError | ConnectionError):
            raise EnvironmentFault(
                f"a worker process of {self._env_id} died (crashed, killed, or out of memory); "
                "use fewer environments, or vectorization 'sync' to see the crash itself"
            ) from error
        if isinstance(error, SystemExit):
            code = "" if error.code is None else repr(error.code)
            raise EnvironmentFault(f"{self._env_id} called sys.exit({code}); mend the environment") from error


def close_vector_env(env: VectorEnv[Any, Any, Any]) -> None:
    """Closes a vector environment, also one whose workers are dead or were interrupted in the middle of a call.

    What goes wrong in it is only a warning: whoever closes has what they wanted.
    """
    inner = env.unwrapped
    if not isinstance(inner, AsyncVectorEnv):
        _close(env)
    elif not inner.closed:
        # A polite close waits for an answer from every worker, which an interrupted or dead one never gives.
        idle = inner._state.value == "default" and None not in inner.parent_pipes
        if idle and all(process.is_alive() for process in inner.processes):
            closing = threading.Thread(target=_close, args=(env,), daemon=True)
            closing.start()
            closing.join(SECONDS_TO_DIE)
        _kill(inner)


def _close(env: VectorEnv[Any, Any, Any]) -> None:
    try:
        env.close()
    except (Exception, SystemExit) as error:
        warnings.warn(f"closing the environments failed: {error!r}", UserWarning, stacklevel=3)


def _kill(env: AsyncVectorEnv[Any, Any]) -> None:
    for process in env.processes:
        if process.is_alive():
            process.kill()
            process.join()
    for pipe in env.parent_pipes:
        if pipe is not None:
            pipe.close()
    env.closed = True
