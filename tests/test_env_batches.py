"""Batches of actions: nothing outside the space reaches an environment."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from relax_rl.envs import VectorEnvs, make_envs
from relax_rl.errors import SettingsError
from tests.fakes import TargetEnv, golden_envs


@pytest.mark.parametrize("bad", [[0, 2], [-1, 0], [0], [[0, 1]], [0.0, 1.0], [np.nan, 0]])
def test_a_bad_action_is_refused_before_the_step(bad):
    with golden_envs(AutoresetMode.NEXT_STEP, n=2) as envs:
        with pytest.raises(SettingsError, match="action"):
            envs.step(np.array(bad))
        assert envs.step(np.array([0, 1])).valid.all()


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Discrete(3, start=-4),
        gym.spaces.MultiDiscrete([2, 3], start=[1, 5]),
        gym.spaces.MultiDiscrete([[2, 3], [2, 2]]),
        gym.spaces.MultiBinary(3),
        gym.spaces.Box(-2, 3, (2,), np.float32),
        gym.spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
    ],
)
def test_every_action_space_reaches_its_environment(space):
    """Whole batches; the environment refuses what its space does not contain."""
    space.seed(0)
    with VectorEnvs(SyncVectorEnv([lambda: TargetEnv(space)] * 3)) as envs:
        for _ in range(12):
            step = envs.step(np.stack([space.sample() for _ in range(3)]))
            assert step.reward.max() <= 1.0
        assert len(envs.drain_episodes()) == 3


def test_a_box_action_outside_its_bounds_or_not_finite_is_refused():
    for space, bad in ((gym.spaces.Box(-1, 1, (1,)), 1.5), (gym.spaces.Box(-np.inf, np.inf, (1,)), np.inf)):
        with VectorEnvs(SyncVectorEnv([lambda space=space: TargetEnv(space)])) as envs:
            for value in (bad, np.nan):
                with pytest.raises(SettingsError, match="outside"):
                    envs.step(np.array([[value]]))


def test_native_cart_pole_leaves_the_check_of_its_actions_to_the_adapter():
    with make_envs("CartPole-v1", num_envs=3, vectorization="native") as envs:
        space = envs.vector_env.action_space
        assert space == gym.spaces.MultiDiscrete([2, 2, 2])
        assert space.sample().shape == (3,)
        with pytest.raises(SettingsError, match="outside"):
            envs.step(np.array([0, 1, 2]))
        assert envs.step(np.array([0, 1, 1])).valid.all()
