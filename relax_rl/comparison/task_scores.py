"""What a trial has scored: by the learning curve of each run, and over several tasks by the mean on the scale of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from relax_rl.comparison.config import CompareConfig
from relax_rl.comparison.results import POINTS, read_run
from relax_rl.comparison.task import OUTCOME
from relax_rl.errors import SettingsError

__all__ = ["END", "Anchors", "Scores", "curve_mean", "mean_score", "read_anchors", "scales"]

END = 0.2
"""The share of a curve that is its end."""

Scores = Mapping[str, float | None]
"""Of a trial, by the names of environments; None where no score is known."""
Anchors = Mapping[str, tuple[float, float]]
"""The scores that count as 0 and as 1, by the names of environments."""


def curve_mean(folder: Path, total_steps: int, *, last: float = 1.0, ended: str = OUTCOME) -> float | None:
    """Mean over the steps of the curve of a run: the higher, the sooner and the more was learned.

    The curve is the mean return of the last 100 episodes; what comes before the first finished episode counts as that
    one, what comes after the end of the run as its last value.

    Args:
        folder: of the run.
        total_steps: up to which the curve counts.
        last: the share of these steps, from behind, that counts.
        ended: the file in the folder that says that the run has come there.

    Returns:
        None for a run that did not end well, or in which no episode finished.
    """
    import numpy as np

    run = read_run(folder, 0, ended=ended)
    if run is None or run.status != "finished":
        return None
    values = run.at_steps(np.linspace(0, total_steps, POINTS + 1)[1:])
    return float(np.where(np.isnan(values), run.means[0], values)[-max(1, round(last * POINTS)) :].mean())


def read_anchors(config: CompareConfig) -> dict[str, tuple[float, float]]:
    """What `--tune-anchors` gives, `ENV=low:high` each.

    Raises:
        SettingsError: it is not of that form, or for another environment.
    """
    found = {}
    for text in config.tune_anchors:
        env, _, bounds = text.rpartition("=")
        if env not in config.env:
            raise SettingsError(f"tune_anchors {text!r} is for {env or 'nothing'}, which is not among the environments")
        try:
            low, high = map(float, bounds.split(":"))
        except ValueError:
            low = high = math.nan
        if not -math.inf < low < high < math.inf:
            raise SettingsError(f"tune_anchors is {text!r}, expected ENV=low:high, two rising numbers")
        found[env] = (low, high)
    return found


def scales(environments: Iterable[str], trials: Sequence[Scores], anchors: Anchors) -> dict[str, tuple[float, float]]:
    """The scores that count as 0 and as 1: a task's anchors, or else the lowest and the highest that any trial has reached.

    A task on which no trial has a score is left out.
    """
    found = {}
    for env in environments:
        known = [score for trial in trials if (score := trial.get(env)) is not None]
        if known:
            found[env] = anchors.get(env) or (min(known), max(known))
    return found


def mean_score(scores: Scores, scale: Anchors) -> float | None:
    """Mean over tasks of `(score - low) / (high - low)`, 0 on a task where all scores are equal; None if one is unknown."""
    if not scale:
        return None
    total = 0.0
    for env, (low, high) in scale.items():
        score = scores.get(env)
        if score is None:
            return None
        total += (score - low) / (high - low) if high > low else 0.0
    return total / len(scale)
