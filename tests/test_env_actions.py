"""Continuous actions cut into bins: what each choice stands for, wherever environments are made."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import relax_rl
from relax_rl.agents import RELAX
from relax_rl.backends.actions import ActionBins, BinnedActions
from relax_rl.backends.snapshots import ForkableEnv
from relax_rl.envs import VectorEnvs, make_envs
from relax_rl.errors import SettingsError
from relax_rl.networks.spaces import ActionEncoder
from relax_rl.runs.evaluation import evaluation_envs
from relax_rl.settings.config import EnvConfig, TrainConfig
from relax_rl.settings.options import parse


class Echo(gym.Env[Any, Any]):
    """Shows the action that it was given."""

    def __init__(self, space: spaces.Box) -> None:
        self.action_space = space
        self.observation_space = spaces.Box(-np.inf, np.inf, space.shape, np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(self.action_space.shape), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is outside {self.action_space}"
        return np.array(action, np.float64), 0.0, False, False, {}


class Aim(gym.Env[Any, Any]):
    """Pays for actions near (2, -2), and shows nothing."""

    observation_space = spaces.Box(0, 1, (1,))
    action_space = spaces.Box(-3, 3, (2,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), -float(np.abs(action - [2, -2]).sum()), False, False, {}


@dataclass(frozen=True)
class NoEnvironments:
    """Options of a command that makes no environments."""

    steps: int = 3
    """Steps."""


gym.register("relax_rl_fakes/Aim-v0", Aim, max_episode_steps=5)
gym.register("relax_rl_fakes/Echo-v0", lambda: Echo(spaces.Box(-3.0, 3.0, (2,))), max_episode_steps=50)


def test_values_are_equally_spaced_from_bound_to_bound() -> None:
    bins = ActionBins(spaces.Box(np.array([-3.0, 0.0], np.float32), np.array([3.0, 1.0], np.float32)), 7)
    assert bins.space == spaces.MultiDiscrete([7, 7])
    np.testing.assert_allclose(bins.values[:, 0], [-3, -2, -1, 0, 1, 2, 3])
    np.testing.assert_allclose(bins.values[:, 1], np.arange(7) / 6, rtol=1e-6)
    np.testing.assert_array_equal(bins.to_box(np.array([0, 6])), np.array([-3, 1], np.float32))


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3)])
def test_batches_and_single_choices_of_any_shape_stay_inside_the_bounds(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    low, high = np.sort(rng.normal(size=(2, *shape)).astype(np.float32), axis=0)
    box = spaces.Box(low, high)
    bins = ActionBins(box, 5)
    bins.space.seed(0)
    choices = np.stack([bins.space.sample() for _ in range(50)])
    batch = bins.to_box(choices)
    assert batch.dtype == box.dtype and batch.shape == choices.shape
    np.testing.assert_allclose(batch, low + (high - low) * choices / 4, rtol=1e-5, atol=1e-6)
    for choice, action in zip(choices, batch, strict=True):
        np.testing.assert_array_equal(bins.to_box(choice), action)
        assert box.contains(action)
    np.testing.assert_array_equal(bins.to_box(np.full(shape, 4)), high)


@pytest.mark.parametrize(
    ("space", "bins", "message"),
    [
        (spaces.Discrete(3), 7, "bins cuts a Box of floats, not Discrete"),
        (spaces.Box(0, 5, (2,), np.int64), 7, "bins cuts a Box of floats"),
        (spaces.Box(-np.inf, np.inf, (2,)), 7, "bins needs finite action bounds"),
        (spaces.Box(np.array([0.0, 0.0]), np.array([1.0, np.inf])), 7, "bins needs finite action bounds"),
        (spaces.Box(0.0, 1.0, ()), 7, "bins needs at least one dimension"),
        (spaces.Box(-1, 1, (2,)), 1, "bins is 1, expected at least 2"),
        (spaces.Box(-1, 1, (2,)), 0, "bins is 0, expected at least 2"),
        (spaces.Box(-1, 1, (2,)), 2.5, r"bins is 2\.5, expected int"),
    ],
)
def test_actions_that_cannot_be_cut_are_refused(space: spaces.Space[Any], bins: int, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        ActionBins(space, bins)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vector_environments_take_choices_and_give_their_environments_values(mode: AutoresetMode) -> None:
    """The record holds the choice; the environment, which refuses anything else, sees the value."""
    factories = [lambda: Echo(spaces.Box(-3.0, 3.0, (2,)))] * 3
    with VectorEnvs(SyncVectorEnv(factories, autoreset_mode=mode), bins=7) as envs:
        assert ActionEncoder(envs.single_action_space).kind == "multi_categorical"
        step = envs.step(np.array([[0, 6], [3, 3], [1, 5]]))
        np.testing.assert_array_equal(step.action, [[0, 6], [3, 3], [1, 5]])
        np.testing.assert_array_equal(step.next_obs, [[-3, 3], [0, 0], [-2, 2]])
        for wrong in ([[0, 7]] * 3, [[-1, 0]] * 3, [[0.5, 0.5]] * 3, [[0, 0]]):
            with pytest.raises(SettingsError, match="action"):
                envs.step(np.array(wrong))


def test_choices_are_sampled_with_the_seed_of_the_environments() -> None:
    samples = []
    for seed in (0, 0, 1):
        with make_envs("tests.test_env_actions:relax_rl_fakes/Echo-v0", num_envs=1, seed=seed, bins=5) as envs:
            samples.append(np.stack([envs.single_action_space.sample() for _ in range(20)]))
    np.testing.assert_array_equal(samples[0], samples[1])
    assert not np.array_equal(samples[0], samples[2])


@pytest.mark.parametrize("vectorization", ["sync", "async", "envpool"])
def test_every_backend_steps_mujoco_by_bins(vectorization: str) -> None:
    """The same choices as values lead to the same successors."""
    pytest.importorskip("mujoco", reason="needs the extra mujoco")
    if vectorization == "envpool":
        pytest.importorskip("envpool", reason="needs the extra envpool")
    rng = np.random.default_rng(0)
    choices = rng.integers(0, 7, (12, 2, 3))
    settings = {"num_envs": 2, "seed": 1, "vectorization": vectorization}
    with make_envs("Hopper-v5", bins=7, **settings) as cut, make_envs("Hopper-v5", **settings) as whole:
        assert cut.single_action_space == spaces.MultiDiscrete([7, 7, 7])
        assert (cut.vectorization, cut.solve_threshold) == (whole.vectorization, whole.solve_threshold)
        values = np.linspace(-1, 1, 7, dtype=np.float32)
        for choice in choices:
            np.testing.assert_array_equal(cut.step(choice).next_obs, whole.step(values[choice]).next_obs)


def test_forks_take_choices_too() -> None:
    pytest.importorskip("mujoco", reason="needs the extra mujoco")
    env = ForkableEnv("Hopper-v5", bins=3)
    assert env.copies
    env.reset(0)
    env.step(np.array([0, 1, 2]))
    fork = env.fork(1)
    assert fork.action_space == spaces.MultiDiscrete([3, 3, 3])
    expected = fork.step(np.array([2, 0, 1]))
    np.testing.assert_array_equal(env.step(np.array([2, 0, 1]))[0], expected[0])
    env.close()
    single = BinnedActions(Echo(spaces.Box(-3.0, 3.0, (2,))), 3)
    single.reset()
    np.testing.assert_array_equal(single.step([0, 2])[0], [-3, 3])


def test_an_agent_is_scored_and_filmed_on_the_bins_it_was_trained_on() -> None:
    config = EnvConfig(env="Pendulum-v1", bins=5)
    with evaluation_envs(config, episodes=2, seed=0) as envs:
        assert envs.single_action_space == spaces.MultiDiscrete([5])
    pytest.importorskip("moviepy", reason="needs the extra video")
    from relax_rl.runs.video import rendering_env

    with rendering_env(config, seed=0) as envs:
        assert envs.single_action_space == spaces.MultiDiscrete([5])
        envs.step(np.array([[4]]))


def test_bins_and_backend_are_options_of_a_run() -> None:
    read = parse(TrainConfig, ["--bins", "7", "--backend", "sync"], prog="p", description="d")
    assert (read.env.bins, read.env.vectorization) == (7, "sync")
    assert read.to_dict()["env"]["bins"] == 7
    assert parse(TrainConfig, ["--backend=envpool"], prog="p", description="d").env.vectorization == "envpool"
    assert parse(TrainConfig, ["--vectorization", "async"], prog="p", description="d").env.vectorization == "async"
    assert TrainConfig().env.bins == 0
    for bins in (-1, 1):
        with pytest.raises(SettingsError, match=f"bins is {bins}, expected at least 2, or 0"):
            EnvConfig(bins=bins)
    with pytest.raises(SettingsError, match="unknown option --backend"):
        parse(NoEnvironments, ["--backend", "sync"], prog="p", description="d")


def test_relax_learns_which_bins_pay() -> None:
    """Seven values from -3 to 3 in each of two dimensions: the ones for (2, -2) are number 5 and number 1."""
    with make_envs("tests.test_env_actions:relax_rl_fakes/Aim-v0", num_envs=8, seed=0, bins=7) as envs:
        agent = RELAX(
            envs.single_observation_space, envs.single_action_space, seed=0, policy_lr=1e-2, gamma=0.0, num_steps=16
        )
        agent.learn(envs, 20_000)
        chosen = agent.act(np.zeros((4, 1), np.float32), deterministic=True)
    np.testing.assert_array_equal(chosen, [[5, 1]] * 4)


def test_the_examples_of_the_page_on_environments_work() -> None:
    """And the agent of many switches has learned to set them like the lamps."""
    page = (Path(relax_rl.__file__).parent.parent / "docs" / "environments.md").read_text(encoding="utf-8")
    namespace: dict[str, Any] = {}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page, re.DOTALL)):
        exec(compile(block, f"docs/environments.md, example {number}", "exec"), namespace)
    np.testing.assert_array_equal(namespace["step"].action, [[0], [6]])
    lamps = np.random.default_rng(0).integers(0, 2, (100, 4), dtype=np.int8)
    assert (namespace["agent"].act(lamps, deterministic=True) == lamps).mean() > 0.95
