"""What happens after an update of the agent: counting, logging, evaluating, saving, stopping.

A callback is called with the agent and an `UpdateInfo`; one that returns False ends the training. Anything that does so
can stand beside these.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from relax_rl.compute.distributed import ALONE, Workers
from relax_rl.errors import EnvironmentFault, LoggerFault, RelaxRLError, TrainingDiverged, WorkerLost, add_note
from relax_rl.runs.agent import OVER_EPISODES, AgentRun
from relax_rl.runs.checkpoints import CheckpointFolder, Trainable
from relax_rl.runs.displays import Display
from relax_rl.runs.evaluation import Scores
from relax_rl.runs.folder import RunFolder
from relax_rl.runs.interruption import Interruption
from relax_rl.runs.loggers import Logger, mean_metrics
from relax_rl.runs.record import note

if TYPE_CHECKING:
    from relax_rl.agents import ActorCritic, Callback, UpdateInfo

__all__ = [
    "LOOKS",
    "CountEpisodes",
    "Every",
    "KeepBest",
    "LogProgress",
    "PeriodicEvaluation",
    "SaveCheckpoints",
    "at_most_every",
    "interrupted_by",
    "note_compiled",
    "show_progress",
    "stop_at_return",
    "stop_when_interrupted",
]

LOOKS = 50
"""How often in a run, at most, it is asked whether the agent is the best so far."""

_NONE_YET = "no checkpoint had been written yet"


class Every:
    """Tells when the next multiple of `interval` steps has been passed, going on from `step`."""

    def __init__(self, interval: int, step: int = 0) -> None:
        self._interval, self._next = interval, (step // interval + 1) * interval

    def due(self, step: int) -> bool:
        """Whether a multiple has been passed since this was last true."""
        if step < self._next:
            return False
        self._next = (step // self._interval + 1) * self._interval
        return True


def at_most_every(seconds: float, call: Callable[[], object]) -> Callable[[], None]:
    """A function that makes the call at most once in so many seconds, the first time when as many have passed."""
    last = time.monotonic()

    def due() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            call()
            last = time.monotonic()

    return due


class CountEpisodes:
    """Takes finished episodes into the run's state before anybody else hears of them, and into tables: a row for each, with the step of the update that learned from its end, return and length."""

    def __init__(self, run: AgentRun, *tables: Logger) -> None:
        self._run, self._tables = run, tables

    def on_count(self, agent: ActorCritic, info: UpdateInfo) -> None:
        self._run.add(info.episodes)
        for table, episode in product(self._tables, info.episodes):
            table.log({"step": info.steps, "return": float(episode.return_), "length": int(episode.length)})


def show_progress(run: AgentRun, display: Display) -> Callback:
    """Keeps the display up to date."""
    status = run.status

    def show(agent: ActorCritic, info: UpdateInfo) -> None:
        nonlocal status
        if info.episodes:
            status = run.status
        display.update(info.steps, status)

    return show


def note_compiled(folder: RunFolder, agent: ActorCritic) -> Callback:
    """Keeps in `config.json` from which update on gradients came from compiled code: equal records give equal bits."""
    noted = agent.compiled_from

    def look(agent: ActorCritic, info: UpdateInfo) -> None:
        nonlocal noted
        if agent.compiled_from != noted:
            noted = agent.compiled_from
            note(folder, compiled_from=noted)

    return look


def stop_at_return(run: AgentRun, target: float) -> Callback:
    """Ends the training once the mean return of the last 100 episodes reaches `target`, and not before there are 100."""
    return lambda agent, info: not (info.episodes and run.reaches(target))


def stop_when_interrupted(interruption: Interruption, display: Display) -> Callback:
    """Ends the training when a signal has asked for it."""

    def heed(agent: ActorCritic, info: UpdateInfo) -> bool:
        if interruption.signal is not None:
            display.say(interrupted_by(interruption.signal.name))
        return not interruption

    return heed


def interrupted_by(name: str) -> str:
    """What is said when a signal has asked to leave."""
    return f"{name} received: saving; once more leaves at once"


class LogProgress:
    """Hands a row to the loggers once per interval: counters, and the mean of each metric since the last row.

    Args:
        workers: among which metrics are averaged; all of them call this, those without loggers too.

    Attributes:
        every: when the next one is due.
    """

    def __init__(self, run: AgentRun, loggers: Sequence[Logger], *, interval: int, workers: Workers = ALONE) -> None:
        self._run, self._loggers, self._workers = run, loggers, workers
        self.every = Every(interval, run.steps)
        self._history: list[Mapping[str, Any]] = []
        self._step, self._seconds = run.steps, run.clock.seconds

    def __call__(self, agent: ActorCritic, info: UpdateInfo) -> None:
        self._history.append(info.metrics)
        if self.every.due(info.steps):
            self.write()

    def write(self) -> None:
        """Write a row for now, unless nothing has happened since the last one."""
        if (step := self._run.steps) == self._step:
            return
        seconds, means = self._run.clock.seconds, mean_metrics(self._history)
        metrics = self._over_workers({name: x for name, x in means.items() if not name.startswith(OVER_EPISODES)})
        if "estimate/variance_a2c" in metrics:
            # The ratio of the means: a mean of ratios would be that of the batches in which nothing happens.
            plain = max(metrics["estimate/variance_a2c"], 1e-30)
            metrics["estimate/variance_ratio"] = metrics["estimate/variance"] / plain
        row = {
            "step": step,
            "episodes": self._run.agent.episodes,
            "return_mean": self._run.return_mean,
            "seconds": seconds,
            "steps_per_second": (step - self._step) / max(seconds - self._seconds, 1e-9),
            "length_mean": self._run.length_mean,
            **metrics,
            **self._run.info_means(),
        }
        self._history.clear()
        self._step, self._seconds = step, seconds
        for logger in self._loggers:
            logger.log(row)

    def _over_workers(self, metrics: dict[str, float]) -> dict[str, float]:
        """Means over the workers, of those that have a number."""
        if self._workers.count == 1:
            return metrics
        found = self._workers.gather(np.array(list(metrics.values())))
        known = ~np.isnan(found)
        totals, counts = np.where(known, found, 0.0).sum(0), known.sum(0)
        means = np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)
        return dict(zip(metrics, means.tolist(), strict=True))


class PeriodicEvaluation:
    """Scores the agent once per interval, and keeps the best one.

    Args:
        run: of the agent.
        interval: steps between two evaluations.
        play: plays the episodes; None if that was broken off.
        log: takes the row of an evaluation.
        save_best: called when the mean return is the highest so far.
    """

    def __init__(
        self,
        run: AgentRun,
        *,
        interval: int,
        play: Callable[[], Scores | None],
        log: Callable[[Mapping[str, float]], object],
        save_best: Callable[[], object],
    ) -> None:
        self._run, self._play, self._log, self._save_best = run, play, log, save_best
        self._every = Every(interval, run.steps)

    def __call__(self, agent: ActorCritic, info: UpdateInfo) -> None:
        if not self._every.due(info.steps):
            return
        agent.watch("evaluation")
        scores = self._play()
        if scores is not None:
            self._take(scores)
        agent.watch("logging")

    def _take(self, scores: Scores) -> None:
        row = {
            "step": self._run.steps,
            "episodes": len(scores.returns),
            "return_mean": scores.mean,
            "return_std": scores.std,
            "length_mean": scores.length_mean,
            "seconds": self._run.clock.seconds,
            **scores.info_means,
        }
        self._log(row)
        best = self._run.best_evaluation
        if math.isfinite(scores.mean) and (best is None or scores.mean > best):
            self._run.best_evaluation, self._run.best_step = scores.mean, self._run.steps
            self._save_best()


class KeepBest:
    """Keeps the agent with the highest mean return of the last 100 training episodes; looks once per interval.

    Args:
        run: of the agent.
        interval: steps between two looks.
        save_best: called when the mean is the highest so far.
    """

    def __init__(self, run: AgentRun, *, interval: int, save_best: Callable[[], object]) -> None:
        self._run, self._save_best = run, save_best
        self._every = Every(interval, run.steps)

    def __call__(self, agent: ActorCritic, info: UpdateInfo) -> None:
        if self._every.due(info.steps):
            agent.watch("checkpoints")
            self.look()
            agent.watch("logging")

    def look(self) -> None:
        """Save the agent, if it is the best so far and 100 episodes tell."""
        run = self._run
        if run.reaches(-math.inf) and (run.best_return is None or run.return_mean > run.best_return):
            run.best_return, run.best_step = run.return_mean, run.steps
            self._save_best()


class SaveCheckpoints:
    """Saves what is trained once per interval.

    Args:
        trained: what is saved.
        folder: where to.
        interval: steps between two checkpoints.
        last: the checkpoint of the present step, if there is one.
        after: called when one has been saved (to draw the curve, say).

    Attributes:
        every: when the next one is due.
        last: the last checkpoint, if there is one.
    """

    def __init__(
        self,
        trained: Trainable,
        folder: CheckpointFolder,
        *,
        interval: int,
        last: Path | None = None,
        after: Callable[[], object] | None = None,
    ) -> None:
        self._trained, self._folder, self._after = trained, folder, after
        self._step, self.last = trained.steps, last
        self.every = Every(interval, max(0, self._step))

    def __call__(self, agent: ActorCritic, info: UpdateInfo) -> None:
        if self.every.due(info.steps):
            agent.watch("checkpoints")
            self.save()
            agent.watch("logging")

    def save(self) -> Path:
        """Save now, unless nothing has moved since it was last saved; returns the last checkpoint."""
        if self.last is None or self._trained.steps != self._step:
            self.last, self._step = self._folder.save(self._trained), self._trained.steps
            if self._after is not None:
                self._after()
        return self.last

    @contextmanager
    def named_in_errors(self, run_dir: Path, again: str = "") -> Iterator[None]:
        """Have errors that end the training in this block say what is left of the run, which is saved where it is good.

        Args:
            run_dir: the run's folder, as it is to be shown.
            again: further options that going on with it needs.

        Raises:
            TrainingDiverged, WorkerLost, EnvironmentFault, LoggerFault: as raised inside, with the last checkpoint named.
        """
        try:
            yield
        except WorkerLost as error:
            left = f"the last checkpoint is {self._told(run_dir)}; go on with --resume {run_dir}{again}"
            raise WorkerLost(f"{error}; {left if self.last else _NONE_YET}") from error
        except TrainingDiverged as error:
            left = f"the last good checkpoint is {self._told(run_dir)}"
            raise TrainingDiverged(f"{error}; {left if self.last else _NONE_YET}") from error
        except (EnvironmentFault, LoggerFault) as error:
            self.save()
            left = f"saved as {self._told(run_dir)}; go on with --resume {run_dir}{again}"
            raise type(error)(f"{error}; {left}") from error
        except RelaxRLError:
            raise
        except Exception as error:  # of an environment's or a callback's own: the agent is as it was before it
            with suppress(RelaxRLError):
                self.save()
                add_note(error, f"saved as {self._told(run_dir)}; go on with --resume {run_dir}{again}")
            raise

    def _told(self, run_dir: Path) -> Path:
        return RunFolder(run_dir).checkpoints / (self.last.name if self.last is not None else "")
