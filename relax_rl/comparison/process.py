"""A command of this package as a process of this machine, and how far the run in its folder has got."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from relax_rl.compute.serialization import without_waiting
from relax_rl.runs import RunFolder

__all__ = ["CommandProcess", "exit_reason", "last_line", "last_row"]

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_SUPERVISED = Path(__file__).resolve().with_name("supervised.py")
_TAIL = 1 << 14
"""Bytes at the end of a file among which its last line is looked for."""


class CommandProcess:
    """`python -m MODULE ARGUMENTS...` with one CPU thread, which leaves when this process is gone.

    It works where this process does, and imports from there, never from the folder of the comparison: that may be somebody
    else's.

    Args:
        command: the module and its arguments, the run's folder among them as `run` says it, or behind `--option=`.
        folder: of the comparison.
        run: the run's folder in it.
        log: file that its output is added to.
        held: a file descriptor that it inherits.
    """

    def __init__(self, command: Sequence[str], folder: Path, run: str, log: Path, *, held: int | None = None) -> None:
        self._progress = RunFolder(folder / run).progress
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(_SUPERVISED), *_placed(command, run, folder)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=_environment(),
                # Ctrl-C reaches the whole foreground group of a terminal; commands are told by us, and once.
                start_new_session=True,
                pass_fds=() if held is None else (held,),
            )

    def poll(self) -> int | None:
        """The exit code, minus the number of a signal that ended it; None while it works."""
        code = self._process.poll()
        if code is not None and self._process.stdin is not None:
            self._process.stdin.close()
        return code

    def progress(self) -> dict[str, float]:
        """The last row of `progress.csv`, by column; empty before the first one."""
        return last_row(self._progress)

    def stop(self) -> None:
        """Ask it to save its run and to leave."""
        if self._process.poll() is None:
            self._process.terminate()

    def wait(self, seconds: float) -> int:
        """Wait until it has left; after so long it is killed. Returns the exit code."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def last_row(path: Path) -> dict[str, float]:
    """The last whole row of a CSV file of numbers, by column; empty without one."""
    with suppress(OSError, ValueError, csv.Error), open(path, "rb", opener=without_waiting) as file:
        names = file.readline(_TAIL).decode("utf-8").rstrip("\n").split(",")
        for line in reversed(_tail(file.fileno(), file.tell())):
            cells = next(csv.reader([line]))
            if line.endswith("\n") and len(cells) == len(names):
                return {name: float(cell or math.nan) for name, cell in zip(names, cells, strict=True)}
    return {}


def last_line(path: Path, beginning: str = "") -> str:
    """The last line of a text file that begins so and is not empty; empty without one."""
    with suppress(OSError), open(path, "rb", opener=without_waiting) as file:
        lines = (line.strip() for line in reversed(_tail(file.fileno(), 0)))
        return next((line for line in lines if line and line.startswith(beginning)), "")
    return ""


def exit_reason(code: int) -> str:
    """What an exit code says."""
    if code >= 0:
        return f"its process ended with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"its process was ended by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")


def _tail(descriptor: int, start: int) -> list[str]:
    """Lines at the end of a file, none of what stands before `start`; the first may lack its beginning."""
    size = os.fstat(descriptor).st_size
    begin = max(start, size - _TAIL)
    return os.pread(descriptor, size - begin, begin).decode("utf-8", "replace").splitlines(keepends=True)


def _placed(command: Sequence[str], run: str, folder: Path) -> list[str]:
    """A command with the run's folder as it is called from everywhere."""
    place = str((folder / run).resolve())
    return [word.removesuffix(run) + place if word == run or word.endswith(f"={run}") else word for word in command]


def _environment() -> dict[str, str]:
    """The variables of this process, with which a Python elsewhere imports the same relax_rl and what this one does."""
    here = os.getcwd()
    first = [here] if sys.path[:1] in ([""], [here]) else []  # as `python -m` has it; else it comes last
    paths = [str(Path(__file__).resolve().parents[2]), *first, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, **dict.fromkeys(_THREADS, "1"), "PYTHONPATH": os.pathsep.join(paths)}
