"""A VAE run that is about to train: its settings, data and trainer, begun anew or gone on with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relax_rl.compute.distributed import Workers
from relax_rl.errors import CheckpointError, SettingsError, TrainingDiverged
from relax_rl.experiments.batches import Batches
from relax_rl.experiments.data import Dataset, load_data
from relax_rl.experiments.vae.config import VaeConfig
from relax_rl.experiments.vae.evaluation import binary_images
from relax_rl.experiments.vae.trainer import Trainer
from relax_rl.runs.folder import RunFolder, default_run_dir
from relax_rl.runs.record import object_in
from relax_rl.runs.session import Clock, Process, Session, open_run
from relax_rl.settings.fields import check_resumable, whole

__all__ = ["VaeRun", "open_session"]


class VaeRun:
    """A trainer, and what its run remembers beside it: data, the time it has taken, the best validation bound.

    Args:
        trainer: what learns.
        data: on what.
        valid: `[n, D]` images behind the validation bound of each row.

    Attributes:
        best_bound, best_step: of the rows so far.
    """

    def __init__(self, trainer: Trainer, data: Dataset, valid: Tensor) -> None:
        self.trainer, self.data, self.valid = trainer, data, valid
        self.clock = Clock()
        self.best_bound, self.best_step = -math.inf, 0

    @property
    def steps(self) -> int:
        """Taken so far; below 0 while only surrogate and baseline learn."""
        return self.trainer.step

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint holds.

        Raises:
            TrainingDiverged: a parameter is not finite.
        """
        if not self.trainer.is_finite():
            raise TrainingDiverged(f"a parameter is no number at step {self.steps}; lower --lr")
        tensors, counters = self.trainer.state_dict()
        best = None if math.isinf(self.best_bound) else self.best_bound
        run = {"seconds": self.clock.seconds, "best_bound": best, "best_step": self.best_step}
        return tensors, {"vae": counters, "run": {**run, "data": self.data.name}}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take back what `state` gave; without tensors, the trainer is left to take those of another worker.

        Raises:
            CheckpointError: it is damaged, or of a run with other settings or on other data.
        """
        try:
            run, counters = state["run"], state["vae"]
            seconds, best = float(run["seconds"]), run["best_bound"]
            best = None if best is None else float(best)
            best_step, trained_on = whole("best_step", run["best_step"], least=0), str(run["data"])
            if not all(map(math.isfinite, [seconds, best or 0.0])):
                raise ValueError("a number is not finite")
        except (KeyError, TypeError, ValueError, OverflowError):
            raise CheckpointError("the checkpoint is damaged: the state of its run cannot be read") from None
        self.clock, self.best_step = Clock(seconds), best_step
        self.best_bound = -math.inf if best is None else best
        if trained_on != self.data.name:
            raise CheckpointError(f"cannot resume on {self.data.name}: the run was trained on {trained_on}")
        if tensors:
            self.trainer.load_state_dict(tensors, counters)


def open_session(config: VaeConfig, command: str, process: Process) -> tuple[Session[VaeConfig], VaeRun]:
    """Make a new run's folder, or go on with the run to resume; all workers come out with the same state.

    A new run's folder is made last, so that settings that cannot work leave nothing behind.

    Args:
        config: the settings, the same on all workers.
        command: kept in `config.json`.
        process: what trains.

    Raises:
        SettingsError: settings that cannot work, a folder that already holds a run, or nothing is left to do.
        CheckpointError: a run that cannot be resumed.
        RelaxRLError: the data cannot be had, or the folder cannot be written.
    """
    workers = process.workers
    opening = open_run(
        config,
        workers=workers,
        section="vae",
        resumed=check_resumable,
    )
    config, checkpoint = opening.config, opening.checkpoint
    if config.batch_size % workers.count:
        raise SettingsError(
            f"batch_size is {config.batch_size}, which {workers.count} workers cannot share out evenly; "
            f"expected a multiple of {workers.count}"
        )
    if checkpoint is not None and checkpoint.tensors:
        _check_sizes(config, sum(x.numel() for x in checkpoint.tensors.values()), checkpoint.path)
    data = _load(config, process.display.say, workers)
    mean = torch.from_numpy(data.mean_image.copy())
    batches = Batches(data.train, dynamic=data.dynamic, seed=config.seed, device=process.device)
    valid = binary_images(torch.from_numpy(data.valid), dynamic=data.dynamic, count=config.valid_images)
    run = VaeRun(Trainer(config, mean, batches, process.device, workers), data, valid.to(process.device))
    if checkpoint is not None and opening.folder is not None:
        run.load(checkpoint.tensors, checkpoint.state)
        run.trainer.follow_first()
        evaluated = config.eval_samples == 0 or _evaluated_at(opening.folder, run.steps)
        opening.check_steps(run.steps, "steps", complete=workers.from_first(evaluated))
    task = "-structured" if config.task == "structured" else ""
    names = f"vae-{config.data}-{config.architecture}{task}", config.estimator, f"s{config.seed}"
    steps, packages = (0 if checkpoint is None else run.steps), ("torch", "numpy")
    session = opening.start(
        lambda here: default_run_dir(*names, within=here),
        process.stack,
        steps=steps,
        command=command,
        packages=packages,
        extra={"data": data.name},
    )
    return session, run


def _check_sizes(config: VaeConfig, numbers: int, path: Path) -> None:
    """Refuse settings whose layers alone need more numbers than a checkpoint holds, before any memory is given to them."""
    squares = {"width": config.width**2 * (config.layers - 1)}
    if config.nonlinear:
        squares["hidden_width"] = config.hidden_width**2
    if {"relax", "dlax"} & {config.estimator, *config.track_variances}:
        squares["surrogate_width"] = config.surrogate_width**2 * (config.surrogate_depth - 1)
    for name, needed in squares.items():
        if needed > numbers:
            raise CheckpointError(
                f"the checkpoint belongs to a run with other settings: {name} is {getattr(config, name)}, for which the "
                f"{numbers:,} numbers in {path} are too few"
            )


def _evaluated_at(folder: RunFolder, step: int) -> bool:
    """Whether the run's evaluation is there, and of this step; one that was stopped there has none."""
    return bool(object_in(folder.evaluation).get("evaluated_at") == step)


def _load(config: VaeConfig, show: Callable[[str], None], workers: Workers) -> Dataset:
    """The data; where they have to be downloaded, the first worker does so before the others look."""
    if workers.rank > 0:
        workers.from_first(None)
    data = load_data(config.data, data_dir=config.data_dir, binarization=config.binarization, show=show)
    if workers.rank == 0:
        workers.from_first(None)
    return data
