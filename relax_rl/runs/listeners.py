"""Callbacks for scripts: each is a function of (agent, info), and several put together are one again.

    best = on_new_best(lambda agent, info: agent.save("best.safetensors"), metric=EVALUATED)
    agent.learn(envs, 500_000, evaluating(their_envs, [best, stop_without_progress(5, metric=EVALUATED)], every=10_000))

Each keeps count for one training; make new ones for the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from relax_rl.agents.listening import Listener, as_listeners, hook_of
from relax_rl.agents.statistics import stops
from relax_rl.runs.callbacks import Every
from relax_rl.runs.evaluation import evaluate
from relax_rl.settings.fields import whole

if TYPE_CHECKING:
    from relax_rl.agents import ActorCritic, Callback, UpdateInfo
    from relax_rl.envs import VectorEnvs

__all__ = ["EVALUATED", "at_intervals", "evaluating", "on_new_best", "stop_without_progress"]

EVALUATED = "evaluation/return_mean"
"""The metric that `evaluating` adds for the callbacks it is given."""

_TRAINED = "return_mean"


def at_intervals(steps: int, callbacks: Iterable[Listener] | Listener) -> Callback:
    """A callback that calls others after the update that passes a multiple of so many environment steps, and not in between.

    Args:
        steps: at least 1.
        callbacks: one or several; of an object its `on_update` is called.

    Raises:
        SettingsError: `steps` is below 1.
    """
    interval, heard = whole("steps", steps, least=1), _hooks(callbacks, "on_update")
    every: Every | None = None

    def listen(agent: ActorCritic, info: UpdateInfo) -> bool:
        nonlocal every
        if every is None:
            learning = getattr(agent, "listeners", None)  # None where it is called by hand
            every = Every(interval, learning.begun if learning else 0 if info.updates == 1 else info.steps)
        return not (every.due(info.steps) and _any_stops(heard, agent, info))

    return listen


def evaluating(
    envs: VectorEnvs,
    callbacks: Iterable[Listener] | Listener | None = None,
    *,
    every: int,
    episodes: int = 10,
    seed: int = 0,
    deterministic: bool = True,
) -> Callback:
    """Plays whole episodes now and then, and tells callbacks of their scores, and whoever has `on_evaluation` beside this.

    Args:
        envs: environments of the agent's spaces that nothing else uses, with `life_loss_terminal=False` in Atari.
        callbacks: called after each evaluation, with `evaluation/return_mean`, `evaluation/return_std`,
            `evaluation/length_mean` and what infos told, such as `evaluation/info/success_rate`, among the metrics; one that returns False ends the training. Of an object its
            `on_evaluation` is called, or else its `on_update`.
        every: environment steps of training between two evaluations.
        episodes: how many are played.
        seed: of the environments and actions, the same each time.
        deterministic: take the mode of the policy instead of samples.

    Raises:
        SettingsError: a number is below 1; from the callback, if the environments have other spaces.
    """
    heard, episodes = _hooks(callbacks, "on_evaluation", "on_update"), whole("episodes", episodes, least=1)

    def play(agent: ActorCritic, info: UpdateInfo) -> bool:
        scores = evaluate(agent, envs, episodes=episodes, seed=seed, deterministic=deterministic)
        assert scores is not None
        numbers = {"return_mean": scores.mean, "return_std": scores.std, "length_mean": scores.length_mean}
        numbers |= scores.info_means
        if agent.listeners is not None:
            agent.listeners.evaluation(agent, numbers)
        told = {f"evaluation/{name}": value for name, value in numbers.items()}
        info = replace(info, metrics={**info.metrics, **told})
        return not _any_stops(heard, agent, info)

    return at_intervals(every, play)


def on_new_best(act: Callable[[ActorCritic, UpdateInfo], Any], *, metric: str = _TRAINED) -> Callback:
    """Acts whenever a metric is higher than it has ever been; its answer counts as a callback's.

    Args:
        act: called with the agent and the `UpdateInfo`.
        metric: a name in `info.metrics`; where it is missing or NaN, nothing happens.
    """
    best = -math.inf

    def look(agent: ActorCritic, info: UpdateInfo) -> Any:
        nonlocal best
        value = info.metrics.get(metric, math.nan)
        if not value > best:
            return None
        best = value
        return act(agent, info)

    return look


def stop_without_progress(patience: int, *, metric: str = _TRAINED, by: float = 0.0, after: int = 0) -> Callback:
    """Ends the training once a metric has not reached a new best for so many looks in a row.

    A look is a call in which the metric is there: after every update, every interval of `at_intervals`, or every
    evaluation of `evaluating`, wherever this stands.

    Args:
        patience: looks without a new best after which the training ends.
        metric: a name in `info.metrics`.
        by: how much higher a new best has to be.
        after: environment steps before which nothing is counted against it.

    Raises:
        SettingsError: `patience` is below 1.
    """
    patience = whole("patience", patience, least=1)
    best, waited = -math.inf, 0

    def look(agent: ActorCritic, info: UpdateInfo) -> bool:
        nonlocal best, waited
        value = info.metrics.get(metric, math.nan)
        if math.isnan(value):
            return True
        waited = 0 if value > best + by or info.steps < after else waited + 1
        best = max(best, value) if waited == 0 else best
        return waited < patience

    return look


def _hooks(callbacks: Iterable[Listener] | Listener | None, *names: str) -> list[Callable[..., Any]]:
    """What of each is called: the first of these hooks that it has."""
    found = [[hook for name in names if (hook := hook_of(each, name))] for each in as_listeners(callbacks)]
    return [hooks[0] for hooks in found if hooks]


def _any_stops(callbacks: Iterable[Callable[..., Any]], agent: ActorCritic, info: UpdateInfo) -> bool:
    """Whether any of the callbacks, all of which are called, ends the training."""
    answers = [callback(agent, info) for callback in callbacks]
    return any(map(stops, answers))
