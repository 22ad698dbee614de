"""How a comparison shows itself: a live table in a terminal, plain lines in a pipe or a log, failures alone if quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from relax_rl.comparison.pool import Task
from relax_rl.displays import describe_duration

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

__all__ = ["Board", "Row", "TableView", "View", "make_view"]


@dataclass
class Row:
    """What is known of one contestant on one environment.

    Attributes:
        total, done, failed: numbers of runs.
        running: the last row of `progress.csv` of each run in progress; empty before its first one.
        means: mean return of the last 100 episodes of each run, finished or in progress.
        speed: steps per second of the run that was heard of last.
        steps_left: over all runs, those in progress included.
    """

    total: int = 0
    done: int = 0
    failed: int = 0
    running: dict[str, Mapping[str, float]] = field(default_factory=dict)
    means: dict[str, float] = field(default_factory=dict)
    speed: float | None = None
    steps_left: int = 0

    @property
    def mean_return(self) -> float | None:
        """Mean over its runs."""
        return sum(self.means.values()) / len(self.means) if self.means else None

    @property
    def speeds(self) -> list[float]:
        """Steps per second of the runs in progress."""
        return [row["steps_per_second"] for row in self.running.values() if "steps_per_second" in row]

    @property
    def steps_to_go(self) -> float:
        """Steps that have not been taken."""
        return max(0.0, self.steps_left - sum(row.get("step", 0.0) for row in self.running.values()))


class Board:
    """The rows, kept up to date by what the pool tells.

    Args:
        num_workers: that share the work left.
    """

    def __init__(self, num_workers: int) -> None:
        self.rows: dict[tuple[str, str], Row] = {}
        self._num_workers = num_workers

    def plan(self, rows: Iterable[tuple[tuple[str, str], int, int]]) -> None:
        """Begin anew with the runs to come, as (row, steps of a run, number of runs) each."""
        self.rows.clear()
        for key, steps, count in rows:
            row = self.rows.setdefault(key, Row())
            row.total += count
            row.steps_left += count * steps

    def progress(self, task: Task, found: Mapping[str, float]) -> None:
        """A run has begun, or has got as far as a row of `progress.csv` tells."""
        row = self.rows.setdefault(task.row, Row())
        row.running[task.name] = found
        row.speed = found.get("steps_per_second", row.speed)
        self._mean(row, task, found.get("return_mean"))

    def ended(self, task: Task, outcome: Mapping[str, Any]) -> None:
        """A run has ended."""
        row = self.rows[task.row]
        row.running.pop(task.name, None)
        if outcome["status"] == "interrupted":
            return
        row.steps_left = max(0, row.steps_left - task.total_steps)
        row.done += 1
        row.failed += outcome["status"] != "finished"
        self._mean(row, task, outcome.get("return_mean"))

    def time_left(self, rows: Sequence[Row] | None = None) -> float | None:
        """Seconds until these rows (all, if left out) would be done if all workers worked on them.

        Rows of which no speed is known yet count with the mean time of a step of the others; None while all are such.
        """
        known = [1.0 / row.speed for row in self.rows.values() if row.speed]
        if not known:
            return None
        usual = sum(known) / len(known)
        wanted = self.rows.values() if rows is None else rows
        seconds = sum(row.steps_to_go * (1.0 / row.speed if row.speed else usual) for row in wanted)
        return seconds / self._num_workers

    @staticmethod
    def _mean(row: Row, task: Task, mean: float | None) -> None:
        if mean is not None and mean == mean:
            row.means[task.name] = mean


class View:
    """A line for every run that ends, and one every half minute for where all stands.

    Args:
        board: kept up to date.
        file: where lines go; None shows nothing but what goes wrong.
        errors: where lines about that go, if not to `file`.
        interval: seconds between two lines about where all stands.
    """

    def __init__(
        self, board: Board, file: IO[str] | None, *, errors: IO[str] | None = None, interval: float = 30.0
    ) -> None:
        self.board, self._file, self._errors = board, file, errors
        self._interval, self._time = interval, time.monotonic()

    def begin(self, title: str) -> None:
        """Say what is starting."""
        self.say(title)

    def started(self, task: Task) -> None:
        """A run has begun."""
        self.board.progress(task, {})

    def progress(self, task: Task, row: Mapping[str, float]) -> None:
        """A run has got further."""
        self.board.progress(task, row)

    def ended(self, task: Task, outcome: Mapping[str, Any]) -> None:
        """A run has ended; failures are told."""
        self.board.ended(task, outcome)
        if outcome["status"] in ("failed", "diverged"):
            self.warn(f"{task.name}: {outcome['status']}: {outcome['error']}")
        elif outcome["status"] == "finished" and "return_mean" in outcome:
            self._finished(task, outcome)

    def refresh(self) -> None:
        """Show the present state, if it is time."""
        if time.monotonic() - self._time < self._interval:
            return
        self._time = time.monotonic()
        rows = self.board.rows.values()
        line = f"{sum(row.done for row in rows)} of {sum(row.total for row in rows)} runs done"
        left = self.board.time_left()
        if left is not None:
            line += f" | {sum(sum(row.speeds) for row in rows):,.0f} steps/s | {describe_duration(left)} left"
        self.say(line)

    def say(self, line: str) -> None:
        """Show a line of its own."""
        if self._file is not None:
            print(line, file=self._file, flush=True)

    def warn(self, line: str) -> None:
        """Show a line about something that went wrong."""
        if self._errors is None:
            self.say(line)
        else:
            print(line, file=self._errors, flush=True)

    def end(self) -> None:
        """Leave the terminal as it was."""

    def _finished(self, task: Task, outcome: Mapping[str, Any]) -> None:
        row, mean = self.board.rows[task.row], outcome["return_mean"]
        told = "no episode has finished" if mean != mean else f"mean return {_number(mean)}"
        self.say(f"{task.name}: {told} after {outcome['steps']:,} steps, {row.done} of {row.total} runs done")


class TableView(View):
    """A live table: per environment and contestant the runs done, the running step, mean return, speed, time left."""

    def __init__(self, board: Board) -> None:
        super().__init__(board, None, interval=0.5)
        self._live: Live | None = None
        self._title = ""

    def begin(self, title: str) -> None:
        from rich.live import Live

        self._title = title
        if self._live is None:
            # Drawn by hand: a refreshing thread would take its time slices from the runs.
            self._live = Live(self.table(), auto_refresh=False)
            self._live.start()

    def refresh(self) -> None:
        if self._live is not None and time.monotonic() - self._time >= self._interval:
            self._time = time.monotonic()
            self._live.update(self.table(), refresh=True)

    def say(self, line: str) -> None:
        if self._live is None:
            print(line, flush=True)
        else:
            self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def end(self) -> None:
        if self._live is not None:
            self._live.update(self.table(), refresh=True)
            self._live.stop()
            self._live = None

    def table(self) -> Table:
        """The present state."""
        from rich.table import Table

        left = self.board.time_left()
        title = self._title if left is None else f"{self._title} · {describe_duration(left)} left"
        table = Table(title=title, title_justify="left")
        table.add_column("environment", no_wrap=True)
        table.add_column("contestant", no_wrap=True)
        for column in ("runs done", "running step", "mean return", "steps/s", "time left"):
            table.add_column(column, justify="right", no_wrap=True)
        previous = ""
        for (env, label), row in self.board.rows.items():
            if previous and env != previous:
                table.add_section()
            running = [_short(found.get("step", 0)) for found in row.running.values()]
            table.add_row(
                "" if env == previous else env,
                label,
                f"{row.done} of {row.total}" + (f" ({row.failed} failed)" if row.failed else ""),
                ", ".join(running[:3]) + (", …" if len(running) > 3 else ""),
                _number(row.mean_return),
                f"{sum(row.speeds):,.0f}" if row.speeds else "",
                describe_duration(self.board.time_left([row])),
            )
            previous = env
        return table

    def _finished(self, task: Task, outcome: Mapping[str, Any]) -> None:
        """The table tells of it."""


def make_view(board: Board, *, quiet: bool = False, errors: IO[str] | None = None) -> View:
    """The view that fits where standard output goes; if quiet, failures alone go to `errors`."""
    if quiet:
        return View(board, None, errors=errors or sys.stderr)
    return TableView(board) if sys.stdout.isatty() else View(board, sys.stdout)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _short(step: float) -> str:
    return f"{step / 1e6:.2f}M" if step >= 1e6 else f"{step / 1e3:.0f}k" if step >= 1e3 else f"{step:.0f}"
