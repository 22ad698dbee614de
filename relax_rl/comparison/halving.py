"""Successive halving: trials that are paused at a step, and the best of which go on (Jamieson and Talwalkar 2016).

A run is paused by `train --stop-at-step`, which leaves its schedules those of all its steps, and goes on by `--resume`.
Between two pauses it is exact: one that was stopped elsewhere goes back to the last pause.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from relax_rl.comparison.task import OUTCOME, Task, has_ended, read_outcome
from relax_rl.runs import RunFolder, write_json
from relax_rl.runs.checkpoints import newest_first, step_of

__all__ = ["WHOLE", "batch_size", "left_to_do", "outcome_at", "paused", "rung_steps", "survivors"]

WHOLE = (1.0,)
"""Rungs of trials that are never paused."""

SMALLEST_BATCH = 4


def batch_size(rungs: Sequence[float], keep: float) -> int:
    """Trials of a batch: at least 4, and so many that one is left by itself at the last rung."""
    size = 1.0
    for _ in rungs[1:]:
        size = min(size / keep, 1e9)
    return max(SMALLEST_BATCH, math.ceil(size - 1e-9)) if keep < 1.0 else SMALLEST_BATCH


def rung_steps(total_steps: int, rungs: Sequence[float]) -> tuple[int, ...]:
    """The steps at which a trial of `total_steps` is paused; the last one is its end."""
    return tuple(max(1, round(total_steps * rung)) for rung in rungs)


def survivors(scores: Mapping[int, float | None], keep: float) -> set[int]:
    """Numbers of the trials that go on from a rung: the best share, at least one, and trial 0, what is tuned as it stands.

    Args:
        scores: by number; a trial without one goes nowhere, unless none has one: then no episode may have ended yet, and all
            go on. Of equal ones the first goes on.
        keep: the share of all trials at the rung.
    """
    known = {number: score for number, score in scores.items() if score is not None}
    if not known:
        return set(scores)
    best = sorted(known, key=lambda number: (-known[number], number))
    count = max(1, math.floor(keep * len(scores) + 1e-9))
    return {*best[:count], *({0} & known.keys())}


def outcome_at(rung: int, count: int) -> str:
    """The file that says how a run came to a rung, counted from 1, of so many: at the last, how it ended."""
    return OUTCOME if rung == count else f"rung-{rung}.json"


def paused(task: Task, steps: Sequence[int], rung: int) -> Task:
    """A run as far as a rung.

    Args:
        task: of the whole run.
        steps: of all rungs.
        rung: counted from 1.
    """
    if rung == len(steps):
        return task
    stop = f"--stop-at-step={steps[rung - 1]}"
    return replace(
        task,
        begin=(*task.begin, stop),
        resume=(*task.resume, stop),
        total_steps=steps[rung - 1],
        outcome=outcome_at(rung, len(steps)),
    )


def left_to_do(task: Task, root: Path, steps: Sequence[int], rung: int) -> bool:
    """Whether a run has still to come to a rung; what it has done behind the rung before is then undone.

    Args:
        task: as `paused` gives it.
        root: the comparison's folder.
        steps, rung: as there.
    """
    if has_ended(task, root):
        return False
    folder = root / task.folder
    if rung == 1:
        shutil.rmtree(folder, ignore_errors=True)
        return True
    before = read_outcome(folder, outcome_at(rung - 1, len(steps)))
    if before is not None and before.get("steps", 0) < steps[rung - 2]:  # it ended by itself
        write_json(folder / task.outcome, before)
        return False
    _rewind(folder, steps[rung - 2])
    return True


def _rewind(folder: Path, step: int) -> None:
    """Remove what a run has saved behind its pause at a step, where it saved the first time from there on."""
    saved = [path for path in newest_first(RunFolder(folder).checkpoints) if (step_of(path) or 0) >= step]
    for path in saved[:-1]:
        with suppress(OSError):
            path.unlink()
