"""Evaluation: whole episodes, no favour to short ones, an agent that comes out as it went in."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from relax_rl.agents import A2C, RELAX
from relax_rl.envs import VectorEnvs, make_envs
from relax_rl.runs.evaluation import Scores, evaluate, evaluation_envs
from relax_rl.settings.config import EnvConfig


class FixedLength(gym.Env):
    """Episodes of a fixed number of steps, reward 1 each."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, length):
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.length
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.zeros(2, np.float32), 1.0, self.left == 0, False, {}


def fixed_envs(*lengths, mode=AutoresetMode.NEXT_STEP):
    return VectorEnvs(SyncVectorEnv([lambda n=n: FixedLength(n) for n in lengths], autoreset_mode=mode))


@pytest.fixture
def agent():
    return A2C(FixedLength.observation_space, FixedLength.action_space, seed=0, hidden=(4,))


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_short_episodes_are_not_favoured(agent, mode):
    # Taking the first five to finish would give (2, 2, 2, 2, 2): the long environment would never be heard.
    scores = evaluate(agent, fixed_envs(2, 50, mode=mode), episodes=5, seed=0, deterministic=True)
    assert scores == Scores((2.0, 2.0, 2.0, 50.0, 50.0), (2, 2, 2, 50, 50))


def test_fewer_episodes_than_environments(agent):
    scores = evaluate(agent, fixed_envs(2, 3, 4), episodes=2, seed=0, deterministic=True)
    assert scores.returns == (2.0, 3.0)


@pytest.fixture
def cartpole():
    with make_envs("CartPole-v1", num_envs=4, seed=0) as envs:
        yield envs


def test_the_agent_is_left_as_it_was(cartpole):
    agent = RELAX(
        cartpole.single_observation_space, cartpole.single_action_space, seed=3, hidden=(8,), normalize_obs=True
    )
    agent.learn(cartpole, 100)
    before, before_state = agent.state_dict()
    before = {name: x.clone() for name, x in before.items()}
    assert evaluate(agent, cartpole, episodes=5, seed=1, deterministic=False) is not None
    after, after_state = agent.state_dict()
    assert before_state == after_state
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_same_seed_gives_the_same_scores_and_another_one_others(cartpole):
    agent = A2C(cartpole.single_observation_space, cartpole.single_action_space, seed=3, hidden=(8,))
    first = evaluate(agent, cartpole, episodes=6, seed=1, deterministic=False)
    agent.act(cartpole.obs)  # moves the agent's own random stream
    assert evaluate(agent, cartpole, episodes=6, seed=1, deterministic=False) == first
    assert evaluate(agent, cartpole, episodes=6, seed=2, deterministic=False) != first


def test_it_can_be_broken_off(cartpole):
    agent = A2C(cartpole.single_observation_space, cartpole.single_action_space, hidden=(8,))
    taken = []
    scores = evaluate(
        agent,
        cartpole,
        episodes=50,
        seed=0,
        deterministic=False,
        after_step=lambda: taken.append(1),
        should_stop=lambda: len(taken) == 3,
    )
    assert scores is None and len(taken) == 3


def test_environments_are_those_of_training_with_other_streams():
    config = EnvConfig(env="CartPole-v1", num_envs=8, vectorization="sync")
    with evaluation_envs(config, episodes=3, seed=0) as envs, make_envs("CartPole-v1", num_envs=3, seed=0) as training:
        assert (envs.num_envs, envs.vectorization) == (3, "sync")
        assert not np.array_equal(envs.obs, training.obs)


def test_a_lost_life_ends_nothing():
    config = EnvConfig(env="ALE/Breakout-v5", num_envs=2)
    with evaluation_envs(config, episodes=1, seed=0) as envs:
        lives = []
        for _ in range(300):
            step = envs.step(np.ones(1, dtype=np.int64))
            lives.append(bool(step.terminated[0]))
            if lives[-1]:
                break
        game = envs.drain_episodes()
        assert len(game) == sum(lives)
