"""What happens after an update of the agent: counting, logging, evaluating, saving, stopping.

A callback is called with the agent and an `UpdateInfo`; one that returns False ends the training. Anything that does so
can stand beside these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from relax_rl.distributed import ALONE, Workers
from relax_rl.evaluation import evaluate
from relax_rl.interruption import Interruption
from relax_rl.loggers import mean_metrics

if TYPE_CHECKING:
    from relax_rl.agents import ActorCritic, UpdateInfo
    from relax_rl.checkpoints import CheckpointFolder, RunState
    from relax_rl.displays import Display
    from relax_rl.envs import VectorEnvs
    from relax_rl.loggers import Logger

__all__ = [
    "CountEpisodes",
    "Every",
    "LogEpisodes",
    "LogProgress",
    "PeriodicEvaluation",
    "SaveCheckpoints",
    "ShowProgress",
    "StopAtReturn",
    "StopWhenInterrupted",
]


class Every:
    """Tells when the next multiple of `interval` steps has been passed, going on from `step`."""

    def __init__(self, interval: int, step: int = 0) -> None:
        self._interval = interval
        self._next = (step // interval + 1) * interval

    def due(self, step: int) -> bool:
        """Whether a multiple has been passed since this was last true."""
        if step < self._next:
            return False
        self._next = (step // self._interval + 1) * self._interval
        return True


class CountEpisodes:
    """Takes finished episodes into the run's state. The others read it, so it stands first."""

    def __init__(self, run: RunState) -> None:
        self._run = run

    def __call__(self, agent: ActorCritic, info: UpdateInfo) -> None:
        if info.episodes:
            self._run.add(info.episodes)


class LogEpisodes:
    """Writes a row for every finished episode: the step of the update that learned from its end, return and length."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger

    def __call__(self, agent: ActorCritic, info: UpdateInfo) -> None:
        for episode in info.episodes:
            row = {"step": info.steps, "return": float(episode.return_), "length": int(episode.length)}
            self._logger.log(row)


class LogProgress:
    """Hands a row to the loggers once per interval: counters, and the mean of each metric since the last row.

    Args:
        workers: among which metrics are averaged; all of them call this, those without loggers too.
    """

    def __init__(
        self,
        run: RunState,
        loggers: Sequence[Logger],
        *,
        interval: int,
        step: int = 0,
        workers: Workers = ALONE,
    ) -> None:
        self._run, self._loggers, self._workers = run, loggers, workers
        self._every = Every(interval, step)
        self._history: list[Mapping[str, Any]] = []
        self._step, self._seconds = step, run.seconds

    def __call__(self, agent: ActorCritic, info: UpdateInfo) -> None:
        self._history.append(info.metrics)
        if self._every.due(info.steps):
            self.write(agent)

    def write(self, agent: ActorCritic) -> None:
        """Write a row for now, unless nothing has happened since the last one."""
        if not self._history:
            return
        seconds, metrics = self._run.seconds, self._over_workers(mean_metrics(self._history))
        if "estimate/variance_a2c" in metrics:
            # The ratio of the means: a mean of ratios would be that of the batches in which nothing happens.
            plain = max(metrics["estimate/variance_a2c"], 1e-30)
            metrics["estimate/variance_ratio"] = metrics["estimate/variance"] / plain
        row = {
            "step": agent.steps,
            "episodes": agent.episodes,
            "return_mean": self._run.return_mean,
            "seconds": seconds,
            "steps_per_second": (agent.steps - self._step) / max(seconds - self._seconds, 1e-9),
            "length_mean": self._run.length_mean,
            **metrics,
        }
        self._history.clear()
        self._step, self._seconds = agent.steps, seconds
        for logger in self._loggers:
            logger.log(row)

    def _over_workers(self, metrics: dict[str, float]) -> dict[str, float]:
        """Means over the workers, of those that have a number to tell."""
        if self._workers.count == 1:
            return metrics
        found = self._workers.gather(np.array(list(metrics.values())))
        told = ~np.isnan(found)
        totals, counts = np.where(told, found, 0.0).sum(0), told.sum(0)
        means = np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)
        return dict(zip(metrics, means.tolist(), strict=True))


class ShowProgress:
    """Tells the display where the run stands."""

    def __init__(self, run: RunState, display: Display) -> None:
        self._run, self._display = run, display
        self._mean = run.return_mean

    def __call__(self, agent: ActorCritic, info: UpdateInfo) -> None:
        if info.episodes:
            self._mean = self._run.return_mean
        self._display.update(info.steps, self._mean)


class PeriodicEvaluation:
    """Scores the agent on separate environments once per interval, and keeps the best one.

    Args:
        envs: nothing else uses them.
        save_best: called when the mean return is the highest so far.
    """

    def __init__(
        self,
        run: RunState,
        envs: VectorEnvs,
        loggers: Sequence[Logger],
        *,
        interval: int,
        episodes: int,
        seed: int,
        deterministic: bool,
        interruption: Interruption,
        save_best: Callable[[ActorCritic, RunState], object],
        step: int = 0,
    ) -> None:
        self._run, self._envs, self._loggers = run, envs, loggers
        self._every = Every(interval, step)
        self._episodes, self._seed, self._deterministic = episodes, seed, deterministic
        self._interruption, self._save_best = interruption, save_best

    def __call__(self, agent: ActorCritic, info: UpdateInfo) -> None:
        if not self._every.due(info.steps):
            return
        agent.watch("evaluation")
        self._evaluate(agent)
        agent.watch("logging")

    def _evaluate(self, agent: ActorCritic) -> None:
        scores = evaluate(
            agent,
            self._envs,
            episodes=self._episodes,
            seed=self._seed,
            deterministic=self._deterministic,
            should_stop=lambda: bool(self._interruption),
        )
        if scores is None:
            return
        row = {
            "step": agent.steps,
            "episodes": len(scores.returns),
            "return_mean": scores.mean,
            "return_std": scores.std,
            "length_mean": scores.length_mean,
            "seconds": self._run.seconds,
        }
        for logger in self._loggers:
            logger.log(row)
        if self._run.best_evaluation is None or scores.mean > self._run.best_evaluation:
            self._run.best_evaluation = scores.mean
            self._save_best(agent, self._run)


class SaveCheckpoints:
    """Saves the agent and the run's state once per interval.

    Args:
        after: called when one has been saved (to draw the curve, say).
    """

    def __init__(
        self,
        run: RunState,
        folder: CheckpointFolder,
        *,
        interval: int,
        step: int = 0,
        last: Path | None = None,
        after: Callable[[], object] | None = None,
    ) -> None:
        self._run, self._folder, self._after = run, folder, after
        self._every = Every(interval, step)
        self._step = step
        self.last = last

    def __call__(self, agent: ActorCritic, info: UpdateInfo) -> None:
        if self._every.due(info.steps):
            agent.watch("checkpoints")
            self.save(agent)
            agent.watch("logging")

    def save(self, agent: ActorCritic) -> Path:
        """Save now, unless the agent has not moved since it was last saved; returns the last checkpoint."""
        if self.last is None or agent.steps != self._step:
            self.last, self._step = self._folder.save(agent, self._run), agent.steps
            if self._after is not None:
                self._after()
        return self.last


class StopAtReturn:
    """Ends the training once the mean return of the last 100 episodes reaches `target`, and not before there are 100."""

    def __init__(self, run: RunState, target: float) -> None:
        self._run, self._target = run, target

    def __call__(self, agent: ActorCritic, info: UpdateInfo) -> bool:
        return not (info.episodes and self._run.window_full and self._run.return_mean >= self._target)


class StopWhenInterrupted:
    """Ends the training when a signal has asked for it."""

    def __init__(self, interruption: Interruption, display: Display) -> None:
        self._interruption, self._display = interruption, display

    def __call__(self, agent: ActorCritic, info: UpdateInfo) -> bool:
        if self._interruption.signal is not None:
            self._display.say(f"{self._interruption.signal.name} received: saving; once more leaves at once")
        return not self._interruption
