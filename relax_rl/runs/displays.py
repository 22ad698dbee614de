"""How a run shows itself: a live line in a terminal, plain lines in a pipe or a log, nothing if quiet."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Display", "PlainDisplay", "RichDisplay", "counting", "describe_duration", "describe_number", "make_display"]


def describe_return(mean: float) -> str:
    """`mean return 21.2`."""
    return "mean return none yet" if math.isnan(mean) else f"mean return {describe_number(mean)}"


def describe_number(x: float) -> str:
    """With as many digits as its size asks for: `321.5`, `21.2`, `4.25`, `0.953`, `0.0012`."""
    size = abs(x)
    if size >= 10:
        return f"{x:.1f}"
    if size >= 1:
        return f"{x:.2f}"
    return f"{x:.3f}" if size >= 0.01 or not size else f"{x:.2g}"


class Display:
    """Shows how a run goes on; this one shows nothing."""

    def begin(self, line: str, *, total: int, step: int = 0, name: str = "") -> None:
        """Say what is starting: at `step` of `total`; several that follow one another have a name each."""

    def update(self, step: int, status: Any) -> None:
        """Called now and then with how things stand: what `describe` of `make_display` puts into words."""

    def say(self, line: str) -> None:
        """Show a line of its own."""

    def end(self) -> None:
        """Leave the terminal as it was."""


class PlainDisplay(Display):
    """A line every few seconds, for logs and pipes."""

    def __init__(
        self, describe: Callable[[Any], str] = describe_return, *, file: IO[str] | None = None, interval: float = 5.0
    ) -> None:
        self._describe = describe
        self._file, self._interval = file, interval
        self._prefix = ""
        self._total = self._step = 0
        self._time = 0.0

    def begin(self, line: str, *, total: int, step: int = 0, name: str = "") -> None:
        self._total, self._step, self._time = total, step, time.perf_counter()
        self._prefix = f"{name}: " if name else ""
        if line:
            self.say(line)

    def update(self, step: int, status: Any) -> None:
        now = time.perf_counter()
        if now - self._time < self._interval:
            return
        speed = (step - self._step) / (now - self._time)
        self._step, self._time = step, now
        left = describe_duration((self._total - step) / speed if speed > 0 else None)
        where = f"{self._prefix}step {step:,} of {self._total:,}"
        self.say(f"{where} | {self._describe(status)} | {speed:,.0f} steps/s | {left} left")

    def say(self, line: str) -> None:
        say(line, self._file)


class RichDisplay(Display):
    """A live line with a bar: steps, status, speed, time left."""

    def __init__(self, describe: Callable[[Any], str] = describe_return, *, refresh: float = 0.25) -> None:
        self._describe, self._refresh, self._time = describe, refresh, 0.0
        self._step = 0
        self._status: Any = None
        self._known = False
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def begin(self, line: str, *, total: int, step: int = 0, name: str = "") -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._show()
        if self._progress is None:
            # Refreshed by hand: a refreshing thread would take its time slices from training.
            self._progress = Progress(
                *([TextColumn("{task.description}")] if name else []),
                TextColumn("step {task.completed:,} of {task.total:,}"),
                BarColumn(bar_width=24),
                TextColumn("[bold]{task.fields[status]}[/]"),
                TextColumn("{task.fields[speed]} steps/s"),
                TimeRemainingColumn(),
                TextColumn("left"),
                auto_refresh=False,
            )
        if line:
            self.say(line)
        self._step, self._known = step, False
        self._task = self._progress.add_task(name, total=total, completed=step, status="", speed="?")
        self._progress.start()

    def update(self, step: int, status: Any) -> None:
        self._step, self._status, self._known = step, status, True
        now = time.perf_counter()
        if now - self._time >= self._refresh:
            self._time = now
            self._show()

    def say(self, line: str) -> None:
        if self._progress is None:  # nothing has begun yet
            say(line)
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
        speed = self._progress.tasks[-1].speed
        self._progress.update(
            self._task,
            completed=self._step,
            status=self._describe(self._status) if self._known else "",
            speed="?" if speed is None else f"{speed:,.0f}",
            refresh=True,
        )


def make_display(
    describe: Callable[[Any], str] | None = None, *, quiet: bool = False, interval: float = 5.0
) -> Display:
    """The display that fits where standard output goes.

    Args:
        describe: what `update` is given, in words; a mean return by default.
        quiet: show nothing.
        interval: seconds from one line to the next where that is no terminal.
    """
    if quiet:
        return Display()
    describe = describe or describe_return
    return RichDisplay(describe) if _is_terminal() else PlainDisplay(describe, interval=interval)


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar in a terminal, for as long as `what` is counted up to `total`; elsewhere nothing."""
    if not _is_terminal():
        yield lambda done: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(TextColumn(what), *bar, TextColumn("left"), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.update(task, completed=done)


def say(line: str, file: IO[str] | None = None) -> None:
    """Print a line, with `?` for what the stream has no sign for; nothing where there is no stream, as in a service."""
    stream = sys.stdout if file is None else file
    if stream is not None:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        print(line.encode(encoding, "replace").decode(encoding), file=stream, flush=True)


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def describe_duration(seconds: float | None) -> str:
    """`1:05:09`, `5:09`, or `?`."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
