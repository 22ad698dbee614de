"""Runs of commands side by side: what a run is, where it stands when its command has ended, and the pool that starts them."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from relax_rl.comparison.process import CommandProcess, exit_reason, last_line, last_row
from relax_rl.interruption import Interruption
from relax_rl.loggers import read_csv
from relax_rl.runs import RunFolder, write_json

__all__ = [
    "RESTARTS",
    "Pool",
    "Process",
    "ProcessLost",
    "Source",
    "Start",
    "Task",
    "Watcher",
    "has_ended",
    "local",
    "newest_step",
    "read_outcome",
]

RESTARTS = 2
"""How often a run goes on elsewhere because its node or its process there was lost."""

OUTCOME = "outcome.json"
"""How a run has ended; where it stands, the run needs no more work."""
WINDOW = 100
"""Episodes of a mean return that a run may stop at."""

_PATIENCE = 120.0
"""Seconds that commands get to save their runs before they are killed."""
_LOOK = 0.5
"""Seconds between two looks at how far a run has got."""
_STOPPED = {-signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT}
_CHECKPOINT = re.compile(r"step_(\d+)\.(safetensors|zip)")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A run of a command.

    Attributes:
        name: told of it when it fails, and the stem of its log.
        row: environment and contestant, under which it is shown.
        folder: that it alone writes to, from the comparison's folder.
        begin, resume: the command that begins it, and the one that goes on from a checkpoint in `folder`.
        total_steps: of a run; 0 for what has none.
        stop_at_return: mean return of 100 episodes that ends it.
        cpus, gpus: that it takes; 0 CPUs for all of a machine.
    """

    name: str
    row: tuple[str, str]
    folder: str
    begin: tuple[str, ...]
    resume: tuple[str, ...] = ()
    total_steps: int = 0
    stop_at_return: float | None = None
    cpus: int = 1
    gpus: int = 0

    def command(self, root: Path) -> tuple[str, ...]:
        """The one that brings it on from where it stands."""
        return self.resume if self.resume and newest_step(root / self.folder) is not None else self.begin


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


class Source(Protocol):
    """Where tasks come from."""

    def next(self) -> Task | None:
        """A task that can be started, or None while there is none; none is left when also nothing is being worked on."""

    def finished(self, task: Task, outcome: Mapping[str, Any]) -> None:
        """Called when a task has ended, in whatever way but an interruption."""


class Watcher(Protocol):
    """Sees how the work goes on."""

    def started(self, task: Task) -> None:
        """A task has been begun with."""

    def progress(self, task: Task, row: Mapping[str, float]) -> None:
        """The task has got as far as a row of `progress.csv` tells."""

    def ended(self, task: Task, outcome: Mapping[str, Any]) -> None:
        """The task has ended."""

    def warn(self, line: str) -> None:
        """Something has gone wrong that ends no task."""

    def refresh(self) -> None:
        """Called several times a second."""


def local(root: Path, held: int | None = None) -> Start:
    """Starts processes on this machine, each of which inherits the descriptor `held`."""
    return lambda task, log: CommandProcess(task.command(root), root, task.folder, log, held=held)


@dataclass
class _Running:
    task: Task
    process: Process
    started: float
    losses: int = 0
    looked: float = 0.0
    row: Mapping[str, float] = field(default_factory=dict)


class Pool:
    """Works on tasks side by side, the output of each in a log of its own.

    Args:
        num_workers: at most so many at a time.
        root: the comparison's folder; its `logs` must exist.
        start: starts a command; a process of this machine if left out.
    """

    def __init__(self, num_workers: int, root: Path, *, start: Start | None = None) -> None:
        self.num_workers, self._root = num_workers, root
        self._start: Start = local(root) if start is None else start
        self._running: list[_Running] = []
        self._stopping = False

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, source: Source, watcher: Watcher, interruption: Interruption) -> bool:
        """Work until the source is empty; returns False when interrupted, with every run saved.

        Raises:
            RelaxRLError: what the work depends on is gone.
        """
        while True:
            if interruption:
                self._stop()
            while not interruption and len(self._running) < self.num_workers and (task := source.next()) is not None:
                self._begin(task, watcher)
            if not self._running:
                return not interruption
            for running in tuple(self._running):
                self._look(running, source, watcher)
            watcher.refresh()
            time.sleep(0.05)

    def close(self) -> None:
        """Have every run saved, and end all commands."""
        self._stop()
        deadline = time.monotonic() + _PATIENCE
        for running in self._running:
            running.process.wait(max(0.1, deadline - time.monotonic()))
        self._running.clear()

    def log(self, task: Task) -> Path:
        """The file that a task's output goes to."""
        return self._root / "logs" / f"{task.name}.log"

    def _begin(self, task: Task, watcher: Watcher, losses: int = 0) -> None:
        if newest_step(self._root / task.folder) is None:  # nothing to go on from
            shutil.rmtree(self._root / task.folder, ignore_errors=True)
        process = self._start(task, self.log(task))
        self._running.append(_Running(task, process, time.monotonic(), losses))
        watcher.started(task)

    def _look(self, running: _Running, source: Source, watcher: Watcher) -> None:
        """See whether a command has ended, or else how far its run has got."""
        try:
            code = running.process.poll()
        except ProcessLost as loss:
            self._lost(running, str(loss), source, watcher)
            return
        task = running.task
        if code is not None:
            outcome = _outcome(task, self._root / task.folder, code, self.log(task))
            if outcome["status"] == "diverged":
                outcome["seconds"] = time.monotonic() - running.started
            if task.total_steps and outcome["status"] in ("finished", "diverged"):
                write_json(self._root / task.folder / OUTCOME, outcome)
            self._ended(running, outcome, source, watcher)
        elif time.monotonic() - running.looked >= _LOOK:
            running.looked = time.monotonic()
            row = running.process.progress()
            if row and row != running.row:
                running.row = row
                watcher.progress(task, row)

    def _lost(self, running: _Running, why: str, source: Source, watcher: Watcher) -> None:
        """Go on elsewhere with what is in the run's folder, unless everything ends or it has happened too often."""
        if self._stopping:
            self._ended(running, {"status": "interrupted"}, source, watcher)
        elif running.losses < RESTARTS:
            self._running.remove(running)
            watcher.warn(f"{running.task.name}: {why}; started again")
            self._begin(running.task, watcher, running.losses + 1)
        else:
            failure = {"status": "failed", "error": f"{why}; given up after {RESTARTS} restarts"}
            self._ended(running, failure, source, watcher)

    def _ended(self, running: _Running, outcome: Mapping[str, Any], source: Source, watcher: Watcher) -> None:
        self._running.remove(running)
        watcher.ended(running.task, outcome)
        if outcome["status"] != "interrupted":
            source.finished(running.task, outcome)
        elif not self._stopping:
            source.finished(running.task, {"status": "failed", "error": "stopped from outside"})

    def _stop(self) -> None:
        """Tell all commands, once, to save and to leave."""
        if not self._stopping:
            for running in self._running:
                running.process.stop()
        self._stopping = True


def newest_step(folder: Path) -> int | None:
    """The step of a run's newest checkpoint; None without one."""
    steps = [int(found[1]) for path in folder.glob("checkpoints/step_*") if (found := _CHECKPOINT.fullmatch(path.name))]
    return max(steps, default=None)


def has_ended(task: Task, root: Path) -> bool:
    """Whether a run needs no more work; one that was saved at its end gets its outcome, if nobody was there to write it."""
    folder = root / task.folder
    if read_outcome(folder) is None and _is_complete(task, folder):
        write_json(folder / OUTCOME, _finished(folder))
    return read_outcome(folder) is not None


def _is_complete(task: Task, folder: Path) -> bool:
    """Whether a run's newest checkpoint is of its end."""
    step, progress = newest_step(folder), RunFolder(folder).progress
    if step is None or not progress.exists():
        return False
    table = read_csv(progress)
    rows = [k for k, at in enumerate(table.get("step", [])) if at <= step]
    if step >= task.total_steps or not rows or task.stop_at_return is None:
        return bool(rows) and step >= task.total_steps
    mean, episodes = table["return_mean"][rows[-1]], table["episodes"][rows[-1]]
    target = float(f"{task.stop_at_return:.6g}")  # with the digits of the table
    return episodes >= WINDOW and mean >= target


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """How a run ended, or None if it has not."""
    try:
        outcome = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return outcome if isinstance(outcome, dict) else None


def _outcome(task: Task, folder: Path, code: int, log: Path) -> dict[str, Any]:
    """What has become of a run whose command has ended."""
    if code in _STOPPED:
        return {"status": "interrupted"}
    if code == 0:
        return _finished(folder)
    error = last_line(log, "error: ").removeprefix("error: ") if code == 2 else ""
    if "not finite" in error or "not a finite" in error:  # what TrainingDiverged says
        return {"status": "diverged", "error": error}
    why = f"{last_line(log)[:300]}, see {log}" if code == 1 else f"{exit_reason(code)}, see {log}"
    return {"status": "failed", "error": error or why}


def _finished(folder: Path) -> dict[str, Any]:
    """The outcome of a run that has come to its end."""
    row = last_row(RunFolder(folder).progress)
    counts = {name: int(row[column]) for name, column in (("steps", "step"), ("episodes", "episodes")) if column in row}
    means = {"return_mean": row["return_mean"]} if "return_mean" in row else {}
    return {"status": "finished", **counts, **means}
