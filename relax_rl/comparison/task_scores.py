"""One score of a trial on several tasks: the mean of its scores, each on the scale of its task."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from relax_rl.comparison.config import CompareConfig
from relax_rl.errors import SettingsError

__all__ = ["Anchors", "Scores", "mean_score", "read_anchors", "scales"]

Scores = Mapping[str, float | None]
"""Of a trial, by the names of environments; None where no score is known."""
Anchors = Mapping[str, tuple[float, float]]
"""The scores that count as 0 and as 1, by the names of environments."""


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
