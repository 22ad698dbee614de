"""Worker processes of asynchronous vector environments: how they live through signals, die, and are closed.

And what is told of an environment that fails, in one of them or in this process.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import random
import signal
import threading
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from gymnasium import Env, Wrapper
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array

from relax_rl.errors import EnvironmentFault, add_note

__all__ = ["CannotFork", "EnvironmentReport", "close_vector_env", "shielded_from_signals"]

SECONDS_TO_DIE = 5.0
"""How long a polite close may take before workers are killed."""

_PR_SET_PDEATHSIG = 1
_DRIVERS = ("llvmpipe", "disk$", "gdrv")
"""In the names of Mesa's threads: of its rasteriser, its cache of shaders and its queue of calls."""
_COUNTED = ("env_num", "i", "env_idx")
"""What Gymnasium counts the environments of a batch by."""


class _OwnStreams(Wrapper[Any, Any, Any, Any]):
    """Seeds NumPy's and Python's global generators with the environment, for those that draw from them.

    Forked processes begin with the same state of both, and would draw the same numbers in every environment.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            np.random.seed(seed % 2**32)
            random.seed(seed)
        return super().reset(seed=seed, options=options)


class CannotFork(Exception):
    """An environment starts threads, as those that draw by OpenGL do: a forked process would wait for locks that they held."""


def shielded_from_signals(*, forked: bool) -> Callable[[Env[Any, Any]], Env[Any, Any]]:
    """A sub-environment wrapper for worker processes: signals are handled by the process that calls this function, and
    each worker has random streams of its own.

    Ctrl-C reaches every process of the terminal, and what stops a job often every process of its group: a worker that died
    of it would take down the run while the main process still wants to save a checkpoint. Workers leave with the main
    process, however that ends.

    Args:
        forked: whether workers are forks of this process. The one environment that is made here, before them, raises CannotFork
            then if drivers have threads by then.
    """
    main_process = os.getpid()
    # Linux ties its own way to the thread that starts the workers, and only the main one is sure to last.
    tied = threading.current_thread() is threading.main_thread()

    def shield(env: Env[Any, Any]) -> Env[Any, Any]:
        if os.getpid() != main_process:
            for each in ("SIGINT", "SIGTERM", "SIGHUP"):
                if hasattr(signal, each):
                    signal.signal(getattr(signal, each), signal.SIG_IGN)
            if tied and os.getppid() == main_process:
                with suppress(OSError, AttributeError):  # no Linux
                    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            else:  # another process has started this one, as Python 3.14 does by default
                threading.Thread(target=_leave_with, args=(multiprocessing.parent_process(),), daemon=True).start()
            env = _OwnStreams(env)
        elif forked and _has_threads_of_drivers():
            _Contained(env).close()
            raise CannotFork
        return _Contained(env)

    return shield


def _has_threads_of_drivers() -> bool:
    """Whether Mesa, which draws where there is no other driver of OpenGL, has threads in this process."""
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # it has just ended
            names.append(path.read_text())
    return any(driver in name for name in names for driver in _DRIVERS)


def _leave_with(main_process: Any) -> None:
    """End this process when another one has ended."""
    if main_process is not None:
        main_process.join()
        os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)


class _Contained(Wrapper[Any, Any, Any, Any]):
    """Raises what another process can be sent, which would wait for ever for anything else; closing it raises nothing."""

    def reset(self, **kwargs: Any) -> Any:
        try:
            return self.env.reset(**kwargs)
        except Exception as error:
            raise _sendable(error) from error

    def step(self, action: Any) -> Any:
        try:
            return self.env.step(action)
        except Exception as error:
            raise _sendable(error) from error

    def close(self) -> None:
        try:
            self.env.close()
        except (Exception, SystemExit) as error:
            warnings.warn(f"closing an environment failed: {error!r}", UserWarning, stacklevel=2)


def _sendable(error: Exception) -> Exception:
    """An error that survives Gymnasium's way to the main process: itself, or one with its name and words."""
    try:
        kind, value = pickle.loads(pickle.dumps((type(error), error)))
        kind(value)
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class EnvironmentReport:
    """A context in which an environment that leaves, or the broken pipe of a dead worker, becomes one line.

    Any other error gets a note of the environment that raised it.

    Args:
        env_id: its name.
        env: that is called in the block; None where it is being made.
        when: it is called, for messages.
        steps: how many steps each environment had taken in its episode before the block; -1 where it is reset there.

    Raises:
        EnvironmentFault: if an environment calls `sys.exit`, or the other end of a pipe is gone.
    """

    def __init__(
        self,
        env_id: str,
        env: VectorEnv[Any, Any, Any] | None,
        *,
        when: str = "",
        steps: Callable[[], np.ndarray] | None = None,
        first_env: int = 0,
    ) -> None:
        self._env_id, self._env, self._first_env = env_id, None if env is None else env.unwrapped, first_env
        self._when, self._steps = when, steps

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, EnvironmentFault):
            return
        which = None if self._env is None else _culprit(self._env, error)
        name = self._env_id if which is None else f"environment {self._first_env + which} of {self._env_id}"
        when = self._when and f" {self._when}"
        if self._steps is not None and which is not None:
            step = self._steps()[which] + 1
            when = f" in step {step} of its episode" if step else " at its reset"
        if isinstance(error, EOFError | ConnectionError) and _lost_a_worker(self._env):
            raise EnvironmentFault(
                f"a worker process of {self._env_id} died (crashed, killed, or out of memory), that of {name}{when}; "
                "use fewer environments, or vectorization 'sync' to see the crash itself"
            ) from error
        if isinstance(error, SystemExit):
            code = "" if error.code is None else repr(error.code)
            raise EnvironmentFault(f"{name} called sys.exit({code}){when}; mend the environment") from error
        if isinstance(error, Exception):
            add_note(error, f"raised by {name}{when}")


def _lost_a_worker(env: VectorEnv[Any, Any, Any] | None) -> bool:
    """Whether a broken pipe is that of a worker, rather than something of an environment's own; where one is being made,
    there is nobody to ask."""
    if env is None:
        return True
    if not isinstance(env, AsyncVectorEnv):
        return False
    return None not in env.parent_pipes


def _culprit(env: VectorEnv[Any, Any, Any], error: BaseException) -> int | None:
    """The environment that an error came from; None where nothing tells."""
    if isinstance(env, AsyncVectorEnv):
        pipes: list[Any] = env.parent_pipes
        if None in pipes:  # Gymnasium closes the pipe of one that raised
            return pipes.index(None)
        for index, process in enumerate(env.processes):
            process.join(0.1)
            if not process.is_alive():
                return index
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if isinstance(env, SyncVectorEnv) and any(frame.f_code.co_name == "concatenate" for frame in frames):
        space: Any = env.single_observation_space
        blank: Any = create_empty_array(space, 1)
        return _first(env._env_obs, lambda obs: concatenate(space, [obs], blank))
    seen = next((frame.f_locals for frame in reversed(frames) if frame.f_locals.get("self") is env), {})
    odd = _first(seen.get("rewards", ()), float)  # of workers, whose answers are put together
    return odd if odd is not None else next((seen[name] for name in _COUNTED if name in seen), None)


def _first(values: Any, need: Callable[[Any], object]) -> int | None:
    """The first of the values that something cannot be done with."""
    for index, value in enumerate(values):
        try:
            need(value)
        except Exception:
            return index
    return None


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
