"""Callbacks for scripts: at intervals, with evaluations, on a new best, on none for long, and after every step."""

from __future__ import annotations

import math
from typing import Any

import pytest

from relax_rl import A2C
from relax_rl.agents import Callback, UpdateInfo
from relax_rl.envs import Step
from relax_rl.errors import SettingsError
from relax_rl.runs.listeners import EVALUATED, at_intervals, evaluating, on_new_best, stop_without_progress
from tests.steps import DISCRETE, target_envs

AGENT: Any = None


def answers(callback: Callback, values: list[float], *, size: int = 10, metric: str = "return_mean") -> list[Any]:
    """What a callback says of updates of so many steps each, with these values of a metric."""
    infos = [UpdateInfo(size * n, n, (), {metric: value}) for n, value in enumerate(values, 1)]
    return [callback(AGENT, info) for info in infos]


def small(**settings: Any) -> tuple[Any, A2C]:
    envs = target_envs(DISCRETE, n=4)
    return envs, A2C(envs.single_observation_space, DISCRETE, hidden=(8,), num_steps=5, **settings)


def test_intervals_are_those_of_steps() -> None:
    heard: list[int] = []
    answers(at_intervals(25, lambda agent, info: heard.append(info.steps)), [0.0] * 12)
    assert heard == [30, 50, 80, 100]
    assert answers(at_intervals(20, [lambda agent, info: False, lambda agent, info: None]), [0.0] * 3) == [
        *(True, False, True)
    ]
    heard.clear()
    again = at_intervals(25, lambda agent, info: heard.append(info.steps))
    again(AGENT, UpdateInfo(1010, 101, (), {}))  # an agent that has learned before
    again(AGENT, UpdateInfo(1030, 103, (), {}))
    assert heard == [1030]


def test_a_new_best_is_told_once_each_time() -> None:
    told: list[float] = []
    look = on_new_best(lambda agent, info: told.append(info.metrics["return_mean"]))
    answers(look, [math.nan, 1.0, 1.0, 0.5, 2.0, math.nan, 3.0])
    assert told == [1.0, 2.0, 3.0]
    assert answers(on_new_best(lambda agent, info: False), [1.0, 0.0, 2.0]) == [False, None, False]
    assert answers(on_new_best(lambda agent, info: False), [1.0], metric="something else") == [None]


def test_training_ends_where_nothing_improves() -> None:
    assert answers(stop_without_progress(2), [1.0, 2.0, 1.0, 3.0, 3.0, math.nan, 2.0]) == [
        *(True, True, True, True, True, True, False)
    ]
    assert answers(stop_without_progress(1, by=0.5), [1.0, 1.4]) == [True, False]
    assert answers(stop_without_progress(1, by=0.5), [1.0, 1.6, 2.2]) == [True, True, True]
    assert answers(stop_without_progress(1, after=35), [1.0, 0.0, 0.0, 0.0]) == [True, True, True, False]
    assert answers(stop_without_progress(1), [1.0, 0.0], metric="something else") == [True, True]


@pytest.mark.parametrize(
    "make",
    [
        lambda: at_intervals(0, []),
        lambda: stop_without_progress(0),
        lambda: evaluating(None, every=0),  # type: ignore[arg-type]
        lambda: evaluating(None, every=5, episodes=0),  # type: ignore[arg-type]
    ],
)
def test_numbers_below_one_are_told(make: Any) -> None:
    with pytest.raises(SettingsError, match="expected a whole number from 1"):
        make()


def test_evaluations_are_handed_on_and_change_nothing() -> None:
    scores: list[tuple[int, float]] = []

    def hear(agent: Any, info: UpdateInfo) -> None:
        assert info.metrics["evaluation/length_mean"] == 10 and info.metrics["evaluation/return_std"] >= 0
        assert "losses/value" in info.metrics
        scores.append((info.steps, info.metrics[EVALUATED]))

    envs, agent = small()
    others = target_envs(DISCRETE, n=2)
    agent.learn(envs, 200, [evaluating(others, [hear], every=50, episodes=3)])
    assert [steps for steps, _ in scores] == [60, 100, 160, 200] and all(0 <= score <= 10 for _, score in scores)
    envs, plain = small()
    plain.learn(envs, 200)
    for name, x in agent.state_dict()[0].items():
        assert x.equal(plain.state_dict()[0][name]), name


def test_evaluations_without_progress_end_the_training() -> None:
    envs, agent = small(policy_lr=1e-12)
    best: list[int] = []
    heard = [
        on_new_best(lambda agent, info: best.append(info.steps), metric=EVALUATED),
        stop_without_progress(2, metric=EVALUATED),
    ]
    agent.learn(envs, 2_000, evaluating(target_envs(DISCRETE, n=2), heard, every=40, episodes=2))
    assert best == [40] and agent.steps == 120


def test_every_step_is_heard_and_can_end_the_training() -> None:
    envs, agent = small()
    seen: list[Step] = []

    def hear(step: Step) -> bool:
        seen.append(step)
        return len(seen) != 7

    agent.learn(envs, 1_000, on_step=hear)
    assert len(seen) == 10 and agent.steps == 40  # the second rollout is learned from
    assert seen[0].reward.shape == (4,) and seen[0].valid.all()
    assert seen[1].obs is not seen[0].obs and (seen[1].obs == seen[0].next_obs).all()
    agent.learn(envs, 40)
    assert len(seen) == 10
