"""A VAE run from its first step to its evaluation: learn, log, save, draw."""

from __future__ import annotations

import math
import signal
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from relax_rl import distributed
from relax_rl.devices import resolve_device
from relax_rl.displays import Display, make_display
from relax_rl.errors import TrainingDiverged, WorkerLost
from relax_rl.experiments.vae.checkpoints import part
from relax_rl.experiments.vae.config import VaeConfig
from relax_rl.experiments.vae.display import describe_bounds
from relax_rl.experiments.vae.evaluation import binary_images, bound
from relax_rl.experiments.vae.figures import draw_curves, draw_images, log_images
from relax_rl.experiments.vae.session import Session, open_session
from relax_rl.interruption import Interruption, interruptible
from relax_rl.loggers import CsvLogger, Logger, TensorBoardLogger
from relax_rl.runs import write_json
from relax_rl.serialization import load_state, save_state
from relax_rl.settings.fields import to_json
from relax_rl.training import set_threads

__all__ = ["COLUMNS", "VaeResult", "train_vae"]

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
    with ExitStack() as stack:
        device = str(distributed.local_device(resolve_device(config.device)))
        workers = stack.enter_context(distributed.joined(device=device))
        interruption = stack.enter_context(interruptible())  # while waiting for the others, a signal simply kills
        display = make_display(quiet=config.quiet or workers.rank > 0, describe=str)
        stack.callback(display.end)
        set_threads(config.threads, stack)
        session = open_session(config, command, display.say, workers)
        return _Loop(session, display, interruption, stack).run()


class _Loop:
    """The steps of a session, and what happens between them."""

    def __init__(self, session: Session, display: Display, interruption: Interruption, stack: ExitStack) -> None:
        self.session, self.display, self.interruption = session, display, interruption
        self.loggers = _loggers(session, stack) if session.first else []
        self.train_bound = self.valid_bound = math.nan
        self.last_saved = session.resumed_from

    def run(self) -> VaeResult:
        """Take all steps that are left, and evaluate."""
        try:
            return self._run()
        except WorkerLost as error:
            left = f"the last checkpoint is {self.last_saved}; go on with --resume {self.session.folder.path}"
            raise WorkerLost(f"{error}; {left if self.last_saved else 'no checkpoint had been written yet'}") from error

    def _run(self) -> VaeResult:
        session, config = self.session, self.session.config
        self.display.begin(_headline(session), step=max(0, session.trainer.step), total=config.steps)
        start = session.trainer.step
        stopped_by = self._learn()
        moved = session.trainer.step > start
        if moved and stopped_by in ("steps", "early stopping") and session.trainer.step % config.log_interval:
            self._log()
        checkpoint = self._save()
        evaluation = None
        if stopped_by in ("steps", "early stopping") and config.eval_samples and session.first:
            if stopped_by == "early stopping":
                self._take_best()
            self.display.say("evaluating ...")
            evaluation = _evaluate(session)
            write_json(session.folder.evaluation, evaluation)
        self._draw()
        session.workers.told(None)  # the others leave when the first one has done all this
        seconds = session.clock.seconds
        return VaeResult(session.folder.path, session.trainer.step, stopped_by, checkpoint, evaluation, seconds)

    def _learn(self) -> str:
        trainer, config = self.session.trainer, self.session.config
        if trainer.compiled is not None:
            self.display.say("the first step is compiled, which may take a while (--compile off)")
        while trainer.step < config.steps:
            trainer.take_step()
            if trainer.step % SHOW_EVERY == 0:
                self.display.update(max(0, trainer.step), describe_bounds(self.train_bound, self.valid_bound))
            if trainer.step > 0 and trainer.step % config.log_interval == 0:
                self._log()
                if self._stops_early():
                    return "early stopping"
            if name := self._interrupted():
                self.display.say(f"{name}: leaving with a checkpoint")
                return name
            if trainer.step > 0 and trainer.step % config.checkpoint_interval == 0:
                self._save()
                self._draw()
        return "steps"

    def _interrupted(self) -> str:
        """The signal that asks to leave, if any; several workers ask one another now and then only."""
        workers = self.session.workers
        received = float(self.interruption.signal or 0)
        if workers.count > 1 and self.session.trainer.step % SHOW_EVERY:
            return ""
        number = int(workers.gather(np.array([received])).max())
        return signal.Signals(number).name if number else ""

    def _log(self) -> None:
        """Write a row, after a look at whether its numbers are numbers."""
        session, trainer = self.session, self.session.trainer
        self.train_bound = trainer.take_train_bound()
        self._check(math.isfinite(self.train_bound), f"the bound of a batch before step {trainer.step} is no number")
        self.valid_bound = session.workers.told(bound(trainer.model, session.valid) if session.first else None)
        row = {"step": trainer.step, "seconds": session.clock.seconds, "train_bound": self.train_bound}
        row |= {**trainer.metrics(), "valid_bound": self.valid_bound}
        for logger in self.loggers:
            logger.log(row)
        if self.valid_bound > session.best_bound:
            session.best_bound, session.best_step = self.valid_bound, trainer.step
            if session.config.early_stopping and session.first:
                save_state(session.checkpoints.best, *session.state())

    def _stops_early(self) -> bool:
        patience = self.session.config.early_stopping
        return patience > 0 and self.session.trainer.step - self.session.best_step >= patience

    def _save(self) -> Path:
        trainer = self.session.trainer
        self._check(trainer.is_finite(), f"a parameter is no number at step {trainer.step}")
        self.last_saved = self.session.save()
        return self.last_saved

    def _check(self, good: bool, problem: str) -> None:
        if not good:
            kept = "no checkpoint had been written yet"
            where = f"the last good checkpoint is {self.last_saved}" if self.last_saved else kept
            raise TrainingDiverged(f"{problem}; lower --lr; {where}")

    def _take_best(self) -> None:
        """Put the parameters with the best validation bound into the model."""
        tensors, _ = load_state(self.session.checkpoints.best)
        self.session.trainer.model.load_state_dict(part(tensors, "model"))

    def _draw(self) -> None:
        session = self.session
        if not session.first:
            return
        draw_curves(session.folder.progress, session.folder.curve, _title(session), session.config.estimator)
        picture = draw_images(session.trainer.model, session.valid[:12], session.data.shape)
        log_images(picture, session.folder.path, session.trainer.step, tensorboard=session.config.tensorboard)


def _evaluate(session: Session) -> dict[str, Any]:
    """Bounds of the model as it is, by set and number of importance samples; dynamic data is binarised once for it."""
    data, model, config = session.data, session.trainer.model, session.config
    dynamic, device = data.dynamic, session.trainer.device
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
    step = session.best_step if config.early_stopping else session.trainer.step
    return {
        "data": data.name,
        "task": config.task,
        "model": config.architecture,
        "estimator": config.estimator,
        "step": step,
        "evaluated_at": session.trainer.step,
        "train_images": len(train),
        "bounds": bounds,
        "what": what,
        "seconds": session.clock.seconds,
    }


def _loggers(session: Session, stack: ExitStack) -> list[Logger]:
    loggers: list[Logger] = [CsvLogger(session.folder.progress, COLUMNS)]
    stack.callback(loggers[0].close)
    if session.config.tensorboard:
        from_step = session.trainer.step + 1 if session.resumed_from is not None else None
        settings = to_json(session.config)
        loggers.append(TensorBoardLogger(session.folder.path, from_step=from_step, settings=settings))
        stack.callback(loggers[1].close)
    return loggers


def _title(session: Session) -> str:
    config = session.config
    task = ", lower half from upper" if config.task == "structured" else ""
    return f"{session.data.name}{task} · {config.architecture} · {config.estimator} · seed {config.seed}"


def _headline(session: Session) -> str:
    line = f"{_title(session)} · {session.folder.path}"
    return line if session.resumed_from is None else f"{line} · resumed at step {session.trainer.step:,}"
