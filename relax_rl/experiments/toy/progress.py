"""How the toy problem shows itself: a bar for every estimator in a terminal, a line now and then in a pipe."""

from __future__ import annotations

import sys
import time
from typing import IO, TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

__all__ = ["BarProgress", "LineProgress", "Progress", "Silence", "make_progress"]


class Progress(Protocol):
    """Shows how one estimator after another is trained."""

    def begin(self, name: str, steps: int) -> None:
        """The next estimator starts."""

    def step(self, step: int, theta: float) -> None:
        """It has taken that many steps."""

    def say(self, line: str) -> None:
        """Show a line of its own."""

    def end(self) -> None:
        """Leave the terminal as it was."""


class Silence:
    """Shows nothing."""

    def begin(self, name: str, steps: int) -> None:
        """Show nothing."""

    def step(self, step: int, theta: float) -> None:
        """Show nothing."""

    def say(self, line: str) -> None:
        """Show nothing."""

    def end(self) -> None:
        """Show nothing."""


class LineProgress:
    """A line every few seconds."""

    def __init__(self, *, file: IO[str] | None = None, interval: float = 5.0) -> None:
        self._file, self._interval = file or sys.stdout, interval
        self._name, self._steps, self._said = "", 0, time.perf_counter()

    def begin(self, name: str, steps: int) -> None:
        self._name, self._steps, self._said = name, steps, time.perf_counter()

    def step(self, step: int, theta: float) -> None:
        if time.perf_counter() - self._said >= self._interval:
            self.say(f"{self._name}: step {step:,} of {self._steps:,} | mean theta {theta:.3f}")

    def say(self, line: str) -> None:
        print(line, file=self._file, flush=True)
        self._said = time.perf_counter()

    def end(self) -> None:
        """Nothing is pending: every line went out whole."""


class BarProgress:
    """A live bar for every estimator."""

    def __init__(self, *, refresh: float = 0.1) -> None:
        self._refresh, self._shown = refresh, 0.0
        self._bars: Bars | None = None
        self._task: TaskID | None = None

    def begin(self, name: str, steps: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        if self._bars is None:
            # Refreshed by hand: a refreshing thread would take its time slices from training.
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("step {task.completed:,} of {task.total:,}"),
                TextColumn("mean theta {task.fields[theta]}"),
                TimeRemainingColumn(),
                auto_refresh=False,
            )
            self._bars.start()
        self._task = self._bars.add_task(name, total=steps, theta="?")

    def step(self, step: int, theta: float) -> None:
        if self._bars is None or self._task is None:
            return
        done = step == self._bars.tasks[-1].total
        if done or time.perf_counter() - self._shown >= self._refresh:
            self._shown = time.perf_counter()
            self._bars.update(self._task, completed=step, theta=f"{theta:.3f}", refresh=True)

    def say(self, line: str) -> None:
        if self._bars is None:
            print(line, flush=True)
        else:
            self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def end(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def make_progress(*, quiet: bool) -> Progress:
    """What fits where standard output goes."""
    if quiet:
        return Silence()
    return BarProgress() if sys.stdout.isatty() else LineProgress()
