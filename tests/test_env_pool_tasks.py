"""Tasks in EnvPool beside Gymnasium's: the same starts, steps, rewards and ends."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import registry
from scipy.stats import ks_2samp

from relax_rl.backends.envpool import SAME_BUT_FOR_THE_ENGINE, SAME_TO_ROUNDING
from relax_rl.envs import Episode, VectorEnvs, make_envs
from tests.fakes import need

pytest.importorskip("envpool", reason="needs the extra envpool")


@contextmanager
def alone(env_id: str) -> Iterator[Any]:
    """Gymnasium's own environment, without a time limit."""
    env = gym.make(env_id, disable_env_checker=True).unwrapped
    env.reset(seed=0)
    yield env
    env.close()


def random_actions(envs: VectorEnvs, rng: np.random.Generator) -> np.ndarray:
    space = envs.single_action_space
    if isinstance(space, gym.spaces.Discrete):
        return rng.integers(0, space.n, envs.num_envs)
    return rng.uniform(space.low, space.high, (envs.num_envs, *space.shape)).astype(space.dtype)


# Classic control: every transition, by itself


def classic_state(env_id: str, obs: np.ndarray) -> np.ndarray:
    if env_id.startswith("Acrobot"):
        return np.array([np.arctan2(obs[1], obs[0]), np.arctan2(obs[3], obs[2]), obs[4], obs[5]], np.float64)
    return obs.astype(np.float64)


def swings(env_id: str, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Actions that reach the goal now and then."""
    if env_id.startswith("CartPole"):
        return rng.integers(0, 2, len(obs))
    faster = obs[:, 4] < 0 if env_id.startswith("Acrobot") else obs[:, 1] > 0
    if env_id.startswith("MountainCarContinuous"):
        return np.where(faster, 1, -1)[:, None] * rng.uniform(0.5, 1, (len(obs), 1)).astype(np.float32)
    return np.where(rng.random(len(obs)) < 0.9, 2 * faster, rng.integers(0, 3, len(obs)))


@pytest.mark.parametrize(
    ("env_id", "limit"),
    [
        ("CartPole-v0", 30),
        ("CartPole-v1", 30),
        ("MountainCar-v0", 130),
        ("MountainCarContinuous-v0", 110),
        ("Acrobot-v1", 90),
    ],
)
def test_every_transition_of_classic_control_is_gymnasiums(env_id: str, limit: int) -> None:
    """From what the agent saw, Gymnasium's step leads to the successor, reward and flags that were reported."""
    rng = np.random.default_rng(0)
    with alone(env_id) as env, make_envs(env_id, num_envs=12, vectorization="envpool", max_episode_steps=limit) as envs:
        lengths = np.zeros(12, int)
        ends = {"terminated": 0, "truncated": 0, "made up": 0}
        for t in range(400):
            step = envs.step(swings(env_id, envs.obs, rng))
            lengths = np.where(step.valid, lengths + 1, 0)
            np.testing.assert_array_equal(step.truncated, (lengths == limit) & ~step.terminated)
            ends["terminated"] += int(step.terminated.sum())
            ends["truncated"] += int(step.truncated.sum())
            ends["made up"] += int((~step.valid).sum())
            for row in np.flatnonzero(step.valid)[:: 1 if step.terminated.any() else 5]:
                env.state = classic_state(env_id, step.obs[row])
                obs, reward, terminated, _, _ = env.step(step.action[row])
                np.testing.assert_allclose(step.next_obs[row], obs, rtol=2e-5, atol=2e-5, err_msg=f"step {t}")
                assert step.reward[row] == pytest.approx(reward, rel=1e-5)
                assert step.terminated[row] == terminated
                if env_id.startswith("CartPole"):
                    env.steps_beyond_terminated = None
    assert ends["terminated"] >= 5 and ends["truncated"] >= 5
    assert ends["terminated"] + ends["truncated"] - 12 <= ends["made up"] <= ends["terminated"] + ends["truncated"]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "MountainCar-v0", "Acrobot-v1"])
def test_episodes_of_classic_control_start_as_gymnasiums_do(env_id: str) -> None:
    with alone(env_id) as env:
        theirs = np.stack([env.reset(seed=seed)[0] for seed in range(1000)])
    with make_envs(env_id, num_envs=1000, vectorization="envpool") as envs:
        for theirs_column, column in zip(theirs.T, envs.obs.T, strict=True):
            assert ks_2samp(theirs_column, column).pvalue > 1e-4


# MuJoCo: whole trajectories


def mujoco_state(env_id: str, obs: np.ndarray, env: Any) -> tuple[np.ndarray, np.ndarray]:
    """Positions and speeds behind an observation; the place along the track, which nothing depends on, is 0."""
    nq, nv = env.model.nq, env.model.nv
    if env_id.startswith("InvertedPendulum"):
        return obs[:2], obs[2:4]
    if env_id.startswith("InvertedDouble"):
        return np.append(obs[:1], np.arctan2(obs[1:3], obs[3:5])), obs[5:8]
    if env_id.startswith("Reacher"):
        env.goal = obs[4:6].copy()
        return np.append(np.arctan2(obs[2:4], obs[:2]), obs[4:6]), np.append(obs[6:8], [0, 0])
    if env_id.startswith("Pusher"):
        moved = env.init_qpos.copy()
        moved[7:11] = 0
        env.set_state(moved, np.zeros(nv))
        things = [obs[17:19] - env.get_body_com("object")[:2], obs[20:22] - env.get_body_com("goal")[:2]]
        moved[:7], moved[7:9], moved[9:11] = obs[:7], things[0][::-1], things[1][::-1]  # their slides: y, then x
        return moved, np.append(obs[7:14], np.zeros(4))
    unseen = nq + nv - len(obs) if len(obs) < nq + nv else 2
    return np.append(np.zeros(unseen), obs[: nq - unseen]), obs[nq - unseen : nq - unseen + nv]


def start_alike(env_id: str, env: Any, obs: np.ndarray) -> None:
    """Puts Gymnasium's simulator into the state of a fresh episode."""
    import mujoco

    qpos, qvel = mujoco_state(env_id, obs, env)
    mujoco.mj_resetData(env.model, env.data)
    env.set_state(qpos, qvel)


EXACT = [env_id for env_id in SAME_TO_ROUNDING if "mujoco" in str(registry[env_id].entry_point)]


@pytest.mark.parametrize("env_id", EXACT)
def test_trajectories_of_mujoco_are_gymnasiums_to_rounding(env_id: str) -> None:
    """Starts, 30 steps, rewards (single precision in EnvPool) and ends; the next episodes, too."""
    need(env_id)
    logging.getLogger("mujoco").setLevel(logging.ERROR)
    rng = np.random.default_rng(0)
    episodes = steps = 0
    with alone(env_id) as env, make_envs(env_id, num_envs=2, vectorization="envpool", max_episode_steps=30) as envs:
        start_alike(env_id, env, envs.obs[0])
        while steps < 40:
            step = envs.step(random_actions(envs, rng))
            if not step.valid[0]:
                start_alike(env_id, env, envs.obs[0])
                continue
            obs, reward, terminated, _, _ = env.step(step.action[0])
            np.testing.assert_allclose(step.next_obs[0], obs, rtol=1e-8, atol=1e-8)
            assert step.reward[0] == pytest.approx(reward, rel=1e-5, abs=1e-5)
            assert step.terminated[0] == terminated
            episodes += int(step.terminated[0] or step.truncated[0])
            steps += 1
    assert episodes >= 1


@pytest.mark.parametrize("env_id", SAME_BUT_FOR_THE_ENGINE)
def test_tasks_with_other_contacts_start_and_move_alike(env_id: str) -> None:
    """MuJoCo 4 resolves contacts otherwise than EnvPool's 3.6; starts, spaces and a first step still agree."""
    need(env_id)
    with alone(env_id) as env, make_envs(env_id, num_envs=1, vectorization="envpool") as envs:
        start_alike(env_id, env, envs.obs[0])
        np.testing.assert_allclose(env._get_obs(), envs.obs[0], rtol=1e-9, atol=1e-9)
        step = envs.step(random_actions(envs, np.random.default_rng(1)))
        obs, reward, *_ = env.step(step.action[0])
        np.testing.assert_allclose(step.next_obs[0], obs, rtol=2e-3, atol=2e-2)
        assert step.reward[0] == pytest.approx(reward, rel=1e-3, abs=1e-3)


# Box2D: the reward, and whole episodes in distribution


def lander_potential(obs: np.ndarray) -> np.ndarray:
    return (
        -100 * np.hypot(obs[:, 0], obs[:, 1])
        - 100 * np.hypot(obs[:, 2], obs[:, 3])
        - 100 * np.abs(obs[:, 4])
        + 10 * obs[:, 6]
        + 10 * obs[:, 7]
    )


def test_the_lunar_lander_is_paid_as_gymnasiums_is() -> None:
    """The change of the potential less the fuel; -100 for a crash."""
    need("LunarLander-v3")
    fuel = np.array([0, 0.03, 0.3, 0.03])
    rng = np.random.default_rng(0)
    crashes = 0
    with make_envs("LunarLander-v3", num_envs=8, vectorization="envpool") as envs:
        for _ in range(300):
            step = envs.step(rng.integers(0, 4, 8))
            on = step.valid & ~step.terminated
            expected = lander_potential(step.next_obs) - lander_potential(step.obs) - fuel[step.action]
            np.testing.assert_allclose(step.reward[on], expected[on], atol=2e-4)
            assert set(step.reward[step.terminated]) <= {-100.0, 100.0}
            crashes += int(step.terminated.sum())
    assert crashes > 10


@pytest.mark.parametrize(
    ("env_id", "limit"),
    [
        ("LunarLander-v3", 1000),
        ("LunarLanderContinuous-v3", 1000),
        ("BipedalWalker-v3", 60),
        ("BipedalWalkerHardcore-v3", 60),
    ],
)
def test_episodes_of_box2d_have_gymnasiums_returns_and_lengths(env_id: str, limit: int) -> None:
    """Their random numbers cannot be shared, so that distributions are compared."""
    need(env_id)
    found = []
    for vectorization in ("envpool", "sync"):
        rng = np.random.default_rng(0)
        kwargs = {"vectorization": vectorization, "max_episode_steps": limit}
        with make_envs(env_id, num_envs=32, **kwargs) as envs:
            rows: list[list[Episode]] = [[] for _ in range(32)]
            while min(map(len, rows)) < 2:
                step = envs.step(random_actions(envs, rng))
                ended = np.flatnonzero(step.terminated | step.truncated)
                for row, episode in zip(ended, envs.drain_episodes(), strict=True):
                    rows[row].append(episode)
        # the same number from each environment, since those that finish first are the short ones
        found.append([episode for row in rows for episode in row[:2]])
    for name in ("return_", "length"):
        ours, theirs = ([getattr(episode, name) for episode in episodes] for episodes in found)
        assert ks_2samp(ours, theirs).pvalue > 1e-3
        assert abs(np.mean(ours) - np.mean(theirs)) < 4 * np.hypot(np.std(ours), np.std(theirs)) / np.sqrt(64)
