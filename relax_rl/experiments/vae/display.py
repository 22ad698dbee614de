"""How a VAE run shows itself: a live line in a terminal, plain lines in a pipe or a log, nothing if quiet."""

from __future__ import annotations

import math
import sys
import time
from typing import IO, TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["BarDisplay", "Display", "LineDisplay", "SilentDisplay", "describe_bounds", "make_display"]


class Display(Protocol):
    """Shows how a run goes on."""

    def begin(self, line: str, *, step: int, total: int) -> None:
        """Say what is starting: at `step` of `total`."""

    def update(self, step: int, bounds: str) -> None:
        """Called now and then, with the newest bounds."""

    def say(self, line: str) -> None:
        """Show a line of its own."""

    def end(self) -> None:
        """Leave the terminal as it was."""


class SilentDisplay:
    """Shows nothing."""

    def begin(self, line: str, *, step: int, total: int) -> None:
        """Show nothing."""

    def update(self, step: int, bounds: str) -> None:
        """Show nothing."""

    def say(self, line: str) -> None:
        """Show nothing."""

    def end(self) -> None:
        """Show nothing."""


class LineDisplay:
    """A line every few seconds, for logs and pipes."""

    def __init__(self, *, file: IO[str] | None = None, interval: float = 5.0) -> None:
        self._file, self._interval = file or sys.stdout, interval
        self._total = self._step = 0
        self._time = 0.0

    def begin(self, line: str, *, step: int, total: int) -> None:
        self._total, self._step, self._time = total, step, time.perf_counter()
        self.say(line)

    def update(self, step: int, bounds: str) -> None:
        now = time.perf_counter()
        if now - self._time < self._interval:
            return
        speed = (step - self._step) / (now - self._time)
        self._step, self._time = step, now
        left = _duration((self._total - step) / speed) if speed > 0 else "?"
        self.say(f"step {step:,} of {self._total:,} | {bounds} | {speed:,.0f} steps/s | {left} left")

    def say(self, line: str) -> None:
        print(line, file=self._file, flush=True)

    def end(self) -> None:
        """Nothing is pending: every line went out whole."""


class BarDisplay:
    """A live line with a bar: steps, bounds, speed, time left."""

    def __init__(self, *, refresh: float = 0.25) -> None:
        self._refresh, self._time = refresh, 0.0
        self._step, self._bounds = 0, ""
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def begin(self, line: str, *, step: int, total: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        # Refreshed by hand: a refreshing thread would take its time slices from training.
        self._progress = Progress(
            TextColumn("step {task.completed:,} of {task.total:,}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[bounds]}"),
            TextColumn("{task.fields[speed]} steps/s"),
            TimeRemainingColumn(),
            TextColumn("left"),
            auto_refresh=False,
        )
        self.say(line)
        self._step = step
        self._task = self._progress.add_task("", total=total, completed=step, bounds="no bound yet", speed="?")
        self._progress.start()

    def update(self, step: int, bounds: str) -> None:
        self._step, self._bounds = step, bounds
        now = time.perf_counter()
        if now - self._time >= self._refresh:
            self._time = now
            self._show()

    def say(self, line: str) -> None:
        if self._progress is None:  # nothing has begun yet
            print(line, flush=True)
        else:
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def end(self) -> None:
        if self._progress is not None:
            self._show()
            self._progress.stop()
            self._progress = None

    def _show(self) -> None:
        if self._progress is None or self._task is None:
            return
        speed = self._progress.tasks[0].speed
        self._progress.update(
            self._task,
            completed=self._step,
            bounds=self._bounds or "no bound yet",
            speed="?" if speed is None else f"{speed:,.0f}",
            refresh=True,
        )


def make_display(*, quiet: bool = False) -> Display:
    """The display that fits where standard output goes."""
    if quiet:
        return SilentDisplay()
    return BarDisplay() if sys.stdout.isatty() else LineDisplay()


def describe_bounds(train: float, valid: float) -> str:
    """`train bound -100.12, validation -101.30`; nothing for what is not known yet."""
    known = [
        f"{name} {value:.2f}"
        for name, value in (("train bound", train), ("validation", valid))
        if not math.isnan(value)
    ]
    return ", ".join(known) or "no bound yet"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
