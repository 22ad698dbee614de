"""Points of a search space that are to be tried next, by Optuna's tree-structured Parzen estimator."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from relax_rl.comparison.search_space import Dimension

__all__ = ["STARTUP", "propose"]

STARTUP = 8
"""Trials at random before the estimator proposes."""


def propose(
    name: str,
    space: Mapping[str, Dimension],
    trials: Sequence[Mapping[str, Any]],
    count: int,
    *,
    rungs: int = 1,
    starts: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """The next points of a search, `{"params": as searched, "settings": as trained}` each.

    They are a function of the arguments alone.

    Args:
        name: of the search.
        space: by the names of settings.
        trials: those before, with `params` (None for one outside the space), `score`, and `reached`, an entry for each rung.
            One that did not reach the last rung counts as pruned: worse than all that did.
        count: of points.
        rungs: that a trial can reach.
        starts: values by the names that are searched, with which the first of the points are made.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {d.name: _distribution(d) for d in space.values()}
    seed = zlib.crc32(f"{name}-{len(trials)}".encode())
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=False, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in trials:
        if trial["params"] is not None:
            made = {"params": trial["params"], "distributions": distributions, **_result(trial, rungs)}
            study.add_trial(optuna.trial.create_trial(**made))
    for start in starts[:count]:
        study.enqueue_trial({key: value for key, value in start.items() if key in distributions})
    points = []
    for _ in range(count):
        params = study.ask(distributions).params
        points.append({"params": params, "settings": {name: d.setting(params[d.name]) for name, d in space.items()}})
    return points


def _result(trial: Mapping[str, Any], rungs: int) -> dict[str, Any]:
    """What came of a trial, in Optuna's words."""
    from optuna.trial import TrialState

    score, rung = trial["score"], len(trial.get("reached", ())) or rungs
    if score is None:
        return {"state": TrialState.FAIL}
    if rung < rungs:
        return {"state": TrialState.PRUNED, "intermediate_values": {rung: score}}
    return {"state": TrialState.COMPLETE, "value": score}


def _distribution(dimension: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.choices:
        return CategoricalDistribution(dimension.categories)
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
