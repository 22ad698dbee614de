"""Worker processes of asynchronous vector environments: how they live through signals, die, and are closed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import TracebackType
from typing import Any

from gymnasium import Env
from gymnasium.vector import AsyncVectorEnv, VectorEnv

from relax_rl.errors import RelaxRLError

__all__ = ["WorkerDeathReport", "close_vector_env", "shielded_from_signals"]

SECONDS_TO_DIE = 5.0
"""How long a terminated worker may take before it is killed."""


def shielded_from_signals() -> Callable[[Env[Any, Any]], Env[Any, Any]]:
    """A sub-environment wrapper that leaves the handling of signals to the process that calls this function.

    Ctrl-C reaches every process of the terminal: a worker that died of it would take down the run while the main
    process still wants to save a checkpoint. A handler of SIGTERM inherited by a forked worker would keep it alive.
    """
    main_process = os.getpid()

    def shield(env: Env[Any, Any]) -> Env[Any, Any]:
        if os.getpid() != main_process:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return env

    return shield


class WorkerDeathReport:
    """A context in which the broken pipe that a dead worker leaves behind becomes one line.

    Raises:
        RelaxRLError: if the other end of a pipe is gone.
    """

    def __init__(self, env_id: str) -> None:
        self._env_id = env_id

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, EOFError | ConnectionError):
            raise RelaxRLError(
                f"a worker process of {self._env_id} died (crashed, killed, or out of memory); "
                "use fewer environments, or vectorization 'sync' to see the crash itself"
            ) from error


def close_vector_env(env: VectorEnv[Any, Any, Any]) -> None:
    """Closes a vector environment, also one whose workers are dead or were interrupted in the middle of a call."""
    inner = env.unwrapped
    if not isinstance(inner, AsyncVectorEnv):
        env.close()
    elif not inner.closed:
        # A polite close waits for an answer from every worker, which an interrupted or dead one never gives.
        idle = inner._state.value == "default"
        if idle and all(process.is_alive() for process in inner.processes) and None not in inner.parent_pipes:
            env.close()
        else:
            _terminate(inner)


def _terminate(env: AsyncVectorEnv[Any, Any]) -> None:
    for process in env.processes:
        process.terminate()
    for process in env.processes:
        process.join(SECONDS_TO_DIE)
        if process.is_alive():
            process.kill()
            process.join()
    for pipe in env.parent_pipes:
        if pipe is not None:
            pipe.close()
    env.closed = True
