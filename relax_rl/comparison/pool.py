"""Commands side by side: the pool that starts them, follows them and stops them, and how it shows them."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from relax_rl.comparison.process import CommandProcess
from relax_rl.comparison.task import Task, newest_step, outcome_of
from relax_rl.errors import SettingsError
from relax_rl.runs.displays import Display, describe_number, make_display
from relax_rl.runs.folder import RunFolder
from relax_rl.runs.interruption import Interruption

__all__ = ["RESTARTS", "Outcomes", "Pool", "Process", "ProcessLost", "Progress", "Start", "local"]

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


class Progress:
    """Shows how runs go on: live in a terminal, a line every half minute in a pipe or a log.

    Args:
        quiet: show nothing but what goes wrong, on `errors`.
        errors: standard error if left out.
        after: called with a run that has ended, in whatever way but an interruption, and its outcome.

    Attributes:
        at_looks: called again and again while runs go on.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        errors: IO[str] | None = None,
        after: Callable[[Task, Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._quiet, self._errors, self._after = quiet, errors or sys.stderr, after
        self._display: Display = Display()
        self.at_looks: Callable[[], object] = lambda: None
        self._running: dict[str, int] = {}
        self._steps = self._done = self._total = 0

    def begin(self, title: str, tasks: Iterable[Task], *, done: Iterable[Task] = ()) -> None:
        """Say what is starting.

        Args:
            title: in a line.
            tasks: the runs to come.
            done: runs that have ended before.
        """
        tasks, done = list(tasks), list(done)
        self._running.clear()
        self._done, self._total = len(done), len(done) + len(tasks)
        self._steps = sum(task.total_steps for task in done)
        self.end()
        self._display = make_display(str, quiet=self._quiet, interval=30.0)
        self._display.begin(title, step=self._steps, total=self._steps + sum(task.total_steps for task in tasks))

    def row(self, task: Task, row: Mapping[str, float]) -> None:
        """A run has begun, or has got as far as a row of its `progress.csv` tells."""
        self._running[task.name] = min(int(row.get("step", 0)), task.total_steps)  # the last update may lead beyond

    def refresh(self) -> None:
        """Show the present state, if it is time."""
        self.at_looks()
        steps = self._steps + sum(self._running.values())
        self._display.update(steps, f"{self._done} of {self._total} runs done, {len(self._running)} running")

    def ended(self, task: Task, outcome: Mapping[str, Any]) -> None:
        """A run has ended; failures are told."""
        self._running.pop(task.name, None)
        if outcome["status"] == "interrupted":
            return
        self._steps += task.total_steps
        self._done += 1
        if outcome["status"] != "finished":
            self.warn(f"{task.name}: {outcome['status']}: {outcome['error']}")
        elif "return_mean" in outcome:
            mean = outcome["return_mean"]
            told = "no episode has finished" if mean != mean else f"mean return {describe_number(mean)}"
            self.say(f"{task.name}: {told} after {outcome['steps']:,} steps, {self._done} of {self._total} runs done")
        if self._after is not None:
            self._after(task, outcome)

    def say(self, line: str) -> None:
        """Show a line of its own."""
        self._display.say(line)

    def warn(self, line: str) -> None:
        """Show a line about something that went wrong."""
        if self._quiet:
            print(line, file=self._errors, flush=True)
        else:
            self.say(line)

    def end(self) -> None:
        """Leave the terminal as it was."""
        self._display.end()
        self._display = Display()


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
            if interruption and not self._stopping:
                self._progress.say(f"stopping: what is at work ({len(self._running)}) is saved, the rest is not begun")
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
        folder = RunFolder(self._root / task.folder)
        if newest_step(folder.path) is None and folder.path.exists():  # nothing to go on from
            with suppress(SettingsError), folder.locked():  # unless somebody is at work in it, which the command tells
                shutil.rmtree(folder.path, ignore_errors=True)
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
