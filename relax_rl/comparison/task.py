"""A run of a command in a folder of its own: how it is begun and gone on with, and what has become of it."""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relax_rl.comparison.process import exit_reason, last_line, last_row
from relax_rl.runs import RunFolder, write_json
from relax_rl.runs.checkpoints import newest_first, step_of
from relax_rl.runs.record import object_in

__all__ = ["OUTCOME", "Task", "has_ended", "newest_step", "outcome_of", "read_outcome"]

OUTCOME = "outcome.json"
"""How a run has ended; where it stands, the run needs no more work."""

_STOPPED = {-signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A run of a command.

    Attributes:
        name: told of it when it fails, and the stem of its log.
        folder: that it alone writes to, from the comparison's folder.
        begin, resume: the command that begins it, and the one that goes on from a checkpoint in `folder`.
        total_steps: of a run; 0 for what has none.
        cpus, gpus: that it takes; 0 CPUs for all of a machine.
        outcome: the file in `folder` that says how it has ended.
    """

    name: str
    folder: str
    begin: tuple[str, ...]
    resume: tuple[str, ...] = ()
    total_steps: int = 0
    cpus: int = 1
    gpus: int = 0
    outcome: str = OUTCOME

    def command(self, root: Path) -> tuple[str, ...]:
        """The one that brings it on from where it stands."""
        return self.resume if self.resume and newest_step(root / self.folder) is not None else self.begin


def newest_step(folder: Path) -> int | None:
    """The step of a run's newest checkpoint; None without one."""
    found = newest_first(RunFolder(folder).checkpoints)
    return step_of(found[0]) if found else None


def has_ended(task: Task, root: Path) -> bool:
    """Whether a run needs no more work; one that was saved at its end gets its outcome, if nobody was there to write it."""
    folder = root / task.folder
    step = newest_step(folder)
    if read_outcome(folder, task.outcome) is None and step is not None and step >= task.total_steps > 0:
        write_json(folder / task.outcome, _finished(folder))
    return read_outcome(folder, task.outcome) is not None


def read_outcome(folder: Path, name: str = OUTCOME) -> dict[str, Any] | None:
    """How a run ended, or None if it has not, or if that can no longer be read."""
    outcome = object_in(folder / name)
    told = isinstance(outcome.get("error"), str) and isinstance(outcome.get("seconds", 0.0), (int, float))
    return outcome if outcome.get("status") == "finished" or (outcome.get("status") == "diverged" and told) else None


def outcome_of(task: Task, root: Path, code: int, log: Path, seconds: float) -> dict[str, Any]:
    """What has become of a run whose command has ended; it is kept where it says that the run needs no more work.

    Args:
        task: of the run.
        root: the comparison's folder.
        code: that the command ended with.
        log: of its output.
        seconds: that it took.

    Returns:
        `status` "finished" with `steps`, `episodes` and `return_mean`; or "interrupted"; or "diverged" or "failed", with the
        `error`.
    """
    if code in _STOPPED:
        return {"status": "interrupted"}
    folder = root / task.folder
    error = last_line(log, "error: ").removeprefix("error: ") if code == 2 else ""
    if code == 0:
        outcome = _finished(folder)
    elif "not finite" in error or "not a finite" in error:  # what TrainingDiverged says
        outcome = {"status": "diverged", "error": error, "seconds": seconds}
    else:
        why = last_line(log)[:300] if code == 1 else exit_reason(code)
        return {"status": "failed", "error": error or f"{why}, see {log}"}
    if task.total_steps:
        write_json(folder / task.outcome, outcome)
    return outcome


def _finished(folder: Path) -> dict[str, Any]:
    """The outcome of a run that has come to its end."""
    row: Mapping[str, float] = last_row(RunFolder(folder).progress)
    columns = {"steps": "step", "episodes": "episodes"}
    counts = {name: int(row[column]) for name, column in columns.items() if math.isfinite(row.get(column, math.nan))}
    means = {"return_mean": row["return_mean"]} if "return_mean" in row else {}
    return {"status": "finished", **counts, **means}
