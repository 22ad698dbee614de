"""What all attacks share: a trial and its verdict, commands called within limits, and what they may say in the end."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from relax_rl.commands.main import main
from relax_rl.errors import RelaxRLError

__all__ = [
    "ADDED_BYTES",
    "CPU_SECONDS",
    "Attack",
    "Ended",
    "attempt",
    "called",
    "gentle",
    "lasting_folder",
    "rng_of",
    "untidy",
]

CPU_SECONDS = 5.0
"""Of this process that a refusal may take."""
ADDED_BYTES = 2**30
"""Of memory that a refusal may take."""
_PATIENCE = 30.0
"""Seconds of CPU after which anything is ended; of the clock on the wall, which others slow down, four times as many."""
_GUARD_BYTES = 4 * 2**30
_LONGEST_LINE = 1200
_CODES = (0, 2)


@dataclass(frozen=True)
class Attack:
    """A way to attack, trial by trial.

    Attributes:
        name: as it is chosen and shown.
        what: is attacked, in a line of the report.
        trials: in `make soak`.
        sample: of them in the suite, those numbered from 0 on.
        attempt: `(seed, number, folder) -> fault`: tries number N within an empty folder; what went wrong, in a line, or
            None.
        about: `(seed, number) -> line` that says what is tried.
    """

    name: str
    what: str
    trials: int
    sample: int
    attempt: Callable[[int, int, Path], str | None]
    about: Callable[[int, int], str]


@dataclass(frozen=True)
class Ended:
    """How a command called in this process has ended.

    Attributes:
        code: its exit code; None where an exception came out of it.
        out, err: what it printed.
        seconds: of CPU.
        added: bytes of memory at its peak, over those before.
        error: the exception that came out.
    """

    code: int | None
    out: str
    err: str
    seconds: float
    added: int
    error: BaseException | None = None


class _TooLong(BaseException):
    """The clock has run out."""


def lasting_folder() -> Path:
    """An empty folder that stays as long as this process does."""
    path = Path(tempfile.mkdtemp(prefix="relax-attack-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def rng_of(seed: int, number: int) -> np.random.Generator:
    """The random stream of one trial."""
    return np.random.default_rng([seed, number])


def attempt(call: Callable[[], int | None], *, within: float = _PATIENCE) -> Ended:
    """Call a function within limits of time and memory; a number that it returns is an exit code."""
    out, err = io.StringIO(), io.StringIO()
    code: int | None = None
    error: BaseException | None = None
    before = _memory()
    started = time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _clock(within), _memory_guard():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                code = call() or 0
        except (Exception, SystemExit, KeyboardInterrupt, _TooLong) as caught:
            error = caught
    seconds = time.process_time() - started
    return Ended(code, out.getvalue(), err.getvalue(), seconds, _peak() - before, error)


def called(arguments: Sequence[str], *, within: float = _PATIENCE) -> Ended:
    """Call the command line in this process."""
    return attempt(lambda: main(list(arguments)), within=within)


def untidy(ended: Ended, *, codes: Sequence[int] = _CODES, limits: bool = True) -> str | None:
    """What is wrong with the end of a command, in a line: an exception, a code, its last words, or what it took."""
    if isinstance(ended.error, RelaxRLError):
        line = str(ended.error)
        if "\n" in line or not line or len(line) > _LONGEST_LINE:
            return f"an error of {len(line.splitlines())} lines and {len(line)} characters: {line[:200]!r}"
    elif isinstance(ended.error, _TooLong):
        return f"no end after {ended.seconds:.0f} s of CPU"
    elif ended.error is not None:
        return f"{type(ended.error).__name__}: {_first_line(ended.error)} ({_where(ended.error)})"
    elif ended.code not in codes:
        return f"exit code {ended.code}: {ended.err[-300:]!r}"
    elif (line := _untidy_words(ended)) is not None:
        return line
    if limits and ended.code != 0 and ended.seconds > CPU_SECONDS:
        return f"took {ended.seconds:.1f} s of CPU, expected at most {CPU_SECONDS:g}"
    if limits and ended.added > ADDED_BYTES:
        return f"took {ended.added / 2**30:.1f} GiB of memory, expected at most {ADDED_BYTES / 2**30:g}"
    return None


def _untidy_words(ended: Ended) -> str | None:
    lines = ended.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if "Traceback" in ended.out + ended.err:
        return f"a traceback on the way: {ended.err[-300:]!r}"
    if ended.code == 2 and (len(errors) != 1 or lines[-1] != errors[0] or len(errors[0]) > _LONGEST_LINE):
        return f"exit code 2 with {len(errors)} lines of error: {ended.err[-300:]!r}"
    if ended.code == 0 and errors:
        return f"exit code 0 with an error: {errors[0]!r}"
    if any("\x1b" in line or "\0" in line for line in lines):
        return "control characters in what is said"
    return None


@contextlib.contextmanager
def gentle() -> Iterator[None]:
    """Let figures be files without a picture: drawing takes longer than what is tried."""
    from matplotlib.figure import Figure

    def blank(figure: object, file: Any, **_: object) -> None:
        write = file.write if hasattr(file, "write") else Path(file).write_bytes
        write(b"\x89PNG")

    kept = Figure.savefig
    Figure.savefig = blank  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Figure.savefig = kept  # type: ignore[method-assign]


@contextlib.contextmanager
def _clock(seconds: float) -> Iterator[None]:
    """Raise _TooLong in the block after so many seconds of CPU; a clock that ran before goes on."""
    started, spent = time.monotonic(), time.process_time()

    def ring(*_: int | FrameType | None) -> None:
        if time.process_time() - spent > seconds or time.monotonic() - started > 4 * seconds:
            raise _TooLong

    before = signal.signal(signal.SIGALRM, ring)
    left, every = signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # one that rings now would find no handler
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, max(0.01, left - time.monotonic() + started) if left else 0, every)


@contextlib.contextmanager
def _memory_guard() -> Iterator[None]:
    """Keep a trial that asks for everything from taking it from the machine."""
    size = _status("VmSize")
    before = resource.getrlimit(resource.RLIMIT_AS)
    if size:
        resource.setrlimit(resource.RLIMIT_AS, (size + _GUARD_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _memory() -> int:
    """Bytes that are in use; the peak is measured from here."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:  # no Linux
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(f"{name}:")), 0)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:300]


def _where(error: BaseException) -> str:
    """The last line of this package that an error came through."""
    frames = [
        each for each in traceback.extract_tb(error.__traceback__) if f"{os.sep}relax_rl{os.sep}" in each.filename
    ]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "outside the package"
