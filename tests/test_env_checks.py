"""Environments that do not keep to their own spaces: said once when training begins, and by `check_env`."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import relax_rl
from relax_rl import make_envs
from relax_rl.backends.checks import LOOKS, FirstLook
from relax_rl.errors import SettingsError

NAME = "relax_rl_tests/Strays-v0"


class Strays(gym.Env):
    """Observes zeros, and from some step on something else.

    Args:
        obs: that else.
        at: the step.
        reward: of every step.
        space: of the observations.
    """

    action_space = spaces.Discrete(2)

    def __init__(self, obs: Any = None, at: int = 0, reward: Any = 1.0, space: Any = None) -> None:
        self.observation_space = space or spaces.Dict({"here": spaces.Box(-1, 1, (3,), np.float32)})
        self.obs, self.at, self.reward, self.t = obs, at, reward, 0

    def see(self) -> Any:
        return {"here": self.obs if self.obs is not None and self.t >= self.at else np.zeros(3, np.float32)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.see(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return self.see(), self.reward, False, self.t == 20, {}


gym.register(NAME, Strays)

WRONG = {
    "bounds": (
        np.array([0, 5, 0], np.float32),
        "the observation 'here' leaves its space: 5, where at most 1 was declared",
    ),
    "below": (np.array([0, -5, 0], np.float32), "leaves its space: -5, where at least -1 was declared"),
    "type": (np.zeros(3), "the observation 'here' is float64, where its space says float32"),
    "shape": (np.zeros(4, np.float32), r"'here' is float32 of shape \(4,\), expected float32 of shape \(3,\)"),
    "text": ("no array", "expected float32 of shape"),
}


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("wrong", ["bounds", "type", "shape"])
def test_what_is_wrong_at_first_is_said_in_one_line(wrong: str, how: Any) -> None:
    obs, told = WRONG[wrong]
    if wrong == "shape":
        with pytest.raises(SettingsError, match=told):
            make_envs(NAME, num_envs=2, vectorization=how, obs=obs)
        return
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        with make_envs(NAME, num_envs=2, vectorization=how, obs=obs) as envs:
            for _ in range(5):
                envs.step(np.zeros(2, int))
    (line,) = (str(each.message) for each in found if each.category is UserWarning)
    assert line.startswith(f"{NAME}: ") and line.endswith("mend the environment or its space")
    assert told in line


def test_the_first_batches_are_looked_at_and_no_others() -> None:
    with (
        pytest.warns(UserWarning, match="leaves its space: 7"),
        make_envs(NAME, num_envs=2, obs=7 * np.ones(3), at=5) as envs,
    ):
        for _ in range(6):
            envs.step(np.zeros(2, int))
        assert envs._look is None
    look = FirstLook(spaces.Box(0, 1, (1,)), "it")
    assert [look(np.zeros((2, 1))) for _ in range(LOOKS)] == [True] * (LOOKS - 1) + [False]
    assert not FirstLook(spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(0, 255, (4,), np.uint8)}), "it")({})


def test_rounding_and_open_bounds_are_no_faults() -> None:
    look = FirstLook(spaces.Box(np.array([-1, -np.inf], np.float32), np.array([1, 0], np.float32)), "it")
    assert look(np.array([[1.000001, -1e9], [-1.0, 0.0]], np.float32))
    with pytest.warns(UserWarning, match="0.5, where at most 0 was declared"):
        assert not look(np.array([[0.0, 0.5]], np.float32))


@pytest.mark.parametrize("wrong", WRONG)
def test_check_env_names_what_is_wrong(wrong: str) -> None:
    obs, told = WRONG[wrong]
    for at in (0, 3):
        lines = relax_rl.check_env(Strays(obs, at))
        with pytest.raises(SettingsError, match=told):  # `match` reads the same patterns
            raise SettingsError(" | ".join(lines))
        assert all("\n" not in line for line in lines)


@pytest.mark.parametrize("reward", [np.nan, None, np.ones(2)])
def test_check_env_looks_at_rewards(reward: Any) -> None:
    assert any("reward" in line for line in relax_rl.check_env(Strays(reward=reward)))


def test_check_env_asks_for_spaces_that_are_read() -> None:
    class Wordy(Strays):
        action_space = spaces.Box(0, 9, (1,), np.int64)

        def __init__(self) -> None:
            super().__init__(space=spaces.Dict({"here": spaces.Box(-1, 1, (3,)), "word": spaces.Text(5)}))

        def see(self) -> Any:
            return {"here": np.zeros(3, np.float32), "word": "a"}

    lines = relax_rl.check_env(Wordy())
    assert any("no network here reads word" in line for line in lines)
    assert any("action space" in line and "is not supported" in line for line in lines)


def test_check_env_has_nothing_against_good_ones() -> None:
    assert relax_rl.check_env("CartPole-v1") == [] and relax_rl.check_env(Strays()) == []
    with pytest.raises(SettingsError, match="unknown environment"):
        relax_rl.check_env("CartPol-v1")


def test_bounds_of_actions_other_than_one_are_no_fault() -> None:
    assert relax_rl.check_env("Pendulum-v1") == []
