"""How a comparison shows itself: a live table in a terminal, plain lines in a pipe or a log, nothing if quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from relax_rl.comparison.pool import Task

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

__all__ = ["Board", "LinesView", "Row", "SilentView", "TableView", "View", "make_view"]


@dataclass
class Row:
    """What is known of one contestant on one environment.

    Attributes:
        total, done, failed: numbers of runs.
        running: step of each run in progress.
        means: mean return of the last 100 episodes of each run, finished or in progress.
        speeds: steps per second of each run in progress.
        last_speed: of the run that was heard of last.
        steps_left: over all runs, those in progress included.
    """

    total: int = 0
    done: int = 0
    failed: int = 0
    running: dict[str, int] = field(default_factory=dict)
    means: dict[str, float] = field(default_factory=dict)
    speeds: dict[str, float] = field(default_factory=dict)
    last_speed: float | None = None
    steps_left: int = 0

    @property
    def mean_return(self) -> float | None:
        """Mean over its runs."""
        return sum(self.means.values()) / len(self.means) if self.means else None

    @property
    def steps_to_go(self) -> int:
        """Steps that have not been taken."""
        return max(0, self.steps_left - sum(self.running.values()))


class Board:
    """The rows, kept up to date by what the pool tells.

    Args:
        num_workers: that share the work left.
    """

    def __init__(self, num_workers: int) -> None:
        self.rows: dict[tuple[str, str], Row] = {}
        self._num_workers = num_workers

    def plan(self, rows: Iterable[tuple[tuple[str, str], int]]) -> None:
        """Begin anew with the runs to come, as (row, steps of a run) each."""
        self.rows.clear()
        for key, steps in rows:
            row = self.rows.setdefault(key, Row())
            row.total += 1
            row.steps_left += steps

    def started(self, task: Task) -> None:
        """A run has begun."""
        self.rows.setdefault(task.row, Row()).running[task.name] = 0

    def progress(self, task: Task, message: Mapping[str, Any]) -> None:
        """A run has got further."""
        row = self.rows[task.row]
        row.running[task.name] = message["step"]
        if message["return_mean"] is not None:
            row.means[task.name] = message["return_mean"]
        row.speeds[task.name] = row.last_speed = message["steps_per_second"]

    def ended(self, task: Task, outcome: Mapping[str, Any]) -> None:
        """A run has ended."""
        row = self.rows[task.row]
        row.running.pop(task.name, None)
        row.speeds.pop(task.name, None)
        if outcome["status"] == "interrupted":
            return
        row.steps_left = max(0, row.steps_left - task.total_steps)
        row.done += 1
        row.failed += outcome["status"] != "finished"
        mean = outcome.get("return_mean")
        if mean is not None and mean == mean:
            row.means[task.name] = mean

    def time_left(self, rows: Sequence[Row] | None = None) -> float | None:
        """Seconds until these rows (all, if left out) would be done if all workers worked on them.

        Rows of which no speed is known yet count with the mean time of a step of the others; None while all are such.
        """
        known = [1.0 / row.last_speed for row in self.rows.values() if row.last_speed]
        if not known:
            return None
        usual = sum(known) / len(known)
        seconds = 0.0
        for row in self.rows.values() if rows is None else rows:
            seconds += row.steps_to_go * (1.0 / row.last_speed if row.last_speed else usual)
        return seconds / self._num_workers


class View:
    """Shows a board, and lines besides. This one shows nothing."""

    def __init__(self, board: Board) -> None:
        self.board = board

    def begin(self, title: str) -> None:
        """Say what is starting."""

    def started(self, task: Task) -> None:
        """A run has begun."""
        self.board.started(task)

    def progress(self, task: Task, message: Mapping[str, Any]) -> None:
        """A run has got further."""
        self.board.progress(task, message)

    def ended(self, task: Task, outcome: Mapping[str, Any]) -> None:
        """A run has ended; failures are told."""
        self.board.ended(task, outcome)
        if outcome["status"] in ("failed", "diverged"):
            self.warn(f"{task.name}: {outcome['status']}: {outcome['error']}")

    def refresh(self) -> None:
        """Show the present state, if it is time."""

    def say(self, line: str) -> None:
        """Show a line of its own."""

    def warn(self, line: str) -> None:
        """Show a line about something that went wrong."""
        self.say(line)

    def end(self) -> None:
        """Leave the terminal as it was."""


class SilentView(View):
    """Shows nothing but what goes wrong, on standard error."""

    def warn(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class LinesView(View):
    """A line for every run that ends, and one every half minute for where all stands."""

    def __init__(self, board: Board, *, file: IO[str] | None = None, interval: float = 30.0) -> None:
        super().__init__(board)
        self._file, self._interval, self._time = file, interval, time.monotonic()

    def begin(self, title: str) -> None:
        self.say(title)

    def ended(self, task: Task, outcome: Mapping[str, Any]) -> None:
        super().ended(task, outcome)
        if outcome["status"] == "finished" and "steps" in outcome:
            row = self.board.rows[task.row]
            mean = outcome["return_mean"]
            told = "no episode has finished" if mean != mean else f"mean return {_number(mean)}"
            self.say(f"{task.name}: {told} after {outcome['steps']:,} steps, {row.done} of {row.total} runs done")

    def refresh(self) -> None:
        if time.monotonic() - self._time < self._interval:
            return
        self._time = time.monotonic()
        done = sum(row.done for row in self.board.rows.values())
        total = sum(row.total for row in self.board.rows.values())
        line, left = f"{done} of {total} runs done", self.board.time_left()
        if left is not None:
            speed = sum(sum(row.speeds.values()) for row in self.board.rows.values())
            line += f" | {speed:,.0f} steps/s | {_duration(left)} left"
        self.say(line)

    def say(self, line: str) -> None:
        print(line, file=self._file or sys.stdout, flush=True)


class TableView(View):
    """A live table: per environment and contestant the runs done, the running step, mean return, speed, time left."""

    def __init__(self, board: Board) -> None:
        super().__init__(board)
        self._live: Live | None = None
        self._title = ""
        self._time = 0.0

    def begin(self, title: str) -> None:
        from rich.live import Live

        self._title = title
        if self._live is None:
            # Drawn by hand: a refreshing thread would take its time slices from the workers.
            self._live = Live(self.table(), auto_refresh=False)
            self._live.start()

    def refresh(self) -> None:
        if self._live is not None and time.monotonic() - self._time >= 0.5:
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
        title = self._title if left is None else f"{self._title} · {_duration(left)} left"
        table = Table(title=title, title_justify="left")
        table.add_column("environment", no_wrap=True)
        table.add_column("contestant", no_wrap=True)
        for column in ("runs done", "running step", "mean return", "steps/s", "time left"):
            table.add_column(column, justify="right", no_wrap=True)
        previous = ""
        for (env, label), row in self.board.rows.items():
            if previous and env != previous:
                table.add_section()
            running = ", ".join(_short(step) for step in list(row.running.values())[:3])
            more = ", …" if len(row.running) > 3 else ""
            failed = f" ({row.failed} failed)" if row.failed else ""
            table.add_row(
                "" if env == previous else env,
                label,
                f"{row.done} of {row.total}{failed}",
                running + more,
                _number(row.mean_return),
                f"{sum(row.speeds.values()):,.0f}" if row.speeds else "",
                _duration(self.board.time_left([row])),
            )
            previous = env
        return table


def make_view(board: Board, *, quiet: bool = False) -> View:
    """The view that fits where standard output goes."""
    if quiet:
        return SilentView(board)
    return TableView(board) if sys.stdout.isatty() else LinesView(board)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _short(step: int) -> str:
    return f"{step / 1e6:.2f}M" if step >= 1e6 else f"{step / 1e3:.0f}k" if step >= 1e3 else str(step)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
