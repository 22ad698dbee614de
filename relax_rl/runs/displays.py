"""How a run shows itself: a live line in a terminal, plain lines in a pipe or a log, nothing if quiet."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = [
    "Display",
    "PlainDisplay",
    "RichDisplay",
    "counting",
    "describe_duration",
    "describe_number",
    "make_display",
    "text_table",
]

_FIXED = 74
"""Columns of a live line that its bar cannot have."""


def describe_return(status: float | tuple[float, float]) -> str:
    """`mean return 21.2`, or `return 21.2, success 85%` of a pair with the rate of success."""
    if isinstance(status, tuple):
        return f"return {describe_number(status[0])}, success {status[1]:.0%}"
    return "mean return none yet" if math.isnan(status) else f"mean return {describe_number(status)}"


def describe_number(x: float) -> str:
    """With as many digits as its size asks for: `321.5`, `21.2`, `4.25`, `0.953`, `0.0012`, `1.2e+12`."""
    size = abs(x)
    if size >= 1e9:
        return f"{x:.3g}"
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

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Say what is done in the block, which takes a while and gives no numbers, and how long it has taken."""
        yield

    def done(self, how: str) -> None:
        """Say that what began has come to its end, before all steps were taken."""

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

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        self.say(f"{what} ...")
        started = time.perf_counter()
        with _ticking(2 * self._interval, lambda seconds: self.say(f"  {describe_duration(seconds)} so far")):
            yield
        self._time = time.perf_counter()
        self.say(f"  done in {describe_duration(self._time - started)}")


class RichDisplay(Display):
    """A live line with a bar: steps, status, speed, time left."""

    def __init__(self, describe: Callable[[Any], str] = describe_return, *, refresh: float = 0.25) -> None:
        self._describe, self._refresh, self._time = describe, refresh, 0.0
        self._step = 0
        self._status: Any = None
        self._known, self._how, self._speed = False, "", "?"
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def begin(self, line: str, *, total: int, step: int = 0, name: str = "") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._show()
        if self._progress is None:
            console = Console()
            # Refreshed by hand: a refreshing thread would take its time slices from training.
            self._progress = Progress(
                *([TextColumn("{task.description}")] if name else []),
                TextColumn("step {task.completed:,} of {task.fields[of]:,}"),
                BarColumn(bar_width=min(24, max(4, console.width - _FIXED))),
                TextColumn("[bold]{task.fields[status]}[/]"),
                TextColumn("{task.fields[speed]} steps/s"),
                TimeRemainingColumn(),
                TextColumn("left"),
                auto_refresh=False,
                console=console,
            )
        if line:
            self.say(line)
        self._step, self._known, self._how, self._speed = step, False, "", "?"
        self._task = self._progress.add_task(name, total=total, completed=step, of=total, status="", speed="?")
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

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        self.say(f"{what} ...")
        started = time.perf_counter()
        try:
            with _ticking(1.0, lambda seconds: self._show(f"{describe_duration(seconds)} so far")):
                yield
        finally:
            self._show()
        self.say(f"  done in {describe_duration(time.perf_counter() - started)}")

    def done(self, how: str) -> None:
        self._how = how
        self._show()

    def end(self) -> None:
        if self._progress is not None:
            self._show()
            self._progress.stop()
            self._progress = None

    def _show(self, note: str = "") -> None:
        if self._progress is None or self._task is None:
            return
        speed = self._progress.tasks[-1].speed
        self._speed = self._speed if speed is None else f"{speed:,.0f}"
        known = self._describe(self._status) if self._known else ""
        self._progress.update(
            self._task,
            completed=self._step,
            total=self._step if self._how else None,
            status=note or ", ".join(filter(None, (known, self._how))),
            speed=self._speed,
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


def text_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose numbers stand whole, however narrow the terminal: the first column to the left, the others to the right."""
    cells = [list(columns), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * width for width in widths]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in (cells[0], rule, *cells[1:])
    ]
    return "\n".join([title, *(line.rstrip() for line in lines)])


@contextmanager
def _ticking(seconds: float, call: Callable[[float], object]) -> Iterator[None]:
    """Within the block, call every so many seconds, from another thread, with how long it has taken."""
    over, started = threading.Event(), time.perf_counter()

    def tick() -> None:
        while not over.wait(seconds):
            call(time.perf_counter() - started)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def describe_duration(seconds: float | None) -> str:
    """`1:05:09`, `5:09`, or `?`."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
