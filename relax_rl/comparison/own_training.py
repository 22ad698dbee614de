"""One of our agents trained as an ordinary run, from the start or from its last checkpoint."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any

from relax_rl.comparison.recording import ReportProgress, Send, TakeSnapshots, write_outcome
from relax_rl.errors import TrainingDiverged
from relax_rl.runs import RunFolder
from relax_rl.runs.checkpoints import CheckpointFolder
from relax_rl.runs.loggers import read_csv
from relax_rl.runs.training import TrainingResult, resume_config, train
from relax_rl.settings.config import TrainConfig
from relax_rl.settings.presets import preset_config

__all__ = ["own_config", "train_own"]


def own_config(task: dict[str, Any]) -> TrainConfig:
    """The configuration of a new run.

    Args:
        task: `env`, `estimator`, `seed`, `folder`, `total_steps`, `stop_at_return` and `settings` by name, which win
            over the environment's preset.

    Raises:
        SettingsError: an unknown setting, or a value that a setting cannot have.
    """
    settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in task["settings"].items()}
    preset = settings.pop("preset", "auto")
    given = {name: task[name] for name in ("seed", "total_steps", "stop_at_return")}
    # One thread for each of the runs side by side, unless asked for otherwise.
    return preset_config(
        task["env"],
        task["estimator"],
        preset=preset,
        **{"threads": 1, "tensorboard": False, **settings, **given, "run_dir": task["folder"], "quiet": True},
    )


def train_own(task: dict[str, Any], send: Send) -> dict[str, Any]:
    """Train, or go on with, the run in `task["folder"]`; returns its outcome, which is also written there.

    A run that is interrupted leaves a checkpoint and no `outcome.json`.
    """
    path = Path(task["folder"])
    folder = RunFolder(path)
    saved = CheckpointFolder(folder.checkpoints).newest_first()
    if saved and _step_of(saved[0]) >= task["total_steps"]:
        outcome = _outcome_of_files(folder)
    else:
        if saved:
            config = resume_config(path, quiet=True)
        else:
            shutil.rmtree(path, ignore_errors=True)
            config = own_config(task)
        callbacks: list[Any] = [ReportProgress(send)]
        if task.get("snapshots"):
            callbacks.append(TakeSnapshots(path, total_steps=task["total_steps"]))
        started = time.perf_counter()
        try:
            outcome = _outcome(train(config, callbacks=callbacks, command="compare"))
        except TrainingDiverged as error:
            outcome = {"status": "diverged", "error": str(error), "seconds": time.perf_counter() - started}
    if outcome["status"] != "interrupted":
        write_outcome(path, outcome)
    return outcome


def _outcome(result: TrainingResult) -> dict[str, Any]:
    ended = result.stopped_by in ("total_steps", "return")
    return {
        "status": "finished" if ended else "interrupted",
        "steps": result.steps,
        "episodes": result.episodes,
        "return_mean": result.return_mean,
        "stopped_by": result.stopped_by,
    }


def _outcome_of_files(folder: RunFolder) -> dict[str, Any]:
    """Of a run that was killed between its last checkpoint and its outcome."""
    progress = read_csv(folder.progress)
    return {
        "status": "finished",
        "steps": int(progress["step"][-1]),
        "episodes": int(progress["episodes"][-1]),
        "return_mean": progress["return_mean"][-1],
        "stopped_by": "total_steps",
    }


def _step_of(checkpoint: Path) -> int:
    found = re.search(r"(\d+)", checkpoint.stem)
    return int(found[1]) if found else 0
