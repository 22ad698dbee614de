"""Worker processes and the queue they take their tasks from."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import relax_rl
from relax_rl.interruption import Interruption

__all__ = ["Source", "Task", "Watcher", "WorkerPool"]

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_PATIENCE = 120.0
"""Seconds that workers get to save their runs before they are killed."""


@dataclass(frozen=True)
class Task:
    """Something for a worker to do.

    Attributes:
        name: told of it when it fails, and the stem of its log.
        row: environment and contestant, under which it is shown.
        total_steps: of a run; 0 for what has none.
        message: what the worker is told.
    """

    name: str
    row: tuple[str, str]
    total_steps: int
    message: Mapping[str, Any]


class Source(Protocol):
    """Where tasks come from."""

    def next(self) -> Task | None:
        """A task that can be started, or None while there is none; none is left when also nothing is being worked on."""

    def finished(self, task: Task, outcome: Mapping[str, Any]) -> None:
        """Called when a task has ended, in whatever way but an interruption."""


class Watcher(Protocol):
    """Sees how the work goes on."""

    def started(self, task: Task) -> None:
        """A worker has taken the task."""

    def progress(self, task: Task, message: Mapping[str, Any]) -> None:
        """The task has got further."""

    def ended(self, task: Task, outcome: Mapping[str, Any]) -> None:
        """The task has ended."""

    def refresh(self) -> None:
        """Called several times a second."""


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    task: Task | None = None
    log: Path | None = None
    stopping: bool = field(default=False)


class WorkerPool:
    """Processes that work on tasks side by side, each with one CPU thread, its output in one log per task.

    Args:
        num_workers: at most so many at a time; a process is started when there is something to do.
        log_folder: where the logs go; it must exist.
        held: a file descriptor that workers inherit: a lock on it is held until the last of them has left.
        command: that starts a worker.
    """

    def __init__(
        self,
        num_workers: int,
        log_folder: Path,
        *,
        held: int | None = None,
        command: Sequence[str] = (sys.executable, "-m", "relax_rl.comparison.worker"),
    ) -> None:
        self._num_workers, self._log_folder, self._held, self._command = num_workers, log_folder, held, command
        self._workers: list[_Worker] = []
        self._leaving: list[_Worker] = []
        self._events: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, source: Source, watcher: Watcher, interruption: Interruption) -> bool:
        """Work until the source is empty; returns False when interrupted, with every run saved."""
        while True:
            if not interruption:
                self._hand_out(source, watcher)
            elif self._interrupt():
                return False
            if not any(worker.task for worker in self._workers):
                return not interruption
            try:
                worker, message = self._events.get(timeout=0.2)
            except queue.Empty:
                pass
            else:
                self._handle(worker, message, source, watcher)
            watcher.refresh()

    def close(self) -> None:
        """End all workers: idle ones leave at the end of their input, others are told to save and to leave."""
        for worker in self._workers:
            if worker.task is not None and worker.process.poll() is None:
                worker.process.terminate()
        deadline = time.monotonic() + _PATIENCE
        for worker in (*self._workers, *self._leaving):
            if worker.task is None and worker.process.stdin is not None:
                worker.process.stdin.close()
            try:
                worker.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self._workers.clear()
        self._leaving.clear()

    def _hand_out(self, source: Source, watcher: Watcher) -> None:
        while True:
            idle = next((worker for worker in self._workers if worker.task is None), None)
            if idle is None and len(self._workers) >= self._num_workers:
                return
            task = source.next()
            if task is None:
                return
            worker = idle or self._start()
            worker.task, worker.log = task, self._log_folder / f"{task.name}.log"
            line = json.dumps({**task.message, "log": str(worker.log)}) + "\n"
            try:
                assert worker.process.stdin is not None
                worker.process.stdin.write(line.encode())
                worker.process.stdin.flush()
            except OSError:
                pass  # it has died; the end of its output says so
            watcher.started(task)

    def _start(self) -> _Worker:
        environment = {**os.environ, **dict.fromkeys(_THREADS, "1")}
        root = str(Path(relax_rl.__file__).resolve().parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
        process = subprocess.Popen(
            list(self._command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            # Ctrl-C reaches the whole foreground group of a terminal; workers are told by us, and once.
            start_new_session=True,
            pass_fds=() if self._held is None else (self._held,),
        )
        worker = _Worker(process)
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        self._workers.append(worker)
        return worker

    def _listen(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            self._events.put((worker, json.loads(line)))
        self._events.put((worker, None))

    def _handle(self, worker: _Worker, message: dict[str, Any] | None, source: Source, watcher: Watcher) -> None:
        task = worker.task
        if message is None:
            code = worker.process.wait()
            if worker in self._workers:
                self._workers.remove(worker)
            if task is None:
                return
            worker.task = None
            outcome: dict[str, Any] = {"status": "failed", "error": _death(code, worker.log)}
            if worker.stopping:
                outcome = {"status": "interrupted"}
        elif task is None:
            return
        elif message["event"] == "progress":
            watcher.progress(task, message)
            return
        else:
            worker.task, outcome = None, message["outcome"]
            if outcome["status"] == "interrupted":
                self._workers.remove(worker)  # it is leaving, and takes no further task
                self._leaving.append(worker)
        watcher.ended(task, outcome)
        if outcome["status"] != "interrupted":
            source.finished(task, outcome)
        elif not worker.stopping:  # somebody else has told the worker to leave
            source.finished(task, {"status": "failed", "error": "stopped from outside"})

    def _interrupt(self) -> bool:
        """Tell busy workers to save and leave; True once all have."""
        for worker in self._workers:
            if worker.task is not None and not worker.stopping:
                worker.stopping = True
                worker.process.terminate()
        return not any(worker.task for worker in self._workers)


def _death(code: int, log: Path | None) -> str:
    """Why a worker is gone, as far as it is known."""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with code {code}, see {log}"
