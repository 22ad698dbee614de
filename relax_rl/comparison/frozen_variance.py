"""The gradient's variance at agents frozen early, midway and late in learning, as `train_agent.py variance` measures it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from relax_rl.comparison.recording import SNAPSHOTS, Send
from relax_rl.runs import RunFolder, write_json
from relax_rl.runs.loggers import read_csv

__all__ = ["STAGES", "choose_snapshots", "measure"]

STAGES = {"early": 0.25, "midway": 0.5, "late": 0.75}
"""Stages of learning, by the share of its way from the first to the best mean return that a run has made."""


def measure(task: dict[str, Any], send: Send) -> dict[str, Any]:
    """Measure one frozen agent; what `variance` reports is written to `task["result"]`.

    Args:
        task: `folder` of the run, `checkpoint`, `stage`, `batches`, `fit_batches`, `result`.
        send: hears nothing; the measurement has no steps of a run.
    """
    from relax_rl.variance.measure import VarianceConfig, variance_run

    found = variance_run(
        VarianceConfig(
            run=task["folder"],
            checkpoint=task["checkpoint"],
            batches=task["batches"],
            fit_batches=task["fit_batches"],
            states=0,
        )
    )
    result = Path(task["result"])
    result.parent.mkdir(parents=True, exist_ok=True)
    write_json(result, {"stage": task["stage"], **found})
    return {"status": "finished"}


def choose_snapshots(folder: Path) -> dict[str, Path]:
    """The snapshots of a run at which its curve has first made the share of its way that each stage names.

    Stages that would fall on the same snapshot are told apart by taking the next one; a curve that never rises is cut
    into equal parts instead. No more snapshots than stages are the stages in order, so that a choice of which all others
    have been removed stands.
    """
    snapshots = sorted((folder / SNAPSHOTS).glob("step_*.safetensors"))
    if len(snapshots) <= len(STAGES):
        return dict(zip(STAGES, snapshots, strict=False))
    progress = read_csv(RunFolder(folder).progress)
    means = [_mean_at(progress, _step(path)) for path in snapshots]
    known = [mean for mean in means if math.isfinite(mean)]
    rising = bool(known) and max(known) > known[0]
    chosen: dict[str, Path] = {}
    following = 0
    for name, share in STAGES.items():
        if rising:
            level = known[0] + share * (max(known) - known[0])
            place = next(k for k, mean in enumerate(means) if math.isfinite(mean) and mean >= level)
        else:
            place = min(len(snapshots) - 1, int(share * len(snapshots)))
        place = max(place, following)
        if place < len(snapshots):
            chosen[name] = snapshots[place]
            following = place + 1
    return chosen


def _mean_at(progress: dict[str, list[float]], step: int) -> float:
    """Mean return in the last row up to a step; NaN before the first one."""
    rows = [k for k, at in enumerate(progress.get("step", [])) if at <= step]
    return progress["return_mean"][rows[-1]] if rows else math.nan


def _step(path: Path) -> int:
    found = re.search(r"(\d+)", path.stem)
    return int(found[1]) if found else 0
