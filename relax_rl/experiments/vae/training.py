"""A VAE run from its first step to its evaluation: learn, log, save, draw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from relax_rl.compute.serialization import part, write_json
from relax_rl.errors import CheckpointError, TrainingDiverged
from relax_rl.experiments.vae.config import VaeConfig
from relax_rl.experiments.vae.evaluation import binary_images, bound
from relax_rl.experiments.vae.figures import draw_curves, draw_images, image_rows, log_images, write_images
from relax_rl.experiments.vae.session import VaeRun, open_session
from relax_rl.runs.callbacks import SaveCheckpoints, interrupted_by
from relax_rl.runs.checkpoints import Checkpoint
from relax_rl.runs.folder import RunFolder
from relax_rl.runs.interruption import exit_code
from relax_rl.runs.loggers import Logger, read_csv
from relax_rl.runs.plotting import never_fatal
from relax_rl.runs.reporting import finish_loggers, loggers_named, require_loggers
from relax_rl.runs.session import Process, Session, training_process

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
        stopped_by: "steps", "early stopping", "SIGINT", "SIGTERM" or "SIGHUP".
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
    """Train a sigmoid belief network and leave a run folder; returns what came of it.

    Ctrl-C, SIGTERM and SIGHUP end the run after the step at hand, with a checkpoint, when this runs in the main thread.

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
    require_loggers(config, config.logger, config.track)
    with training_process(
        config.device, threads=config.threads, quiet=config.quiet, describe=describe_bounds
    ) as process:
        session, run = open_session(config, command, process)
        loop = _Loop(session, run, process)
        with loop.save.named_in_errors(Path(str(session.config.run_dir))):
            return loop.learn()


def describe_bounds(bounds: tuple[float, float]) -> str:
    """`train bound -100.12, validation -101.30`; nothing for what is not known yet."""
    named = zip(("train bound", "validation"), bounds, strict=True)
    return ", ".join(f"{name} {value:.2f}" for name, value in named if not math.isnan(value)) or "no bound yet"


class _Loop:
    """The steps of a session, and what happens between them."""

    def __init__(self, session: Session[VaeConfig], run: VaeRun, process: Process) -> None:
        self.session, self.run, self.process = session, run, process
        self.config, self.trainer, self.workers = session.config, run.trainer, session.workers
        theirs = self._theirs() if session.first else []
        self.loggers = session.loggers(COLUMNS, process.stack, theirs, outcome="valid_bound")
        self.bounds = math.nan, math.nan
        if self.config.early_stopping and run.best_bound > -math.inf:
            kept = self.workers.from_first(self._best_is_kept() if session.first else None)
            if not kept:  # by a session without early stopping, which begins here then
                run.best_bound, run.best_step = -math.inf, run.trainer.step
        self.save = SaveCheckpoints(
            run, session.checkpoints, interval=self.config.checkpoint_interval, last=session.resumed_from
        )

    def _best_is_kept(self) -> bool:
        """Whether the model with the highest bound so far is on disk, as it is while early stopping is on."""
        with suppress(CheckpointError, KeyError, TypeError):
            return bool(Checkpoint.read(self.session.checkpoints.best).state["run"]["best_step"] == self.run.best_step)
        return False

    def _theirs(self) -> list[Logger]:
        """Trackers, and loggers of the user's own."""
        config, session = self.config, self.session
        how: dict[str, Any] = {"logger": config.logger, "track": config.track}
        how["project"] = config.track_project or f"vae-{config.data}"
        return loggers_named(config, session.folder, **how, resumed=session.resumed_from is not None)

    def learn(self) -> VaeResult:
        """Take all steps that are left, and evaluate."""
        config, trainer, session, display = self.config, self.trainer, self.session, self.process.display
        display.begin(session.headline(self._title()), step=max(0, trainer.step), total=config.steps)
        stopped_by = self._take_steps()
        finished = stopped_by in ("steps", "early stopping")
        if stopped_by == "early stopping":
            display.done("stopped early")
        checkpoint = self.save.save()
        evaluation = None
        if finished and config.eval_samples and session.first:
            if config.early_stopping and session.checkpoints.best.exists():
                best = Checkpoint.read(session.checkpoints.best)
                trainer.model.load_state_dict(part(best.tensors, "model/"))
            display.say("evaluating ...")
            evaluation = _evaluate(self.run)
            write_json(session.folder.evaluation, evaluation)
        self._draw()
        self._tell_outcome(evaluation, stopped_by)
        self.workers.from_first(None)  # the others leave when the first one has done all this
        seconds = self.run.clock.seconds
        run_dir = Path(str(config.run_dir))
        checkpoint = RunFolder(run_dir).checkpoints / checkpoint.name
        return VaeResult(run_dir, trainer.step, stopped_by, checkpoint, evaluation, seconds)

    def _take_steps(self) -> str:
        """Learn, until something ends it; returns what."""
        trainer, config, display = self.trainer, self.config, self.process.display
        while trainer.step < config.steps:
            trainer.take_step()
            if trainer.step % SHOW_EVERY == 0:
                display.update(max(0, trainer.step), self.bounds)
            due = trainer.step > 0 and trainer.step % config.log_interval == 0
            if due or trainer.step == config.steps:
                self._log()  # before the checkpoint that counts the row
                if due and config.early_stopping and trainer.step - self.run.best_step >= config.early_stopping:
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
        run, trainer = self.run, self.trainer
        train_bound = trainer.take_train_bound()
        if not math.isfinite(train_bound):
            raise TrainingDiverged(f"the bound of a batch before step {trainer.step} is no number; lower --lr")
        valid_bound = self.workers.from_first(bound(trainer.model, run.valid) if self.session.first else None)
        self.bounds = train_bound, valid_bound
        row = {"step": trainer.step, "seconds": run.clock.seconds, "train_bound": train_bound}
        row |= {**trainer.metrics(), "valid_bound": valid_bound}
        for logger in self.loggers:
            logger.log(row)
        if valid_bound > run.best_bound:
            run.best_bound, run.best_step = valid_bound, trainer.step
            if self.config.early_stopping and self.session.first:
                self.session.checkpoints.save_best(run)

    def _tell_outcome(self, evaluation: Mapping[str, Any] | None, stopped_by: str) -> None:
        """Tell the loggers how the run has ended: the bound on the validation set, and those of the evaluation if there is one."""
        found = [] if not self.session.first else read_csv(self.session.folder.progress).get("valid_bound", [])
        known = [x for x in found if not math.isnan(x)]
        outcome = {"final/valid_bound": known[-1], "best/valid_bound": max(known)} if known else {}
        if evaluation is not None:
            outcome |= {f"evaluation/{name}": x for name, x in evaluation["bounds"].items()}
        telling = self.loggers, self.trainer.step, outcome, self.session.folder, self.process.display
        finish_loggers(*telling, code=exit_code(stopped_by))

    def _draw(self) -> None:
        if not self.session.first:
            return
        folder = self.session.folder
        with never_fatal("a figure"):
            draw_curves(folder.progress, folder.curve, self._title(), self.config.estimator)
            picture = draw_images(self.trainer.model, self.run.valid[:12], self.run.data.shape)
            title = f"{self._title()} · {self.trainer.step:,} steps"
            write_images(picture, folder.path / "images.png", image_rows(self.config.task), title)
            if self.config.tensorboard:
                log_images(picture, folder.path, self.trainer.step)

    def _title(self) -> str:
        config = self.config
        task = ", lower half from upper" if config.task == "structured" else ""
        return f"{self.run.data.name}{task} · {config.architecture} · {config.estimator} · seed {config.seed}"


def _evaluate(run: VaeRun) -> dict[str, Any]:
    """Bounds of the model as it is, by set and number of importance samples; dynamic data is binarised once for it."""
    data, trainer, config = run.data, run.trainer, run.trainer.config
    sets = {"train": data.train, "valid": data.valid, "test": data.test}
    images = {
        name: binary_images(
            torch.from_numpy(pixels), dynamic=data.dynamic, count=len(data.valid) if name == "train" else 0
        ).to(trainer.device)
        for name, pixels in sets.items()
    }
    many = config.eval_samples
    bounds = {f"{name}_bound_1": bound(trainer.model, x) for name, x in images.items()}
    if many > 1:
        for name in ("valid", "test"):
            bounds[f"{name}_bound_{many}"] = bound(trainer.model, images[name], samples=many)
    return {
        "data": data.name,
        "task": config.task,
        "model": config.architecture,
        "estimator": config.estimator,
        "step": run.best_step if config.early_stopping else trainer.step,
        "evaluated_at": trainer.step,
        "train_images": len(images["train"]),
        "bounds": bounds,
        "what": {
            f"bound_{k}": f"E[log 1/{k} sum of {k} importance weights], nats per image" for k in sorted({1, many})
        },
        "seconds": run.clock.seconds,
    }
