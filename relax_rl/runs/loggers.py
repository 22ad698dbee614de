"""Where a run's numbers go: a CSV file, TensorBoard and loggers of the user's own.

Of these last, anything will do that has `log(step, metrics)` and `close()`; one whose `log` takes a single argument gets
the rows of `progress.csv` alone, `step` among them.
"""

from __future__ import annotations

import csv
import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from relax_rl.compute.serialization import read_regular, write_text_atomic, writing
from relax_rl.errors import SettingsError, shown

__all__ = [
    "EPISODE_COLUMNS",
    "EVALUATION_COLUMNS",
    "PROGRESS_COLUMNS",
    "CsvLogger",
    "GroupLogger",
    "Logger",
    "StepLogger",
    "TensorBoardLogger",
    "TheirLogger",
    "as_logger",
    "mean_metrics",
    "named_numbers",
    "read_csv",
    "truncate_csv",
]

_LARGEST = 2**31
"""Bytes of a table that is read."""

PROGRESS_COLUMNS = ("step", "episodes", "return_mean", "seconds", "steps_per_second", "length_mean")
"""The first columns of `progress.csv`; the agent's metrics follow."""

LATE = "info/"
"""What the names of columns begin with that may turn up in any row: many an episode tells of success at its end alone."""

EPISODE_COLUMNS = ("step", "return", "length")
"""The columns of `episodes.csv`."""

EVALUATION_COLUMNS = ("step", "episodes", "return_mean", "return_std", "length_mean", "seconds")
"""The columns of `evaluation.csv`."""


class Logger(Protocol):
    """Takes rows of numbers; every row has a `step`."""

    def log(self, row: Mapping[str, float]) -> None:
        """Record one row."""

    def close(self) -> None:
        """Write out what is pending."""


class TheirLogger(Protocol):
    """A logger of the user's own."""

    def log(self, step: int, metrics: Mapping[str, float], /) -> object:
        """Take numbers by name, as TensorBoard has them, at an environment step; what is NaN is left out."""

    def close(self) -> object:
        """The run has ended, however it did."""


class GroupLogger:
    """A logger that hears of more than the rows of `progress.csv`: of evaluations, and of the outcome."""

    def log(self, row: Mapping[str, float], *, group: str | None = None) -> None:
        """Record one row, with `group/` before every name if there is a group."""
        raise NotImplementedError

    def finish(self, step: int, outcome: Mapping[str, float], *, figure: Path | None = None, code: int = 0) -> None:
        """Record how the run ended, if nothing went wrong.

        Args:
            step: the last one.
            outcome: numbers by name, `final/return_mean` and `best/return_mean`, as far as there are any.
            figure: the learning curve, if there is one.
            code: the exit code of the run.
        """

    def close(self) -> None:
        """Write out what is pending."""


class StepLogger(GroupLogger):
    """Hands everything on to a logger of the user's own."""

    def __init__(self, theirs: TheirLogger) -> None:
        self._theirs = theirs

    def log(self, row: Mapping[str, float], *, group: str | None = None) -> None:
        self._theirs.log(int(row["step"]), named_numbers(row, group))

    def finish(self, step: int, outcome: Mapping[str, float], *, figure: Path | None = None, code: int = 0) -> None:
        if outcome:
            self._theirs.log(step, outcome)

    def close(self) -> None:
        self._theirs.close()


def as_logger(theirs: TheirLogger | Logger) -> Logger:
    """A logger of the user's own as a run takes it.

    Raises:
        SettingsError: it is none.
    """
    log: Any = getattr(theirs, "log", None)
    if not callable(log) or not callable(getattr(theirs, "close", None)):
        raise SettingsError(f"{shown(theirs)} is no logger, expected an object with log(step, metrics) and close()")
    if isinstance(theirs, GroupLogger):
        return theirs
    try:
        inspect.signature(log).bind(0, {})
    except (TypeError, ValueError):
        return theirs  # type: ignore[return-value]
    return StepLogger(theirs)  # type: ignore[arg-type]


def named_numbers(row: Mapping[str, float], group: str | None = None) -> dict[str, float]:
    """The numbers of a row by their names in TensorBoard, without `step` and without NaN."""
    before = "" if group is None else f"{group}/"
    return {f"{before}{name}": x for name, x in row.items() if name != "step" and not math.isnan(x)}


class CsvLogger:
    """Rows of numbers in a CSV file; each row is on disk before `log` returns, NaN is an empty cell.

    An existing file is gone on with, in its own columns.

    Args:
        path: the file.
        columns: the first columns; further names in the first row follow them, and behind these whatever infos tell for the
            first time in a later one (`info/...`).

    Raises:
        RelaxRLError: the file cannot be written.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, tuple(columns)
        with writing(path):
            self._header_written = path.is_file() and b"\n" in read_regular(path, most=_LARGEST)
        if self._header_written:
            self.columns = tuple(read_csv(path))
        with writing(path):  # one that was cut off within its first line is begun anew
            self._file: IO[str] = open(path, "a" if self._header_written else "w", encoding="utf-8", newline="")  # noqa: SIM115

    def log(self, row: Mapping[str, float]) -> None:
        if not self._header_written:
            self.columns += tuple(name for name in row if name not in self.columns)
            self._write(self.columns)
            self._header_written = True
        elif late := [name for name in row if name.startswith(LATE) and name not in self.columns]:
            self._widen(late)
        self._write([_cell(row.get(name, math.nan)) for name in self.columns])

    def close(self) -> None:
        with writing(self.path):
            self._file.close()

    def _widen(self, names: Sequence[str]) -> None:
        """Put columns behind the others, empty in the rows there are."""
        self.close()
        with writing(self.path):
            header, *body = read_regular(self.path, most=_LARGEST).decode("utf-8", "replace").splitlines()
        empty = "," * len(names)
        write_text_atomic(self.path, "".join([f"{','.join([header, *names])}\n", *(f"{row}{empty}\n" for row in body)]))
        self.columns += tuple(names)
        with writing(self.path):
            self._file = open(self.path, "a", encoding="utf-8", newline="")  # noqa: SIM115

    def _write(self, cells: Sequence[str]) -> None:
        with writing(self.path):
            csv.writer(self._file, lineterminator="\n").writerow(cells)
            self._file.flush()


class TensorBoardLogger(GroupLogger):
    """Rows of numbers as TensorBoard scalars, each under the name of its column; settings and outcome under HPARAMS.

    Args:
        folder: where the event file goes.
        from_step: points of an earlier part of the run from this step on are hidden: it is being gone over again.
        settings: shown under TEXT, and under HPARAMS.
        outcome: the column whose last and highest numbers stand under HPARAMS, as `final/NAME` and `best/NAME`.
        best: the highest of an earlier part of the run.

    Raises:
        SettingsError: TensorBoard cannot be imported.
        RelaxRLError: the event file cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        from_step: int | None = None,
        settings: Mapping[str, Any] | None = None,
        outcome: str | None = None,
        best: float = math.nan,
    ) -> None:
        self.folder, self._outcome = folder, outcome
        self._best, self._last = best, (0, math.nan)
        with writing(folder):
            self._writer = _summary_writer()(str(folder), purge_step=from_step)
            if settings is not None:
                table = "".join(f"|{name}|{value}|\n" for name, value in settings.items())
                self._writer.add_text("settings", f"|setting|value|\n|-|-|\n{table}", from_step or 0)
                self._write_hparams(settings)

    def log(self, row: Mapping[str, float], *, group: str | None = None) -> None:
        step = int(row["step"])
        with writing(self.folder):
            for name, value in named_numbers(row, group).items():
                self._writer.add_scalar(name, value, step)
        value = float(row.get(self._outcome or "", math.nan))
        if group is None and not math.isnan(value):
            self._last, self._best = (step, value), max(value, value if math.isnan(self._best) else self._best)

    def close(self) -> None:
        """Write the outcome, and what is pending."""
        with writing(self.folder):
            step, value = self._last
            if self._outcome is not None and not math.isnan(value):
                self._writer.add_scalar(f"final/{self._outcome}", value, step)
                self._writer.add_scalar(f"best/{self._outcome}", self._best, step)
            self._writer.close()

    def _write_hparams(self, settings: Mapping[str, Any]) -> None:
        """The summaries of TensorBoard's plug-in, into this event file: `add_hparams` would make a run of its own."""
        from torch.utils.tensorboard.summary import hparams

        named = {name: _for_hparams(value) for name, value in settings.items()}
        outcome = () if self._outcome is None else (f"final/{self._outcome}", f"best/{self._outcome}")
        for summary in hparams(named, dict.fromkeys(outcome, 0.0)):
            self._writer._get_file_writer().add_summary(summary)


def _for_hparams(value: Any) -> bool | float | str:
    """A setting as TensorBoard takes it: what is no finite number becomes text."""
    plain = isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else str(value)


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except Exception as error:  # two protobufs, say, raise errors of their own
        line = (str(error).splitlines() or [""])[0][:200]
        raise SettingsError(
            f"TensorBoard cannot be imported ({type(error).__name__}: {line}); leave it out: --no-tensorboard"
        ) from error
    return SummaryWriter


def mean_metrics(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every metric over several updates, leaving out NaN.

    Args:
        history: one mapping per update; names are those of the last one.
    """
    means = {}
    for name in history[-1] if history else ():
        known = [value for metrics in history if not math.isnan(value := float(metrics.get(name, math.nan)))]
        means[name] = math.fsum(known) / len(known) if known else math.nan
    return means


def read_csv(path: Path) -> dict[str, list[float]]:
    """The columns of a CSV file of numbers; an empty cell is NaN. Rows that are none are left out, with a warning.

    Args:
        path: of the file.

    Raises:
        RelaxRLError: the file cannot be read.
    """
    with writing(path):
        text = read_regular(path, most=_LARGEST).decode("utf-8", "replace")
    lines = text.split("\n")
    names = _cells(lines[0]) or []
    # What stands behind the last line break is a row in the making, or one that a killed run has left.
    rows = [(number, _numbers(line, len(names))) for number, line in enumerate(lines[1:-1], 2)]
    bad = [str(number) for number, row in rows if row is None]
    if bad:
        lost = f"{', '.join(bad[:5])}{' and more' if len(bad) > 5 else ''}"
        warnings.warn(f"{path} holds no numbers in line {lost}: left out", UserWarning, stacklevel=2)
    body = [row for _, row in rows if row is not None]
    return {name: [row[i] for row in body] for i, name in enumerate(names)}


def _numbers(line: str, count: int) -> list[float] | None:
    """The numbers of a row; None if it has not that many, or something else."""
    cells = _cells(line)
    try:
        return [float(cell or math.nan) for cell in cells] if cells is not None and len(cells) == count else None
    except ValueError:
        return None


def _cells(line: str) -> list[str] | None:
    """The cells of a row; None of one that is none."""
    try:
        return next(csv.reader([line.replace("\0", "?")]), [])
    except csv.Error:
        return None


def truncate_csv(path: Path, step: int) -> None:
    """Cut a CSV file back to the rows up to `step`, as if the run had ended there; half-written rows go too.

    Raises:
        RelaxRLError: the file cannot be read or written.
    """
    if not path.exists():
        return
    with writing(path):
        lines = read_regular(path, most=_LARGEST).decode("utf-8", "replace").splitlines(keepends=True)
    if not lines:
        return
    width = lines[0].count(",")
    kept = [line for line in lines[1:] if line.endswith("\n") and line.count(",") == width and _step_of(line) <= step]
    write_text_atomic(path, "".join([lines[0], *kept]))


def _step_of(line: str) -> float:
    """The step a row was written at; a row without one is never kept."""
    try:
        return int(line.split(",", 1)[0])
    except ValueError:
        return math.inf


def _cell(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return "" if math.isnan(value) else f"{value:.6g}"
