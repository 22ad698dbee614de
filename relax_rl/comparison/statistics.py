"""Statistics of a few runs: interquartile means, probabilities of improvement, performance profiles, times to solve.

As in Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice": intervals are
percentiles of a bootstrap that resamples runs within each environment (stratified), 95% of it.

A score of NaN is no score: what depends on it is NaN, or refused; it never counts as high or low.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "Interval",
    "aggregates",
    "bootstrap",
    "improvement",
    "improvement_matrix",
    "iqm",
    "median",
    "normalised",
    "optimality_gap",
    "performance_profile",
    "solved_fraction",
    "stratified",
]

DRAWS = 2_000
"""Bootstrap samples."""

_TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class Interval:
    """A number (or an array of them), `value`, and its bootstrap interval of 95%, from `low` to `high`."""

    value: Any
    low: Any
    high: Any


def iqm(scores: np.ndarray, axis: int = 0) -> np.ndarray:
    """Interquartile mean along an axis: the mean without the lowest and the highest quarter; NaN where any score is.

    Of n scores floor(n/4) are dropped at either end, so that it is the plain mean for fewer than four.

    Args:
        scores: an array.
        axis: that the result no longer has.
    """
    ordered = _ordered(scores, axis)
    cut = len(ordered) // 4
    result: np.ndarray = ordered[cut : len(ordered) - cut].mean(axis=0)
    return result


def median(times: np.ndarray, axis: int = 0) -> np.ndarray:
    """Median along an axis, where infinity stands for never; NaN where any time is.

    Args:
        times, axis: as `scores` and `axis` of `iqm`.
    """
    ordered = _ordered(times, axis)
    middle = len(ordered) // 2
    result: np.ndarray = (ordered[(len(ordered) - 1) // 2] + ordered[middle]) / 2
    return result


def _ordered(scores: np.ndarray, axis: int) -> np.ndarray:
    """Sorted along an axis, which comes first; NaN throughout where one of them is, which sorting would take for the best."""
    ordered = np.sort(np.moveaxis(np.asarray(scores, dtype=np.float64), axis, 0), axis=0)
    return np.where(np.isnan(ordered[-1]), np.nan, ordered)


def bootstrap(
    statistic: Callable[..., np.ndarray], scores: np.ndarray, *, seed: int = 0, draws: int = DRAWS
) -> Interval:
    """A statistic of runs with its interval.

    Args:
        statistic: of an array and an axis, over which runs vary; `iqm` or `median`.
        scores: `[runs, ...]`, resampled along the first axis; infinity is a number like others.
        seed: of the resampling.
        draws: bootstrap samples.
    """
    scores = np.asarray(scores, dtype=np.float64)
    rows = np.random.default_rng(seed).integers(len(scores), size=(draws, len(scores)))
    found = statistic(scores[rows], axis=1)
    # Without interpolation, which infinity would turn into NaN.
    low, high = np.quantile(found, _TAILS, axis=0, method="inverted_cdf")
    return Interval(statistic(scores, axis=0), low, high)


def improvement_matrix(x: Sequence[float], y: Sequence[float]) -> np.ndarray:
    """`[len(x), len(y)]` 1 where a run of X is better than one of Y, 1/2 where they are equal, else 0; NaN beside NaN.

    Args:
        x, y: scores of the runs.
    """
    left, right = np.asarray(x, dtype=np.float64)[:, None], np.asarray(y, dtype=np.float64)[None, :]
    return np.where(np.isnan(left) | np.isnan(right), np.nan, np.where(left == right, 0.5, left > right))


def improvement(pairs: Sequence[tuple[Sequence[float], Sequence[float]]], *, seed: int = 0) -> Interval:
    """P(X > Y) with its interval, averaged over environments with equal weight.

    That is for a run of X and a run of Y drawn at random, ties counting half: Mann-Whitney's U over its maximum.

    Args:
        pairs: the scores of X's and of Y's runs, one pair per environment; resampled independently.
        seed: of the resampling.
    """
    rng = np.random.default_rng(seed)
    value, found = 0.0, np.zeros(DRAWS)
    for x, y in pairs:
        better = improvement_matrix(x, y)
        n, m = better.shape
        counts_x = rng.multinomial(n, np.full(n, 1 / n), size=DRAWS)
        counts_y = rng.multinomial(m, np.full(m, 1 / m), size=DRAWS)
        value += float(better.mean()) / len(pairs)
        found += np.einsum("dn,nm,dm->d", counts_x, better, counts_y) / (n * m * len(pairs))
    low, high = np.quantile(found, _TAILS)
    return Interval(value, float(low), float(high))


def performance_profile(scores: Sequence[float], thresholds: np.ndarray, *, seed: int = 0) -> Interval:
    """Share of runs with a score above each of `[K]` thresholds, with pointwise intervals.

    Args:
        scores: one for each run; NaN makes the share NaN.
        thresholds: `[K]`.
        seed: of the resampling.
    """
    each = np.asarray(scores, dtype=np.float64)[:, None]
    above = np.where(np.isnan(each), np.nan, each > np.asarray(thresholds)[None, :])
    return bootstrap(np.mean, above, seed=seed)


def normalised(scores: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Scores on a scale that tasks share: 0 at `low`, a random policy's say, and 1 at `high`.

    Args:
        scores: `[runs, tasks]`.
        low, high: `[tasks]`, or one for all.

    Raises:
        ValueError: when `high` is not above `low`.
    """
    low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    if not (high > low).all():
        raise ValueError(f"a score of 1 stands at {high}, expected above that of 0, {low}, for every task")
    return np.asarray((np.asarray(scores, dtype=np.float64) - low) / (high - low))


def optimality_gap(scores: np.ndarray, *, optimum: float = 1.0) -> np.ndarray:
    """By how much runs fall short of an optimum on average; more than that counts for nothing.

    Args:
        scores: `[..., runs, tasks]`, normalised.
        optimum: the score that is asked for.

    Returns:
        `[...]`
    """
    return np.asarray(optimum - np.minimum(scores, optimum).mean((-2, -1)))


def stratified(
    statistic: Callable[[np.ndarray], np.ndarray], scores: np.ndarray, *, seed: int = 0, draws: int = DRAWS
) -> Interval:
    """A statistic over several tasks, with the interval that resampling runs within each task gives.

    Args:
        statistic: from `[..., runs, tasks]` to `[...]`, such as `optimality_gap`.
        scores: `[runs, tasks]`, as many runs of every task.
        seed: of the resampling.
        draws: bootstrap samples.

    Raises:
        ValueError: when that is no such table, or a score is NaN.
    """
    try:
        table = np.asarray(scores, dtype=np.float64)
    except ValueError:  # rows of unequal lengths
        table = np.empty(0)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"scores have shape {np.shape(table)}, expected [runs, tasks], as many runs of every task")
    unknown = np.isnan(table).sum(0)
    if unknown.any():
        task = int(unknown.argmax())
        raise ValueError(
            f"{unknown[task]} of {len(table)} scores of task {task} are NaN, and no statistic can rank them; leave those "
            "runs out, of every task as many, or give them the score that they ended with"
        )
    rows = np.random.default_rng(seed).integers(len(table), size=(draws, *table.shape))
    found = statistic(np.take_along_axis(table[None], rows, axis=1))
    low, high = np.quantile(found, _TAILS, axis=0)
    return Interval(float(statistic(table)), float(low), float(high))


def aggregates(scores: np.ndarray, *, optimum: float = 1.0, seed: int = 0) -> dict[str, Interval]:
    """What is told of runs on several tasks (Agarwal et al. 2021): `iqm`, `mean`, `median` and `optimality_gap`.

    The first is the mean of the middle half of all runs of all tasks, the median that over tasks of the means over runs.

    Args:
        scores: `[runs, tasks]`, `normalised`: only then do tasks add up.
        optimum: see `optimality_gap`.
        seed: of the resampling.

    Raises:
        ValueError: as `stratified`.
    """
    told: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "iqm": lambda x: iqm(x.reshape(*x.shape[:-2], -1), axis=-1),
        "mean": lambda x: x.mean((-2, -1)),
        "median": lambda x: np.median(x.mean(-2), axis=-1),
        "optimality_gap": lambda x: optimality_gap(x, optimum=optimum),
    }
    return {name: stratified(statistic, scores, seed=seed) for name, statistic in told.items()}


def solved_fraction(times: Sequence[float]) -> tuple[list[float], list[float]]:
    """Share of all runs that have solved the task by each time.

    A run that has not solved it counts as never doing so. Treating it as merely unseen after its end (Kaplan and Meier's
    estimate) would need ends that have nothing to do with learning; a budget in steps ends the runs with long episodes
    after few of them.

    Args:
        times: when each run solved it; infinity for one that has not.

    Returns:
        The times at which the share rises, and the share from there on.
    """
    solved = sorted({time for time in times if math.isfinite(time)})
    shares = [sum(time <= moment for time in times) / len(times) for moment in solved]
    return [0.0, *solved], [0.0, *shares]
