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


class Own(gym.vector.VectorEnv):
    """A user's vector environment under SAME_STEP, whose episodes end at the third step; `step` is changed by `change`."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, obs: gym.Space, change=lambda *step: step) -> None:
        self.num_envs, self.single_observation_space, self.change = 3, obs, change
        self.single_action_space = gym.spaces.Discrete(2)
        self.observation_space, self.action_space = (
            gym.vector.utils.batch_space(space, 3) for space in (obs, self.single_action_space)
        )

    def at(self, value: float):
        """Observations of all three, nested as the space is."""
        return make_batch(self.single_observation_space, value + np.arange(3.0, dtype=np.float32)[:, None])

    def reset(self, *, seed=None, options=None):
        self.count = 0
        return self.at(0.0), {}

    def step(self, actions):
        self.count += 1
        over = np.full(3, self.count % 3 == 0)
        infos = {"final_obs": self.at(100.0), "_final_obs": over} if over.any() else {}
        return self.change(
            self.at(0.0 if over.any() else float(self.count)), np.ones(3), over, np.zeros(3, bool), infos
        )


def make_batch(space: gym.Space, numbers: np.ndarray):
    if isinstance(space, gym.spaces.Dict):
        return {key: make_batch(part, numbers) for key, part in space.spaces.items()}
    if isinstance(space, gym.spaces.Tuple):
        return tuple(make_batch(part, numbers) for part in space.spaces)
    return numbers


LINE = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)


@pytest.mark.parametrize(
    "space",
    [
        LINE,
        gym.spaces.Dict({"a": LINE, "b": gym.spaces.Tuple([LINE, LINE])}),
        gym.spaces.Tuple([LINE, gym.spaces.Dict({"a": LINE})]),
    ],
    ids=["box", "dict", "tuple"],
)
def test_last_observations_come_as_a_batch_nested_as_the_space_is(space):
    with VectorEnvs(Own(space)) as envs:
        for _ in range(2):
            envs.step(np.zeros(3, np.int64))
        step = envs.step(np.zeros(3, np.int64))
    last = gym.vector.utils.batch_space(space, 3), step.next_obs
    flat = gym.spaces.flatten(*last).reshape(-1, 3)
    assert step.terminated.all() and (flat == [100.0, 101.0, 102.0]).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda obs, r, over, cut, infos: (obs, r, over[:, None], cut, infos),
            r"terminated of shape \(3, 1\), expected \(3,\)",
        ),
        (
            lambda obs, r, over, cut, infos: (obs, r, over, cut[:2], infos),
            r"truncated of shape \(2,\), expected \(3,\)",
        ),
        (
            lambda obs, r, over, cut, infos: (obs, r, over, cut, [{"a": 1}] * 3),
            "infos are a list, expected a dictionary",
        ),
        (
            lambda obs, r, over, cut, infos: (obs, r, over, cut, {name: x[:1] for name, x in infos.items()}),
            "1 rows of final_obs, expected one for each of 3 environments",
        ),
    ],
    ids=["terminated", "truncated", "infos", "final_obs"],
)
def test_what_does_not_tell_of_every_environment_is_refused(change, words):
    with VectorEnvs(Own(LINE, change)) as envs, pytest.raises(SettingsError, match=words):
        for _ in range(3):
            envs.step(np.zeros(3, np.int64))
