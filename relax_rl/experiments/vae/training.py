"""A VAE run from its first step to its evaluation: learn, log, save, draw."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from relax_rl.compute.serialization import write_json
from relax_rl.errors import TrainingDiverged
from relax_rl.experiments.vae.checkpoints import part
from relax_rl.experiments.vae.config import VaeConfig
from relax_rl.experiments.vae.evaluation import binary_images, bound
from relax_rl.experiments.vae.figures import draw_curves, draw_images, log_images
from relax_rl.experiments.vae.session import VaeSession, open_session
from relax_rl.runs.callbacks import SaveCheckpoints, interrupted_by
from relax_rl.runs.checkpoints import Checkpoint
from relax_rl.runs.session import training_process

__all__ = ["COLUMNS", "SHOW_EVERY", "VaeResult", "describe_bounds", "train_vae"]

COLUMNS = ("step", "seconds", "train_bound", "log_variance", "valid_bound")
"""The first columns of `progress.csv`."""

SHOW_EVERY = 20
"""Steps from one look at the clock to the next."""


@dataclass(frozen=True)
class VaeResult:
    """What came of a run.

    Attributes:
        run_dir: its folder.
        steps: taken, over all resumptions.
        stopped_by: "steps", "early stopping", "SIGINT" or "SIGTERM".
        checkpoint: the last one.
        evaluation: the content of `evaluation.json`; None if none was made.
        seconds: spent, over all resumptions.
    """

    run_dir: Path
    steps: int
    stopped_by: str
    checkpoint: Path
    evaluation: dict[str, Any] | None
    seconds: float


def train_vae(config: VaeConfig, *, command: str = "") -> VaeResult:
    """Train a sigmoid belief network and leave a run folder.

    Ctrl-C and SIGTERM end the run after the step at hand, with a checkpoint, when this runs in the main thread.

    Processes that torchrun started learn together: every batch is shared out among them, and the first of them logs,
    evaluates and saves. Where torchrun starts them anew after a failure (`--max-restarts`), a run that is found in
    `run_dir` is gone on with.

    Args:
        config: taken as it is.
        command: kept in `config.json`.

    Raises:
        SettingsError: settings that cannot work, or a folder that already holds a run.
        CheckpointError: a run that cannot be resumed.
        TrainingDiverged: something stopped being finite; the message names the last good checkpoint.
        WorkerLost: another process of the same run stopped or does not answer; the message names the last checkpoint.
        RelaxRLError: the data cannot be had, or the run's folder cannot be written.
    """
    with training_process(
        config.device, threads=config.threads, quiet=config.quiet, describe=describe_bounds
    ) as process:
        return _Loop(open_session(config, command, process)).run()


def describe_bounds(bounds: tuple[float, float]) -> str:
    """`train bound -100.12, validation -101.30`; nothing for what is not known yet."""
    named = zip(("train bound", "validation"), bounds, strict=True)
    return ", ".join(f"{name} {value:.2f}" for name, value in named if not math.isnan(value)) or "no bound yet"


class _Loop:
    """The steps of a session, and what happens between them."""

    def __init__(self, opened: VaeSession) -> None:
        self.opened, self.run_state, self.trainer = opened, opened.run, opened.run.trainer
        self.session, self.process = opened.session, opened.process
        self.config, self.workers = opened.session.config, opened.session.workers
        self.loggers = self.session.loggers(COLUMNS, self.process.stack)
        self.bounds = math.nan, math.nan
        self.save = SaveCheckpoints(
            opened.run,
            self.session.checkpoints,
            interval=self.config.checkpoint_interval,
            last=self.session.resumed_from,
        )

    def run(self) -> VaeResult:
        """Take all steps that are left, and evaluate."""
        with self.save.named_in_errors(self.session.folder.path):
            return self._run()

    def _run(self) -> VaeResult:
        config, trainer, display = self.config, self.trainer, self.process.display
        headline = self.session.headline(_title(self.opened))
        display.begin(headline, step=max(0, trainer.step), total=config.steps)
        start = trainer.step
        stopped_by = self._learn()
        finished = stopped_by in ("steps", "early stopping")
        if trainer.step > start and finished and trainer.step % config.log_interval:
            self._log()
        checkpoint = self.save.save()
        evaluation = None
        if finished and config.eval_samples and self.session.first:
            if stopped_by == "early stopping":
                self._take_best()
            display.say("evaluating ...")
            evaluation = _evaluate(self.opened)
            write_json(self.session.folder.evaluation, evaluation)
        self._draw()
        self.workers.from_first(None)  # the others leave when the first one has done all this
        seconds = self.run_state.clock.seconds
        return VaeResult(self.session.folder.path, trainer.step, stopped_by, checkpoint, evaluation, seconds)

    def _learn(self) -> str:
        trainer, config, display = self.trainer, self.config, self.process.display
        if trainer.compiled is not None:
            display.say("the first step is compiled, which may take a while (--compile off)")
        while trainer.step < config.steps:
            trainer.take_step()
            if trainer.step % SHOW_EVERY == 0:
                display.update(max(0, trainer.step), self.bounds)
            if trainer.step > 0 and trainer.step % config.log_interval == 0:
                self._log()
                if config.early_stopping and trainer.step - self.run_state.best_step >= config.early_stopping:
                    return "early stopping"
            # Several workers ask one another now and then only.
            if (self.workers.count == 1 or trainer.step % SHOW_EVERY == 0) and (name := self.process.signal()):
                display.say(interrupted_by(name))
                return name
            if self.save.every.due(trainer.step):
                self.save.save()
                self._draw()
        return "steps"

    def _log(self) -> None:
        """Write a row, after a look at whether its numbers are numbers."""
        run, trainer = self.run_state, self.trainer
        train_bound = trainer.take_train_bound()
        if not math.isfinite(train_bound):
            raise TrainingDiverged(f"the bound of a batch before step {trainer.step} is no number; lower --lr")
        valid_bound = self.workers.from_first(bound(trainer.model, self.opened.valid) if self.session.first else None)
        self.bounds = train_bound, valid_bound
        row = {"step": trainer.step, "seconds": run.clock.seconds, "train_bound": train_bound}
        row |= {**trainer.metrics(), "valid_bound": valid_bound}
        for logger in self.loggers:
            logger.log(row)
        if valid_bound > run.best_bound:
            run.best_bound, run.best_step = valid_bound, trainer.step
            if self.config.early_stopping and self.session.first:
                self.session.checkpoints.save_best(run)

    def _take_best(self) -> None:
        """Put the parameters with the best validation bound into the model."""
        best = Checkpoint.read(self.session.checkpoints.best)
        self.trainer.model.load_state_dict(part(best.tensors, "model"))

    def _draw(self) -> None:
        if not self.session.first:
            return
        folder, opened = self.session.folder, self.opened
        draw_curves(folder.progress, folder.curve, _title(opened), self.config.estimator)
        picture = draw_images(self.trainer.model, opened.valid[:12], opened.data.shape)
        log_images(picture, folder.path, self.trainer.step, tensorboard=self.config.tensorboard)


def _evaluate(opened: VaeSession) -> dict[str, Any]:
    """Bounds of the model as it is, by set and number of importance samples; dynamic data is binarised once for it."""
    data, trainer, config = opened.data, opened.run.trainer, opened.session.config
    model, dynamic, device = trainer.model, data.dynamic, trainer.device
    valid = binary_images(torch.from_numpy(data.valid), dynamic=dynamic).to(device)
    test = binary_images(torch.from_numpy(data.test), dynamic=dynamic).to(device)
    train = binary_images(torch.from_numpy(data.train), dynamic=dynamic, count=len(data.valid)).to(device)
    many = config.eval_samples
    bounds = {"train_bound_1": bound(model, train), "valid_bound_1": bound(model, valid)}
    bounds["test_bound_1"] = bound(model, test)
    if many > 1:
        bounds[f"valid_bound_{many}"] = bound(model, valid, samples=many)
        bounds[f"test_bound_{many}"] = bound(model, test, samples=many)
    what = {f"bound_{k}": f"E[log 1/{k} sum of {k} importance weights], nats per image" for k in sorted({1, many})}
    step = opened.run.best_step if config.early_stopping else trainer.step
    return {
        "data": data.name,
        "task": config.task,
        "model": config.architecture,
        "estimator": config.estimator,
        "step": step,
        "evaluated_at": trainer.step,
        "train_images": len(train),
        "bounds": bounds,
        "what": what,
        "seconds": opened.run.clock.seconds,
    }


def _title(opened: VaeSession) -> str:
    config = opened.session.config
    task = ", lower half from upper" if config.task == "structured" else ""
    return f"{opened.data.name}{task} · {config.architecture} · {config.estimator} · seed {config.seed}"
