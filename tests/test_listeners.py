"""Callbacks for scripts: at intervals, with evaluations, on a new best, on none for long, and after every step."""

from __future__ import annotations

import math
import pickle
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from relax_rl import A2C
from relax_rl.agents import Callback, UpdateInfo
from relax_rl.agents.listening import Listeners, listening
from relax_rl.envs import Step
from relax_rl.errors import SettingsError
from relax_rl.runs.listeners import EVALUATED, at_intervals, evaluating, on_new_best, stop_without_progress
from tests.fakes import TargetEnv
from tests.steps import DISCRETE, target_envs

AGENT: Any = None


def answers(callback: Callback, values: list[float], *, size: int = 10, metric: str = "return_mean") -> list[Any]:
    """What a callback says of updates of so many steps each, with these values of a metric."""
    infos = [UpdateInfo(size * n, n, (), {metric: value}) for n, value in enumerate(values, 1)]
    with listening(SimpleNamespace(steps=0, updates=0, listeners=None), callback, None) as heard:
        agent: Any = SimpleNamespace(listeners=heard)
        return [callback(agent, info) for info in infos]


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
    by_hand = at_intervals(20, lambda agent, info: heard.append(info.steps))
    for n in (1, 2):
        by_hand(AGENT, UpdateInfo(20 * n, n, (), {}))
    assert heard == [20, 40]
    heard.clear()
    again = at_intervals(25, lambda agent, info: heard.append(info.steps))
    again(AGENT, UpdateInfo(1010, 101, (), {}))  # called by hand, for an agent that has learned before
    again(AGENT, UpdateInfo(1030, 103, (), {}))
    assert heard == [1030]


def test_a_later_training_hears_the_multiple_that_its_first_update_passes() -> None:
    envs, agent = small()
    heard: list[int] = []
    for _ in range(3):  # each of one update of 20 steps
        agent.learn(envs, 20, at_intervals(20, lambda agent, info: heard.append(info.steps)), reset_schedule=False)
    agent.learn(envs, 40, at_intervals(50, lambda agent, info: heard.append(info.steps)), reset_schedule=False)
    assert heard == [20, 40, 60, 100]


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


def test_what_infos_told_in_evaluations_is_heard_of() -> None:
    class Succeeding(TargetEnv):
        def step(self, action: Any) -> Any:
            obs, reward, terminated, truncated, info = super().step(action)
            return obs, reward, terminated, truncated, {**info, "is_success": True}

    envs, agent = small()
    best: list[float] = []
    name = "evaluation/info/success_rate"
    heard = [
        on_new_best(lambda agent, info: best.append(info.metrics[name]), metric=name),
        stop_without_progress(2, metric=name),
    ]
    agent.learn(envs, 2_000, evaluating(target_envs(DISCRETE, n=2, env=Succeeding), heard, every=40, episodes=2))
    assert best == [1.0] and agent.steps == 120


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


class Hears:
    """Writes down what it is told, and says False the last of so many times."""

    def __init__(self, hook: str = "", ends_at: int = 0) -> None:
        self.heard: list[tuple[str, UpdateInfo]] = []
        self._hook, self._ends_at = hook, ends_at

    def of(self, hook: str) -> list[UpdateInfo]:
        return [info for name, info in self.heard if name == hook]

    def _note(self, hook: str, info: UpdateInfo) -> bool:
        assert all(type(x) is float for x in info.metrics.values())
        self.heard.append((hook, info))
        return not (hook == self._hook and len(self.of(hook)) == self._ends_at)

    def on_rollout(self, agent: Any, info: UpdateInfo) -> bool:
        return self._note("rollout", info)

    def on_update(self, agent: Any, info: UpdateInfo) -> bool:
        return self._note("update", info)

    def on_episode(self, agent: Any, info: UpdateInfo) -> bool:
        return self._note("episode", info)

    def on_evaluation(self, agent: Any, info: UpdateInfo) -> bool:
        return self._note("evaluation", info)


def test_an_object_hears_of_everything_in_its_order() -> None:
    envs, agent = small()
    mine = Hears()
    plain: list[int] = []
    evaluations = evaluating(target_envs(DISCRETE, n=2), every=40, episodes=2)
    agent.learn(envs, 80, [lambda agent, info: plain.append(info.steps), mine, evaluations])
    assert [name for name, _ in mine.heard] == [
        *("rollout", "update"),
        *("rollout", "episode", "episode", "episode", "episode", "update", "evaluation"),
        *("rollout", "update"),
        *("rollout", "episode", "episode", "episode", "episode", "update", "evaluation"),
    ]
    assert plain == [info.steps for info in mine.of("update")] == [20, 40, 60, 80]
    assert [(x.steps, x.updates) for x in mine.of("rollout")] == [(0, 0), (20, 1), (40, 2), (60, 3)]
    rollout, episodes = mine.of("rollout")[1], mine.of("episode")[:4]
    assert rollout.metrics["rollout/steps"] == 20 and len(rollout.episodes) == 4
    assert all(x.steps == 40 and len(x.episodes) == 1 and x.metrics["episode/length"] == 10 for x in episodes)
    total = 20 * sum(x.metrics["rollout/reward_mean"] for x in mine.of("rollout")[:2])
    assert total == pytest.approx(sum(x.metrics["episode/return"] for x in episodes))
    assert [x.steps for x in mine.of("evaluation")] == [40, 80]
    assert all(0 <= x.metrics[EVALUATED] <= 10 for x in mine.of("evaluation"))
    assert agent.listeners is None


@pytest.mark.parametrize(
    ("hook", "count", "steps"), [("rollout", 2, 40), ("update", 3, 60), ("episode", 1, 40), ("evaluation", 1, 40)]
)
def test_any_answer_of_an_object_ends_the_training(hook: str, count: int, steps: int) -> None:
    envs, agent = small()
    evaluations = evaluating(target_envs(DISCRETE, n=2), every=40, episodes=2)
    agent.learn(envs, 400, [Hears(hook, count), evaluations])
    assert agent.steps == steps
    agent.learn(envs, 20)
    assert agent.steps == steps + 20


def test_an_object_alone_and_one_of_a_single_hook() -> None:
    class Counts:
        count = 0

        def on_episode(self, agent: Any, info: UpdateInfo) -> None:
            self.count += 1

    envs, agent = small()
    alone = Counts()
    agent.learn(envs, 80, alone)
    assert alone.count == agent.episodes == 8
    inner = Hears()
    agent.learn(envs, 80, at_intervals(40, inner))
    assert [name for name, _ in inner.heard] == ["update", "update"]
    inner = Hears()
    agent.learn(envs, 80, evaluating(target_envs(DISCRETE, n=2), [inner, alone], every=40, episodes=2))
    assert [name for name, _ in inner.heard] == ["evaluation", "evaluation"]


def test_what_hears_nothing_is_told_before_anything_is_learned() -> None:
    envs, agent = small()
    for wrong in (object(), [Hears(), 3], "report"):
        with pytest.raises(SettingsError, match="hears nothing, expected a function of"):
            agent.learn(envs, 80, wrong)  # type: ignore[arg-type]
    assert agent.steps == 0


def test_copies_of_an_agent_are_not_listened_to() -> None:
    envs, agent = small()
    copies: list[Any] = []
    agent.learn(envs, 20, [lambda agent, info: copies.append(deepcopy(agent)), lambda agent, info: pickle.dumps(agent)])
    assert copies[0].listeners is None and copies[0].steps == 20


def test_a_rollout_without_a_valid_row_has_no_mean_reward() -> None:
    envs, agent = small()
    mine = Hears()
    rollout = agent.collect(agent.collector(envs))
    Listeners([mine]).rollout(agent, replace(rollout, valid=rollout.valid & False))
    (info,) = mine.of("rollout")
    assert info.metrics["rollout/steps"] == 0.0 and math.isnan(info.metrics["rollout/reward_mean"])
