"""How a comparison shows itself: a bar over the steps of all runs, and a line for every run that ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any

from relax_rl.comparison.task import Task
from relax_rl.runs.displays import Display, PlainDisplay, RichDisplay

__all__ = ["Progress"]


class Progress:
    """Shows how runs go on: live in a terminal, a line every half minute in a pipe or a log.

    Args:
        quiet: show nothing but what goes wrong, on `errors`.
        errors: standard error if left out.
        after: called with a run that has ended, in whatever way but an interruption, and its outcome.
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
        self._running: dict[str, Mapping[str, float]] = {}
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
        if not self._quiet:
            self._display = RichDisplay(str) if sys.stdout.isatty() else PlainDisplay(str, interval=30.0)
        self._display.begin(title, step=self._steps, total=self._steps + sum(task.total_steps for task in tasks))

    def row(self, task: Task, row: Mapping[str, float]) -> None:
        """A run has begun, or has got as far as a row of its `progress.csv` tells."""
        self._running[task.name] = row

    def refresh(self) -> None:
        """Show the present state, if it is time."""
        steps = self._steps + sum(int(row.get("step", 0)) for row in self._running.values())
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
            told = "no episode has finished" if mean != mean else f"mean return {mean:.1f}"
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
