"""Workers and the queue they take their tasks from, wherever they work."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from relax_rl.comparison.worker_process import local_workers
from relax_rl.errors import RelaxRLError
from relax_rl.runs.interruption import Interruption

__all__ = ["Source", "Start", "Task", "Watcher", "Worker", "WorkerPool"]

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
        """A worker has begun with the task."""

    def progress(self, task: Task, message: Mapping[str, Any]) -> None:
        """The task has got further."""

    def ended(self, task: Task, outcome: Mapping[str, Any]) -> None:
        """The task has ended."""

    def warn(self, line: str) -> None:
        """Something has gone wrong that ends no task."""

    def refresh(self) -> None:
        """Called several times a second."""


class Worker(Protocol):
    """Works on one task at a time, and tells of it in messages.

    They are `{"event": "started"}`, `{"event": "progress", ...}`, `{"event": "warning", "line": ...}`,
    `{"event": "done", "outcome": ...}`, and, when it works no more, `{"event": "gone", "error": why}`; `{"event": "broken",
    "error": why}` means that no other worker works any more either.
    """

    def give(self, message: Mapping[str, Any]) -> None:
        """Hand over a task; its `log` is the path of the file that its output goes to."""

    def stop(self) -> None:
        """Ask it to save the run at hand and to leave."""

    def dismiss(self) -> None:
        """Tell it that nothing more comes."""

    def wait(self, seconds: float) -> None:
        """Wait until it has left; after so long it is ended by force."""


Start = Callable[[Callable[[dict[str, Any]], None]], Worker]
"""Starts a worker; its messages go to the function given, from any thread."""


class _Post:
    """A worker's place in the pool."""

    def __init__(self, start: Start, events: queue.Queue[tuple[_Post, dict[str, Any]]]) -> None:
        self.task: Task | None = None
        self.stopping = False
        self.worker = start(lambda message: events.put((self, message)))


class WorkerPool:
    """Workers on tasks side by side, the output of each task in a log of its own.

    Args:
        num_workers: at most so many at a time; one is started when there is something to do.
        log_folder: where the logs go; it must exist.
        start: starts a worker; processes on this machine if left out.
    """

    def __init__(self, num_workers: int, log_folder: Path, *, start: Start | None = None) -> None:
        self.num_workers, self._log_folder = num_workers, log_folder
        self._start: Start = local_workers() if start is None else start
        self._posts: list[_Post] = []
        self._leaving: list[_Post] = []
        self._events: queue.Queue[tuple[_Post, dict[str, Any]]] = queue.Queue()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, source: Source, watcher: Watcher, interruption: Interruption) -> bool:
        """Work until the source is empty; returns False when interrupted, with every run saved.

        Raises:
            RelaxRLError: what the workers depend on is gone.
        """
        while True:
            if not interruption:
                self._hand_out(source)
            elif self._interrupt():
                return False
            if not any(post.task for post in self._posts):
                return not interruption
            try:
                post, message = self._events.get(timeout=0.2)
            except queue.Empty:
                pass
            else:
                self._handle(post, message, source, watcher)
            watcher.refresh()

    def close(self) -> None:
        """End all workers: idle ones leave as nothing more comes, others are told to save and to leave."""
        everybody = [*self._posts, *self._leaving]
        for post in everybody:
            if post.task is None:
                post.worker.dismiss()
            else:
                post.worker.stop()
        deadline = time.monotonic() + _PATIENCE
        for post in everybody:
            post.worker.wait(max(0.1, deadline - time.monotonic()))
        self._posts.clear()
        self._leaving.clear()

    def _hand_out(self, source: Source) -> None:
        while True:
            idle = next((post for post in self._posts if post.task is None), None)
            if idle is None and len(self._posts) >= self.num_workers:
                return
            task = source.next()
            if task is None:
                return
            if idle is None:
                idle = _Post(self._start, self._events)
                self._posts.append(idle)
            idle.task = task
            idle.worker.give({**task.message, "log": str(self._log_folder / f"{task.name}.log")})

    def _handle(self, post: _Post, message: Mapping[str, Any], source: Source, watcher: Watcher) -> None:
        task, event = post.task, message["event"]
        if event == "broken":
            raise RelaxRLError(message["error"])
        if event == "gone" and post in self._posts:
            self._posts.remove(post)
        if task is None:
            return
        if event == "started":
            watcher.started(task)
        elif event == "progress":
            watcher.progress(task, message)
        elif event == "warning":
            watcher.warn(f"{task.name}: {message['line']}")
        else:
            self._ended(post, task, message, source, watcher)

    def _ended(self, post: _Post, task: Task, message: Mapping[str, Any], source: Source, watcher: Watcher) -> None:
        """A task is over, because it has been worked on or because its worker is gone."""
        post.task = None
        if message["event"] == "gone":
            gone = {"status": "failed", "error": message["error"]}
            outcome: Mapping[str, Any] = {"status": "interrupted"} if post.stopping else gone
        else:
            outcome = message["outcome"]
            if outcome["status"] == "interrupted":
                self._posts.remove(post)  # it is leaving, and takes no further task
                self._leaving.append(post)
        watcher.ended(task, outcome)
        if outcome["status"] != "interrupted":
            source.finished(task, outcome)
        elif not post.stopping:  # somebody else has told the worker to leave
            source.finished(task, {"status": "failed", "error": "stopped from outside"})

    def _interrupt(self) -> bool:
        """Tell busy workers to save and leave; True once all have."""
        for post in self._posts:
            if post.task is not None and not post.stopping:
                post.stopping = True
                post.worker.stop()
        return not any(post.task for post in self._posts)
