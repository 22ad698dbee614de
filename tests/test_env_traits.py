"""Traits of vector environments: modes they declare, buffers they reuse, seeds they take."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from relax_rl.envs import VectorEnvs, make_envs
from relax_rl.errors import SettingsError
from tests.fakes import GoldenEnv


def test_a_vector_environment_must_declare_its_autoreset_mode():
    env = SyncVectorEnv([GoldenEnv])
    del env.autoreset_mode
    env.metadata = {}
    with pytest.raises(SettingsError, match="does not declare its autoreset mode"):
        VectorEnvs(env)


def test_an_environment_of_unknown_kind_is_copied_from():
    """A vector environment written elsewhere may return its own buffer every time."""

    class Counting(gym.vector.VectorEnv):
        autoreset_mode = AutoresetMode.NEXT_STEP
        num_envs = 2
        single_observation_space = gym.spaces.Box(0, 99, (1,))
        single_action_space = gym.spaces.Discrete(2)
        observation_space = gym.vector.utils.batch_space(single_observation_space, 2)
        action_space = gym.vector.utils.batch_space(single_action_space, 2)
        buffer = np.zeros((2, 1), np.float32)
        flags = np.zeros(2, bool)

        def reset(self, *, seed=None, options=None):
            assert isinstance(seed, int)
            self.buffer[:] = 0
            return self.buffer, {}

        def step(self, actions):
            self.buffer += 1
            return self.buffer, self.buffer[:, 0], self.flags, self.flags, {}

    with VectorEnvs(Counting()) as envs:
        steps = [envs.step(np.zeros(2, int)) for _ in range(3)]
    assert envs.vectorization == "native"
    assert [(float(step.obs[0, 0]), float(step.next_obs[0, 0]), step.reward[0]) for step in steps] == [
        (0, 1, 1),
        (1, 2, 2),
        (2, 3, 3),
    ]


def sub_seeds(envs: VectorEnvs) -> tuple[int, ...]:
    return envs.vector_env.np_random_seed


def test_neighbouring_seeds_share_no_random_stream():
    """Gymnasium seeds environment i with seed + i: seeds 0 and 1 of 8 environments would share 7 streams."""
    seen: set[int] = set()
    for seed in range(4):
        with make_envs("Acrobot-v1", num_envs=8, seed=seed, vectorization="sync") as envs:
            seeds = sub_seeds(envs)
            assert len(set(seeds)) == 8 and not seen & set(seeds)
            seen |= set(seeds)


def test_seeds_of_the_sum_of_two_numbers_differ():
    """A resumed run seeds its environments by (seed, steps)."""
    with make_envs("Acrobot-v1", num_envs=2, seed=(3, 1000)) as envs:
        first = sub_seeds(envs)
        envs.reset((3, 1000))
        assert sub_seeds(envs) == first
        envs.reset((1000, 3))
        assert not set(sub_seeds(envs)) & set(first)


@pytest.mark.parametrize(
    ("env", "kwargs"),
    [
        ("CartPole-v1", {}),
        ("CartPole-v1", {"vectorization": "sync"}),
        ("CartPole-v1", {"vectorization": "sync", "autoreset_mode": "SAME_STEP"}),
        ("CartPole-v1", {"vectorization": "sync", "autoreset_mode": "DISABLED"}),
        ("CartPole-v1", {"vectorization": "async"}),
        ("ALE/Breakout-v5", {"max_num_frames_per_episode": 80}),
    ],
)
def test_the_same_seed_gives_the_same_transitions_and_another_seed_does_not(env, kwargs):
    """Also across autoresets, and when the environments have been used before a seeded reset."""

    def play(envs: VectorEnvs) -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        return [envs.step(rng.integers(0, 2, 3)).next_obs for _ in range(30)]

    with make_envs(env, num_envs=3, seed=7, **kwargs) as one, make_envs(env, num_envs=3, seed=8, **kwargs) as other:
        first, different = play(one), play(other)
        other.reset(7)
        again = play(other)
    assert all(np.array_equal(left, right) for left, right in zip(first, again, strict=True))
    assert not any(np.array_equal(left, right) for left, right in zip(first, different, strict=True))


@pytest.mark.parametrize("vectorization", ["native", "sync"])
def test_an_unseeded_reset_goes_on_with_the_random_streams(vectorization):
    with make_envs("CartPole-v1", num_envs=2, seed=1, vectorization=vectorization) as envs:
        first, second = envs.obs, envs.reset()
        envs.reset(1)
        assert not np.array_equal(first, second)
        np.testing.assert_array_equal(envs.reset(), second)


def test_the_environments_of_native_cartpole_differ_from_each_other():
    """One random stream serves them all, so a list of seeds is not what it takes."""
    with make_envs("CartPole-v1", num_envs=8, seed=0) as envs:
        assert envs.vectorization == "native"
        assert len(np.unique(envs.obs[:, 0])) == 8


@pytest.mark.parametrize("vectorization", ["native", "sync"])
def test_sampling_from_the_action_space_is_seeded_too(vectorization):
    samples = []
    for seed in (0, 0, 1):
        with make_envs("CartPole-v1", num_envs=32, seed=seed, vectorization=vectorization) as envs:
            samples.append(
                (envs.vector_env.action_space.sample(), [envs.single_action_space.sample() for _ in range(32)])
            )
    for one, same, other in zip(*samples, strict=True):
        np.testing.assert_array_equal(one, same)
        assert not np.array_equal(one, other)


@pytest.mark.parametrize("seed", [-1, (3, -1), 0.5, "one"])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(SettingsError, match="expected whole numbers of 0 or above"):
        make_envs("CartPole-v1", num_envs=2, seed=seed)
