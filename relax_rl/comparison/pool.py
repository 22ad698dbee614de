"""Commands side by side: the pool that starts them, follows them and stops them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from relax_rl.comparison.process import CommandProcess
from relax_rl.comparison.progress import Progress
from relax_rl.comparison.task import Task, newest_step, outcome_of
from relax_rl.runs.interruption import Interruption

__all__ = ["RESTARTS", "Pool", "Process", "ProcessLost", "Start", "local"]

RESTARTS = 2
"""How often a run goes on elsewhere because its node or its process there was lost."""

_PATIENCE = 120.0
"""Seconds that commands get to save their runs before they are killed."""
_LOOK = 0.5
"""Seconds between two looks at how far a run has got."""


class ProcessLost(Exception):
    """What a process worked on is gone, by no fault of its own; the message says why."""


class Process(Protocol):
    """A command at work, here or elsewhere."""

    def poll(self) -> int | None:
        """The exit code, once the run's files are in its folder here; None while it works.

        Raises:
            ProcessLost: the run has to go on elsewhere.
            RelaxRLError: no other process works any more either.
        """

    def progress(self) -> Mapping[str, float]:
        """The last row of the run's `progress.csv`, by column; empty before the first one."""

    def stop(self) -> None:
        """Ask it to save its run and to leave."""

    def wait(self, seconds: float) -> int:
        """Wait until it has left; after so long it is killed."""


Start = Callable[[Task, Path], Process]
"""Starts the command of a task, with its output going to a file."""
Outcomes = dict[str, dict[str, Any]]
"""What has become of tasks, by their names."""


def local(root: Path, held: int | None = None) -> Start:
    """Starts processes on this machine, each of which inherits the descriptor `held`."""
    return lambda task, log: CommandProcess(task.command(root), root, task.folder, log, held=held)


@dataclass
class _Running:
    task: Task
    process: Process
    started: float
    losses: int
    looked: float = 0.0


class Pool:
    """Works on tasks side by side, the output of each in a log of its own.

    Args:
        num_workers: at most so many at a time.
        root: the comparison's folder; its `logs` must exist.
        progress: is told how the work goes on.
        start: starts a command; a process of this machine if left out.
    """

    def __init__(self, num_workers: int, root: Path, progress: Progress, *, start: Start | None = None) -> None:
        self.num_workers, self._root, self._progress = num_workers, root, progress
        self._start: Start = local(root) if start is None else start
        self._running: list[_Running] = []
        self._outcomes: Outcomes = {}
        self._stopping = False

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        """Have every run saved, and end all commands."""
        self._stop()
        deadline = time.monotonic() + _PATIENCE
        for running in self._running:
            running.process.wait(max(0.1, deadline - time.monotonic()))

    def run(self, tasks: Iterable[Task], interruption: Interruption) -> Outcomes | None:
        """Work on tasks in their order; returns what has become of them, or None if interrupted, with every run saved.

        Raises:
            RelaxRLError: what the work depends on is gone.
        """
        left, self._outcomes = iter(tasks), {}
        while True:
            if interruption:
                self._stop()
            while not self._stopping and len(self._running) < self.num_workers and (task := next(left, None)):
                self._begin(task)
            if not self._running:
                return None if self._stopping else self._outcomes
            for running in tuple(self._running):
                self._look(running)
            self._progress.refresh()
            time.sleep(0.05)

    def _begin(self, task: Task, losses: int = 0) -> None:
        if newest_step(self._root / task.folder) is None:  # nothing to go on from
            shutil.rmtree(self._root / task.folder, ignore_errors=True)
        process = self._start(task, self._log(task))
        self._running.append(_Running(task, process, time.monotonic(), losses))
        self._progress.row(task, {})

    def _look(self, running: _Running) -> None:
        """See whether a command has ended, or else how far its run has got."""
        task, now = running.task, time.monotonic()
        try:
            code = running.process.poll()
        except ProcessLost as loss:
            self._lost(running, str(loss))
            return
        if code is not None:
            self._ended(running, outcome_of(task, self._root, code, self._log(task), now - running.started))
        elif now - running.looked >= _LOOK:
            running.looked = now
            self._progress.row(task, running.process.progress())

    def _lost(self, running: _Running, why: str) -> None:
        """Go on elsewhere with what is in the run's folder, unless everything ends or it has happened too often."""
        if self._stopping:
            self._ended(running, {"status": "interrupted"})
        elif running.losses < RESTARTS:
            self._running.remove(running)
            self._progress.warn(f"{running.task.name}: {why}; started again")
            self._begin(running.task, running.losses + 1)
        else:
            self._ended(running, {"status": "failed", "error": f"{why}; given up after {RESTARTS} restarts"})

    def _ended(self, running: _Running, outcome: dict[str, Any]) -> None:
        self._running.remove(running)
        if outcome["status"] == "interrupted" and not self._stopping:
            outcome = {"status": "failed", "error": "stopped from outside"}
        self._outcomes[running.task.name] = outcome
        self._progress.ended(running.task, outcome)

    def _stop(self) -> None:
        """Tell all commands, once, to save and to leave."""
        if not self._stopping:
            for running in self._running:
                running.process.stop()
        self._stopping = True

    def _log(self, task: Task) -> Path:
        return self._root / "logs" / f"{task.name}.log"
