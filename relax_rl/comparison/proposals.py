"""Points of a search space that are to be tried next, by Optuna's tree-structured Parzen estimator."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from relax_rl.comparison.search_space import Dimension
from relax_rl.errors import SettingsError

__all__ = ["ATTEMPTS", "STARTUP", "TRIES", "propose"]

ATTEMPTS = 1_000
"""Points that cannot work, after which no further one is asked for."""
TRIES = 50
"""Of a start with other values for what it leaves out."""
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
    refusal: Callable[[Mapping[str, Any]], str] = lambda settings: "",
) -> list[dict[str, Any]]:
    """The next points of a search, `{"params": as searched, "settings": as trained}` each.

    They are a function of the arguments alone. Where settings cannot work together, another point is asked for.

    Args:
        name: of the search.
        space: by the names of settings.
        trials: those before, with `params` (None for one outside the space), `score`, and `reached`, an entry for each rung.
            One that did not reach the last rung counts as pruned: worse than all that did.
        count: of points.
        rungs: that a trial can reach.
        starts: values by the names that are searched, with which the first of the points are made.
        refusal: why settings cannot work together; empty where they can.

    Raises:
        SettingsError: a start cannot work, or next to no point of the space can.
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
    known = ({key: value for key, value in start.items() if key in distributions} for start in starts[:count])
    waiting = deque((start, 0) for start in known if start)
    for start, _ in waiting:
        study.enqueue_trial(start)
    points: list[dict[str, Any]] = []
    refused = 0
    while len(points) < count:
        asked = study.ask(distributions)
        settings = {name: d.setting(asked.params[d.name]) for name, d in space.items()}
        start, tries = waiting.popleft() if waiting else ({}, 0)
        if not (told := refusal(settings)):
            points.append({"params": asked.params, "settings": settings})
            continue
        study.tell(asked, state=optuna.trial.TrialState.FAIL)
        if start:  # what it leaves out is proposed anew
            if len(start) == len(distributions) or tries == TRIES:
                raise SettingsError(f"tune_space: the start {start} cannot work, {told}")
            study.enqueue_trial(start)
            waiting.append((start, tries + 1))
        refused += 1
        if refused == ATTEMPTS:
            raise SettingsError(
                f"tune_space: {refused} of {refused + len(points)} points cannot work, one since {told}"
            )
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
