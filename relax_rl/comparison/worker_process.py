"""One worker process, as whoever starts it sees it: takes tasks, tells how they go, and can be asked to leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import relax_rl

__all__ = ["WorkerProcess", "local_workers", "own_environment", "send"]

Tell = Callable[[dict[str, Any]], None]
"""Takes a message of a worker: `{"event": "started" | "progress" | "done" | "gone", ...}`."""

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class WorkerProcess:
    """A process that works on one task at a time with one CPU thread.

    Args:
        tell: called from another thread with each message. The last one, `{"event": "gone", "error": why}`, comes when the
            process has ended.
        command: that starts it.
        held: a file descriptor that it inherits.
        folder: that it works in; the present one if left out.
    """

    def __init__(
        self,
        tell: Tell,
        *,
        command: Sequence[str] = (sys.executable, "-m", "relax_rl.comparison.worker"),
        held: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self._tell, self._log = tell, ""
        self.process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**own_environment(), **dict.fromkeys(_THREADS, "1")},
            cwd=folder,
            # Ctrl-C reaches the whole foreground group of a terminal; workers are told by us, and once.
            start_new_session=True,
            pass_fds=() if held is None else (held,),
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def give(self, message: Mapping[str, Any]) -> None:
        """Hand over a task; its `log` is the path of the file that its output goes to."""
        self._log = message["log"]
        self._tell({"event": "started"})
        send(self.process, message)

    def stop(self) -> None:
        """Ask it to save the run at hand and to leave."""
        if self.process.poll() is None:
            self.process.terminate()

    def dismiss(self) -> None:
        """Tell it that nothing more comes."""
        if self.process.stdin is not None:
            with suppress(OSError):  # it has died with something unread
                self.process.stdin.close()

    def wait(self, seconds: float) -> None:
        """Wait until it has left; after so long it is killed."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._tell(json.loads(line))
        code = self.process.wait()
        self._tell({"event": "gone", "error": _death(code, self._log), "killed": code < 0})


def local_workers(**options: Any) -> Callable[[Tell], WorkerProcess]:
    """What starts processes on this machine; options as of `WorkerProcess`."""
    return lambda tell: WorkerProcess(tell, **options)


def own_environment() -> dict[str, str]:
    """The environment variables of this process, with which another Python imports the same relax_rl."""
    root = str(Path(relax_rl.__file__).resolve().parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}


def send(process: subprocess.Popen[bytes], message: Mapping[str, Any]) -> None:
    """Hand a process a line of JSON; nothing happens if it has died, which the end of its output says."""
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(message).encode() + b"\n")
        process.stdin.flush()
    except OSError:
        pass


def _death(code: int, log: str) -> str:
    """Why a worker is gone, as far as it is known."""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with code {code}, see {log}"
