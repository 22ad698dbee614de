"""The folder of a VAE run: begun or resumed, its settings, rows and checkpoints."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relax_rl.devices import resolve_device
from relax_rl.distributed import ALONE, Workers, check_same_settings, local_device, run_to_resume
from relax_rl.errors import CheckpointError, SettingsError
from relax_rl.experiments.batches import Batches
from relax_rl.experiments.data import Dataset, load_data
from relax_rl.experiments.vae.checkpoints import VaeCheckpoints
from relax_rl.experiments.vae.config import VaeConfig
from relax_rl.experiments.vae.evaluation import binary_images
from relax_rl.experiments.vae.trainer import Trainer
from relax_rl.loggers import truncate_csv
from relax_rl.runs import RunFolder, default_run_dir, read_record, versions, write_json
from relax_rl.settings.fields import check_resumable, from_json, to_json

__all__ = ["Clock", "Session", "open_session", "read_vae_config"]


class Clock:
    """Seconds spent in a run, over all resumptions."""

    def __init__(self, before: float = 0.0) -> None:
        self._before, self._started = before, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Up to this moment."""
        return self._before + time.perf_counter() - self._started


@dataclass
class Session:
    """A run that is ready to go on.

    Attributes:
        config, folder, data, trainer, checkpoints: of the run.
        clock: its time so far.
        valid: `[n, D]` images behind the validation bound of each row.
        workers: the processes that share every batch; the first of them writes the folder.
        resumed_from: the checkpoint it goes on from.
        best_bound, best_step: of the rows so far, by the validation bound.
    """

    config: VaeConfig
    folder: RunFolder
    data: Dataset
    trainer: Trainer
    checkpoints: VaeCheckpoints
    clock: Clock
    valid: Tensor
    workers: Workers = ALONE
    resumed_from: Path | None = None
    best_bound: float = -math.inf
    best_step: int = 0

    @property
    def first(self) -> bool:
        """Whether this worker is the one that logs, evaluates and saves."""
        return self.workers.rank == 0

    def save(self) -> Path:
        """Write a checkpoint of this moment, on the first worker; returns its path on all.

        Raises:
            RelaxRLError: the file cannot be written; the checkpoints before it stay.
        """
        path = None
        if self.first:
            path = str(self.checkpoints.save(self.trainer.step, *self.state()))
        return Path(self.workers.told(path))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint holds."""
        tensors, counters = self.trainer.state_dict()
        best = None if math.isinf(self.best_bound) else self.best_bound
        run = {"seconds": self.clock.seconds, "best_bound": best, "best_step": self.best_step, "data": self.data.name}
        return tensors, {"vae": counters, "run": run}


def open_session(config: VaeConfig, command: str, show: Callable[[str], None], workers: Workers = ALONE) -> Session:
    """Make a new run's folder, or go on with the run to resume; all workers come out with the same state.

    Args:
        config: the settings, the same on all workers.
        command: kept in `config.json`.
        show: told what takes long.
        workers: the processes that share every batch.

    Raises:
        SettingsError: settings that cannot work, or a folder that already holds a run.
        CheckpointError: a run that cannot be resumed.
        RelaxRLError: the data cannot be had, or the folder cannot be written.
    """
    _check_shares(config, workers)
    config = replace(config, resume=run_to_resume(config.resume, config.run_dir, _has_checkpoint, workers))
    return (_begin if config.resume is None else _resume)(config, command, show, workers)


def _check_shares(config: VaeConfig, workers: Workers) -> None:
    """Raises SettingsError if the workers' settings differ, or their batch cannot be shared out."""
    check_same_settings(to_json(config), workers)
    if config.batch_size % workers.count:
        raise SettingsError(
            f"batch_size is {config.batch_size}, which {workers.count} workers cannot share out evenly; "
            f"expected a multiple of {workers.count}"
        )


def _has_checkpoint(run_dir: str) -> bool:
    return bool(VaeCheckpoints(RunFolder(Path(run_dir)).checkpoints).newest_first())


def _begin(config: VaeConfig, command: str, show: Callable[[str], None], workers: Workers) -> Session:
    """A new run. Its folder is made last, so that settings that cannot work leave nothing behind."""
    first = workers.rank == 0
    if first and config.run_dir is not None:
        RunFolder(Path(config.run_dir)).check_unused()
    data = _load(config, show, workers)
    trainer, valid = _trainer(config, data, workers)
    path = Path(workers.told(str(config.run_dir or _default_path(config))))
    config = replace(config, run_dir=str(path))
    folder = RunFolder(path)
    if first:
        folder.create()
        _write_config(folder, config, data, {"command": command, "started": _now(), "resumed": []})
    return Session(config, folder, data, trainer, VaeCheckpoints(folder.checkpoints), Clock(), valid, workers)


def _resume(config: VaeConfig, command: str, show: Callable[[str], None], workers: Workers) -> Session:
    """A run that goes on from its newest good checkpoint, which the first worker reads.

    Raises:
        CheckpointError: there is no such run or checkpoint, or it was made from other data.
        SettingsError: settings that would make it another run, or nothing is left to do.
        RelaxRLError: the data cannot be had.
    """
    assert config.resume is not None
    path = Path(config.resume)
    folder = RunFolder(path)
    saved = read_vae_config(folder)
    if config.run_dir is not None and Path(config.run_dir).resolve() != path.resolve():
        raise SettingsError(f"run_dir is {config.run_dir!r}, but a resumed run stays in its folder, {str(path)!r}")
    config = replace(config, preset=saved.preset)
    check_resumable(saved, config)
    config = replace(config, resume=None, run_dir=str(path))
    checkpoints = VaeCheckpoints(folder.checkpoints)
    first = workers.rank == 0
    state: dict[str, Any] = {}
    if first:
        tensors, state, checkpoint = checkpoints.load_newest(
            lambda line: warnings.warn(line, UserWarning, stacklevel=2)
        )
    data = _load(config, show, workers)
    trainer, valid = _trainer(config, data, workers)
    try:
        if first:
            trainer.load_state_dict(tensors, state["vae"])
        state, found = workers.told([state, str(checkpoint) if first else ""])
        checkpoint, run = Path(found), state["run"]
        seconds, best_bound, best_step = float(run["seconds"]), run["best_bound"], int(run["best_step"])
        trained_on = str(run["data"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"checkpoint {checkpoint} is damaged: the state of its run cannot be read") from None
    if trained_on != data.name:
        raise CheckpointError(f"cannot resume on {data.name}: the run was trained on {trained_on}")
    trainer.follow_first()
    unevaluated = workers.told(config.eval_samples > 0 and not _evaluated_at(folder, trainer.step))
    if trainer.step > config.steps or (trainer.step == config.steps and not unevaluated):
        raise SettingsError(f"{path} has already taken {trainer.step} of {config.steps} steps; raise --steps to go on")
    if first:
        truncate_csv(folder.progress, max(0, trainer.step))
        record = read_record(folder)
        entry = {"step": trainer.step, "checkpoint": checkpoint.name, "time": _now(), "command": command}
        history = {name: record.get(name, "") for name in ("command", "started")}
        _write_config(folder, config, data, {**history, "resumed": [*record.get("resumed", []), entry]})
    best = -math.inf if best_bound is None else float(best_bound)
    clock = Clock(seconds)
    return Session(config, folder, data, trainer, checkpoints, clock, valid, workers, checkpoint, best, best_step)


def read_vae_config(folder: RunFolder) -> VaeConfig:
    """The settings of a run.

    Raises:
        CheckpointError: the folder holds no VAE run, or settings that cannot be read.
    """
    record = read_record(folder)
    if "vae" not in record:
        raise CheckpointError(f"{folder.path} holds no VAE run: {folder.config.name} has no settings of one")
    try:
        return from_json(VaeConfig, record["vae"])
    except SettingsError as error:
        raise CheckpointError(f"{folder.config} has settings that this relax_rl cannot take: {error}") from None


def _evaluated_at(folder: RunFolder, step: int) -> bool:
    """Whether the run's evaluation is there, and of this step; one that was stopped there has none."""
    try:
        return int(json.loads(folder.evaluation.read_text(encoding="utf-8"))["evaluated_at"]) == step
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _load(config: VaeConfig, show: Callable[[str], None], workers: Workers) -> Dataset:
    """The data; where they have to be downloaded, the first worker does so before the others look."""
    if workers.rank > 0:
        workers.told(None)
    data = load_data(config.data, data_dir=config.data_dir, binarization=config.binarization, show=show)
    if workers.rank == 0:
        workers.told(None)
    return data


def _trainer(config: VaeConfig, data: Dataset, workers: Workers) -> tuple[Trainer, Tensor]:
    """The trainer at its start, and the validation images behind each row."""
    device = local_device(resolve_device(config.device))
    mean = torch.from_numpy(data.mean_image.copy())
    batches = Batches(data.train, dynamic=data.dynamic, seed=config.seed, device=device)
    valid = binary_images(torch.from_numpy(data.valid), dynamic=data.dynamic, count=config.valid_images)
    return Trainer(config, mean, batches, device, workers), valid.to(device)


def _write_config(folder: RunFolder, config: VaeConfig, data: Dataset, history: Mapping[str, Any]) -> None:
    content = {"vae": to_json(config), "data": data.name, "versions": versions(("torch", "numpy")), **history}
    write_json(folder.config, content)


def _default_path(config: VaeConfig) -> Path:
    task = "-structured" if config.task == "structured" else ""
    return default_run_dir(f"vae-{config.data}-{config.architecture}{task}", config.estimator, config.seed)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
