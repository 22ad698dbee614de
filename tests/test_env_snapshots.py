"""Forks of environments: they go on where the original stands, and on their own."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from relax_rl.backends.snapshots import ForkableEnv
from relax_rl.errors import SettingsError


class Walk(gym.Env):
    """A random walk that counts how often the process has made a step in any of its copies."""

    steps_taken = 0

    def __init__(self, *, copyable: bool = True, seeded: bool = True) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.action_space = spaces.Discrete(2)
        self.seeded, self.copyable = seeded, copyable

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.draw()
        return np.array([self.x]), {}

    def draw(self) -> float:
        return float(self.np_random.normal() if self.seeded else np.random.default_rng().normal())

    def step(self, action):
        Walk.steps_taken += 1
        self.x += float(action) + self.draw()
        return np.array([self.x]), self.x, False, False, {}

    def __deepcopy__(self, memo):
        if not self.copyable:
            raise TypeError("cannot be copied")
        twin = Walk(seeded=self.seeded)
        twin.x = self.x
        twin.np_random = np.random.default_rng()
        twin.np_random.bit_generator.state = self.np_random.bit_generator.state
        return twin


gym.register("Walk-v0", entry_point=Walk, max_episode_steps=1000, disable_env_checker=True)


def walked(env: ForkableEnv, steps: int, seed: int = 3) -> ForkableEnv:
    env.reset(seed)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        if env.done:
            env.reset(int(rng.integers(2**31)))
        action = env._env.action_space
        action.seed(int(rng.integers(2**31)))
        env.step(action.sample())
    return env


@pytest.mark.parametrize(
    ("env_id", "copies"),
    [("CartPole-v1", True), ("InvertedPendulum-v5", True), ("Hopper-v5", True), ("LunarLander-v3", False)],
)
def test_a_fork_of_a_deterministic_environment_goes_where_the_original_goes(env_id: str, copies: bool) -> None:
    env = walked(ForkableEnv(env_id), 7)
    assert env.copies is copies
    forks = [env.fork(seed) for seed in (0, 0)]
    env._env.action_space.seed(0)
    while not env.done:
        action = env._env.action_space.sample()
        ours = [fork.step(action) for fork in forks]
        obs, reward, terminated, truncated = env.step(action)
        assert np.array_equal(ours[0][0], ours[1][0]) and ours[0][1] == ours[1][1]
        if env_id != "LunarLander-v3":  # whose engines are random
            assert np.array_equal(ours[0][0], obs)
            assert (float(ours[0][1]), *ours[0][2:4]) == (reward, terminated, truncated)
        if len(env._actions) > 30 or ours[0][2]:
            break
    env.close()


@pytest.mark.parametrize("copyable", [True, False])
def test_forks_share_the_past_but_not_the_future(copyable: bool) -> None:
    env = walked(ForkableEnv("Walk-v0", copyable=copyable), 5)
    assert env.copies is copyable
    before = float(env.obs[0])
    ends = [float(env.fork(seed).step(0)[0][0]) - before for seed in range(400)]
    assert env.obs[0] == before
    assert len(set(ends)) == 400
    assert abs(np.mean(ends)) < 4 / 400**0.5 and np.std(ends) == pytest.approx(1.0, rel=0.15)
    assert float(env.fork(1).step(0)[0][0]) - before == ends[1]


def test_replaying_takes_the_same_number_of_steps() -> None:
    env = walked(ForkableEnv("Walk-v0", copyable=False), 9)
    Walk.steps_taken = 0
    env.fork(0)
    assert Walk.steps_taken == 9


def test_an_environment_that_goes_elsewhere_is_refused() -> None:
    env = walked(ForkableEnv("Walk-v0", copyable=False, seeded=False), 2)
    with pytest.raises(SettingsError, match="the state of Walk-v0 cannot be had again: the same actions led elsewhere"):
        env.fork(0)


def test_games_are_refused() -> None:
    with pytest.raises(SettingsError, match="the state of ALE/Pong-v5 cannot be had again"):
        ForkableEnv("ALE/Pong-v5")
