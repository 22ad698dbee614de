"""What the runs of a comparison have come to: read from their folders, summarised per environment and over all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from relax_rl.comparison.statistics import (
    bootstrap,
    improvement,
    iqm,
    median,
    performance_profile,
    solved_fraction,
)
from relax_rl.comparison.task import OUTCOME, read_outcome
from relax_rl.errors import CheckpointError, RelaxRLError, in_one_line
from relax_rl.runs import RunFolder
from relax_rl.runs.agent import WINDOW
from relax_rl.runs.loggers import read_csv
from relax_rl.runs.record import object_in

__all__ = ["POINTS", "UNSCORED", "RunResult", "Solved", "aggregate", "read_run", "read_variances", "summarise"]

UNSCORED = "without a score"
"""The status of a run that has ended as it should, but before any episode had: no failure, but told with them."""
POINTS = 200
"""Points of a summarised curve."""


@dataclass(frozen=True)
class Solved:
    """When a run reached the threshold: environment steps, finished episodes, seconds."""

    steps: float
    episodes: float
    seconds: float


NEVER = Solved(math.inf, math.inf, math.inf)


@dataclass(frozen=True)
class RunResult:
    """One run.

    Attributes:
        seed: its seed.
        status: "finished" or "diverged".
        steps, seconds: environment steps and the time they took, row by row.
        episode_steps, episode_returns: of every finished episode; the steps are those of the update after its end.
    """

    seed: int
    status: str
    steps: np.ndarray
    seconds: np.ndarray
    episode_steps: np.ndarray
    episode_returns: np.ndarray

    @property
    def end(self) -> tuple[float, float]:
        """Steps and seconds of the whole run."""
        return float(self.steps[-1]), float(self.seconds[-1])

    @property
    def means(self) -> np.ndarray:
        """Mean return of the last 100 episodes (of all, as long as there are fewer) after each episode."""
        totals = np.cumsum(np.concatenate([[0.0], self.episode_returns]))
        last = np.arange(1, len(totals))
        first = np.maximum(0, last - WINDOW)
        return np.asarray((totals[last] - totals[first]) / (last - first))

    @property
    def final(self) -> float:
        """Mean return of the last 100 training episodes."""
        return float(self.means[-1])

    @property
    def speed(self) -> float:
        """Environment steps per second over the whole run."""
        return self.end[0] / max(self.end[1], 1e-9)

    def solved(self, threshold: float) -> Solved:
        """When the mean return of the last 100 episodes first reached a threshold, and not before there were 100."""
        reached = np.flatnonzero(self.means[WINDOW - 1 :] >= threshold)
        if len(reached) == 0:
            return NEVER
        episodes = int(reached[0]) + WINDOW
        step = float(self.episode_steps[episodes - 1])
        return Solved(step, float(episodes), self.seconds_at(step))

    def seconds_at(self, step: float) -> float:
        """Seconds after that many steps, between the rows by interpolation."""
        return float(np.interp(step, [0.0, *self.steps], [0.0, *self.seconds]))

    def at_steps(self, grid: np.ndarray) -> np.ndarray:
        """Mean return at each step of a grid: NaN before the first episode, the last one after the end of the run."""
        finished = np.searchsorted(self.episode_steps, grid, side="right")
        return np.where(finished > 0, self.means[np.maximum(0, finished - 1)], np.nan)

    def at_seconds(self, grid: np.ndarray) -> np.ndarray:
        """Mean return at each second of a grid, likewise."""
        return self.at_steps(np.interp(grid, [0.0, *self.seconds], [0.0, *self.steps]))


def read_run(folder: Path, seed: int, *, ended: str = OUTCOME) -> RunResult | None:
    """The run in a folder; None if it has not ended by itself, as the file `ended` says, or no episode has finished in it.

    Raises:
        CheckpointError: it has ended, but its tables cannot be read.
    """
    outcome = read_outcome(folder, ended)
    if outcome is None or outcome["status"] not in ("finished", "diverged"):
        return None
    tables = RunFolder(folder)
    progress, episodes = _table(tables.progress, "step", "seconds"), _table(tables.episodes, "step", "return")
    finished = outcome["status"] == "finished"
    if not episodes["return"] and outcome.get("episodes") in (None, 0) and (tables.episodes.exists() or not finished):
        return None
    for path, table in ((tables.episodes, episodes), *([(tables.progress, progress)] if finished else [])):
        if not table["step"]:
            raise _damaged(path, "it has no rows")
    if not progress["step"]:  # it diverged before the first row
        progress = {"step": episodes["step"][-1:], "seconds": [float(outcome.get("seconds", 0.0))]}
    return RunResult(
        seed=seed,
        status=outcome["status"],
        steps=np.array(progress["step"]),
        seconds=np.array(progress["seconds"]),
        episode_steps=np.array(episodes["step"]),
        episode_returns=np.array(episodes["return"]),
    )


def _table(path: Path, *columns: str) -> dict[str, list[float]]:
    """These columns of a table, which gets its header with its first row."""
    try:
        table = read_csv(path) if path.exists() and path.stat().st_size else {name: [] for name in columns}
    except (OSError, RelaxRLError) as error:
        raise _damaged(path, in_one_line(error)) from None
    for name in columns:
        if name not in table:
            raise _damaged(path, f"it has no column {name!r}")
        if not np.isfinite(table[name]).all():
            raise _damaged(path, f"{name!r} has a cell that is no number")
    return {name: table[name] for name in columns}


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"the run has ended, but {path} cannot be read: {why}; remove {path.parent} to train it anew"
    )


def summarise(
    runs: Mapping[str, Sequence[RunResult]], *, total_steps: int, threshold: float | None, stops: bool = False
) -> dict[str, Any]:
    """One environment.

    Args:
        runs: of each contestant by label; contestants without runs are left out.
        total_steps: budget of a run.
        threshold: mean return that counts as solved, if there is one.
        stops: whether runs ended there: by final scores they could not be told apart.

    Returns:
        What `comparison.json` holds of it: per contestant every run's numbers and curves, curves and final scores with
        intervals; and the probability of improvement of each ordered pair, by the final score, or where runs stopped by the
        steps until then.
    """
    present = {label: list(found) for label, found in runs.items() if found}
    longest = max((run.end[1] for found in present.values() for run in found), default=0.0)
    contestants = {
        label: _contestant(found, total_steps=total_steps, longest=longest, threshold=threshold)
        for label, found in present.items()
    }
    finals = {label: [run.final for run in found] for label, found in present.items()}
    return {
        "total_steps": total_steps,
        "threshold": threshold,
        "contestants": contestants,
        "profiles": _profiles(finals),
        "improvement": _improvements([_standings(contestants, stops=stops)]),
    }


def aggregate(summaries: Mapping[str, Mapping[str, Any]], *, stops: bool = False) -> dict[str, Any] | None:
    """Over environments: the probability of improvement of each pair, averaged with equal weight; None for just one.

    It needs no common scale of returns, the choice of which would decide who wins. Contestants that lack an
    environment are left out. `stops` as in `summarise`.
    """
    if len(summaries) < 2:
        return None
    tables = [_standings(summary["contestants"], stops=stops) for summary in summaries.values()]
    return {"environments": list(summaries), "improvement": _improvements(tables)}


def read_variances(paths: Mapping[str, Path]) -> dict[str, Any]:
    """The measurements at frozen agents that there are, by stage; what is none can be made again, and is left out."""
    return {stage: found for stage, path in paths.items() if _is_measurement(found := object_in(path))}


def _is_measurement(found: Mapping[str, Any]) -> bool:
    """Whether it holds all that is told of a measurement; infinity is a text."""
    try:
        for entry in found["applied"].values():
            numbers = [entry["variance"]["value"], *(entry["ratio"][name] for name in ("value", "low", "high"))]
            numbers += [entry["squared_bias"]["value"]] if entry.get("squared_bias") else []
            list(map(float, numbers))
        float(found["squared_gradient_norm"])
        told = ("estimator", "batches", "fit_batches", "rows_per_batch")
        return "a2c" in found["applied"] and type(found["step"]) is int and all(name in found for name in told)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return False


def _contestant(
    runs: Sequence[RunResult], *, total_steps: int, longest: float, threshold: float | None
) -> dict[str, Any]:
    steps = np.linspace(0, total_steps, POINTS + 1)[1:]
    own_longest = max(run.end[1] for run in runs)
    seconds = np.linspace(0, longest, POINTS + 1)[1:]
    seconds = seconds[seconds <= own_longest * (1 + 1e-9)]
    entry: dict[str, Any] = {
        "runs": [
            {
                "seed": run.seed,
                "status": run.status,
                "steps": run.end[0],
                "seconds": run.end[1],
                "episodes": len(run.episode_returns),
                "final": run.final,
                "steps_per_second": run.speed,
                "solved": asdict(run.solved(threshold)) if threshold is not None else None,
                "curve": {"return": _rounded(run.at_steps(steps))},
            }
            for run in runs
        ],
        "curve": {"steps": steps.tolist(), **_curve(np.array([run.at_steps(steps) for run in runs]))},
        "wall_curve": {"seconds": seconds.tolist(), **_curve(np.array([run.at_seconds(seconds) for run in runs]))},
        "final": asdict(bootstrap(iqm, np.array([run.final for run in runs]))),
        "steps_per_second": float(np.median([run.speed for run in runs])),
        "solved": None,
    }
    if threshold is not None:
        entry["solved"] = _solving(runs, threshold)
    return entry


def _solving(runs: Sequence[RunResult], threshold: float) -> dict[str, Any]:
    """How many solved it and when; medians are over all runs, those that have not solved it counting as later."""
    found = [run.solved(threshold) for run in runs]
    entry: dict[str, Any] = {
        "runs": len(runs),
        "solved": sum(math.isfinite(solved.steps) for solved in found),
    }
    ends = {"steps": [run.end[0] for run in runs], "episodes": [float(len(run.episode_returns)) for run in runs]}
    ends["seconds"] = [run.end[1] for run in runs]
    for unit, last in ends.items():
        times = [getattr(solved, unit) for solved in found]
        at, share = solved_fraction(times)
        entry[unit] = {
            "median": asdict(bootstrap(median, np.array(times))),
            "fraction": {"at": [*at, max(max(last), at[-1])], "solved": [*share, share[-1]]},
        }
    return entry


def _curve(table: np.ndarray) -> dict[str, Any]:
    """Interquartile mean of `[runs, points]` with its intervals, where every run is known."""
    whole = np.isfinite(table).all(axis=0)
    lines = np.full((3, table.shape[1]), np.nan)
    if whole.any():
        found = bootstrap(iqm, table[:, whole])
        lines[:, whole] = found.value, found.low, found.high
    return {name: _rounded(line) for name, line in zip(("iqm", "low", "high"), lines, strict=True)}


def _profiles(finals: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Share of runs whose final score is above each of a grid of scores."""
    scores = [score for own in finals.values() for score in own]
    if not scores:
        return {}
    margin = 0.02 * (max(scores) - min(scores)) or 1.0
    grid = np.linspace(min(scores) - margin, max(scores) + margin, POINTS)
    found: dict[str, Any] = {"scores": _rounded(grid), "contestants": {}}
    for label, own in finals.items():
        profile = performance_profile(own, grid)
        found["contestants"][label] = {name: _rounded(line) for name, line in asdict(profile).items()}
    return found


def _standings(contestants: Mapping[str, Mapping[str, Any]], *, stops: bool) -> dict[str, list[float]]:
    """What the runs of each contestant are compared by, the higher the better.

    That is the final score. Where runs stop once they have solved the task, their final scores are all just above the threshold;
    there it is the place from the last: those that have not solved it by their final score, then the others by their steps.
    """
    if not stops:
        return {label: [run["final"] for run in found["runs"]] for label, found in contestants.items()}

    def key(run: Mapping[str, Any]) -> tuple[bool, float]:
        steps = run["solved"]["steps"]
        return (True, -steps) if math.isfinite(steps) else (False, run["final"])

    known = {key(run) for found in contestants.values() for run in found["runs"]}
    places = {k: math.nan if math.isnan(k[1]) else float(sum(other < k for other in known)) for k in known}
    return {label: [places[key(run)] for run in found["runs"]] for label, found in contestants.items()}


def _improvements(tables: Sequence[Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """P(X > Y) of the standings for each pair of contestants that stand in every table, and the fewest runs of either."""
    labels = [label for label in tables[0] if all(label in table for table in tables)] if tables else []
    found = []
    for place, x in enumerate(labels):
        for y in labels[place + 1 :]:
            runs = min(len(table[label]) for table in tables for label in (x, y))
            interval = improvement([(table[x], table[y]) for table in tables])
            found.append({"x": x, "y": y, "runs": runs, **asdict(interval)})
    return found


def _rounded(values: np.ndarray) -> list[float]:
    """Six digits are more than any curve holds."""
    return [float(f"{value:.6g}") for value in values]
