"""How a run shows itself: a live line in a terminal, plain lines in a pipe or a log, nothing if quiet."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Display", "PlainDisplay", "RichDisplay", "SilentDisplay", "describe_duration", "make_display"]


def describe_duration(seconds: float | None) -> str:
    """`1:02:03` or `2:03`; a question mark for None."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def describe_return(mean: float) -> str:
    """`mean return 21.2`."""
    return "mean return none yet" if math.isnan(mean) else f"mean return {mean:.1f}"


class Display(Protocol):
    """Shows how a run goes on."""

    def begin(self, line: str, *, step: int, total: int) -> None:
        """Say what is starting: at `step` of `total` environment steps."""

    def update(self, step: int, status: Any) -> None:
        """Called now and then with how things stand: what `describe` of `make_display` puts into words."""

    def say(self, line: str) -> None:
        """Show a line of its own."""

    def end(self) -> None:
        """Leave the terminal as it was."""


class SilentDisplay:
    """Shows nothing."""

    def begin(self, line: str, *, step: int, total: int) -> None:
        """Show nothing."""

    def update(self, step: int, status: Any) -> None:
        """Show nothing."""

    def say(self, line: str) -> None:
        """Show nothing."""

    def end(self) -> None:
        """Show nothing."""


class PlainDisplay:
    """A line every few seconds, for logs and pipes."""

    def __init__(
        self, describe: Callable[[Any], str] = describe_return, *, file: IO[str] | None = None, interval: float = 5.0
    ) -> None:
        self._describe = describe
        self._file, self._interval = file or sys.stdout, interval
        self._total = self._step = 0
        self._time = 0.0

    def begin(self, line: str, *, step: int, total: int) -> None:
        self._total, self._step, self._time = total, step, time.perf_counter()
        self.say(line)

    def update(self, step: int, status: Any) -> None:
        now = time.perf_counter()
        if now - self._time < self._interval:
            return
        speed = (step - self._step) / (now - self._time)
        self._step, self._time = step, now
        left = describe_duration((self._total - step) / speed if speed > 0 else None)
        self.say(f"step {step:,} of {self._total:,} | {self._describe(status)} | {speed:,.0f} steps/s | {left} left")

    def say(self, line: str) -> None:
        print(line, file=self._file, flush=True)

    def end(self) -> None:
        """Nothing is pending: every line went out whole."""


class RichDisplay:
    """A live line with a bar: steps, status, speed, time left."""

    def __init__(self, describe: Callable[[Any], str] = describe_return, *, refresh: float = 0.25) -> None:
        self._describe, self._refresh, self._time = describe, refresh, 0.0
        self._step = 0
        self._status: Any = None
        self._known = False
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def begin(self, line: str, *, step: int, total: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        # Refreshed by hand: a refreshing thread would take its time slices from training.
        self._progress = Progress(
            TextColumn("step {task.completed:,} of {task.total:,}"),
            BarColumn(bar_width=24),
            TextColumn("[bold]{task.fields[status]}[/]"),
            TextColumn("{task.fields[speed]} steps/s"),
            TimeRemainingColumn(),
            TextColumn("left"),
            auto_refresh=False,
        )
        self.say(line)
        self._step = step
        self._task = self._progress.add_task("", total=total, completed=step, status="", speed="?")
        self._progress.start()

    def update(self, step: int, status: Any) -> None:
        self._step, self._status, self._known = step, status, True
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
            status=self._describe(self._status) if self._known else "",
            speed="?" if speed is None else f"{speed:,.0f}",
            refresh=True,
        )


def make_display(*, quiet: bool = False, describe: Callable[[Any], str] = describe_return) -> Display:
    """The display that fits where standard output goes.

    Args:
        quiet: show nothing.
        describe: what `update` is told, in words.
    """
    if quiet:
        return SilentDisplay()
    return RichDisplay(describe) if sys.stdout.isatty() else PlainDisplay(describe)
