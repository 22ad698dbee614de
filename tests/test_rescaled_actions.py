"""Boxes far from -1 and 1: where the policy's 0 and 1 lie, and that agents of before go on as before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

from relax_rl import A2C, LAX, RELAX, ActorCritic, AgentConfig
from relax_rl.compute.serialization import load_state, save_state
from relax_rl.envs import VectorEnvs
from relax_rl.errors import CheckpointError, SettingsError
from relax_rl.networks.actions import action_encoder, unit_scale
from relax_rl.settings.fields import from_json, to_json

OBS = spaces.Box(0, 1, (1,), np.float32)
FAR = spaces.Box(0, 512, (1,), np.float32)


class Dial(gym.Env[Any, Any]):
    """Pays for numbers near 400, one step an episode."""

    observation_space = OBS
    action_space = FAR

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), -abs(float(action[0]) - 400.0) / 256.0, True, False, {}


@pytest.mark.parametrize(
    ("low", "high", "far"),
    [
        (-1, 1, False),
        (-2, 2, False),  # Pendulum
        (-0.4, 0.4, False),  # Humanoid
        (-3, 3, False),  # InvertedPendulum
        (0, 1, False),  # CarRacing's gas
        (-10, 10, False),
        (-0.1, 0.1, False),
        (-10.5, 10.5, True),
        (-0.05, 0.05, True),
        (0, 512, True),
        (0.5, 1, True),
        (-3, -2, True),
        (-np.inf, 512, False),
        (0, np.inf, False),
        (-3e38, 3e38, False),
        (7, 7, False),
    ],
)
def test_which_ranges_are_rescaled(low: float, high: float, far: bool) -> None:
    box = spaces.Box(np.array([-1, low], np.float32), np.array([1, high], np.float32))
    scale = unit_scale(action_encoder(box))
    assert (scale is not None) == far
    if scale is not None:
        moved = scale(np.array([[0.0, 0.0], [1.0, 1.0], [-1.0, -1.0]]))
        np.testing.assert_allclose(moved, [[0, (low + high) / 2], [1, high], [-1, low]], rtol=1e-6)


def test_spaces_without_numbers_have_no_scale() -> None:
    for space in (spaces.Discrete(3), spaces.MultiBinary(2), spaces.Tuple((spaces.Discrete(99),))):
        assert unit_scale(action_encoder(space)) is None


def test_the_numbers_of_a_structure_are_rescaled_and_its_choices_are_not() -> None:
    space = spaces.Dict({"a": spaces.Discrete(300), "b": spaces.Box(100, 300, (1,)), "c": spaces.Box(-1, 1, (1,))})
    actions = RELAX(OBS, space).to_env(np.array([[0.5, 0.5, 250], [-3, 0, 0]], np.float32))
    assert (
        actions["a"].tolist() == [250, 0]
        and actions["b"].tolist() == [[250], [100]]
        and actions["c"].tolist() == [[0.5], [0]]
    )


def test_numbers_map_to_the_middle_and_half_width_and_are_cut() -> None:
    outcome = np.array([[0.0], [0.5], [-1.0], [3.0]], np.float32)
    assert A2C(OBS, FAR).to_env(outcome).tolist() == [[256], [384], [0], [512]]
    assert A2C(OBS, FAR, rescale_actions=False).to_env(outcome).tolist() == [[0], [0.5], [0], [3]]
    near = spaces.Box(-2, 2, (1,))
    assert A2C(OBS, near).to_env(outcome).tolist() == [[0], [0.5], [-1], [2]]
    np.testing.assert_allclose(A2C(OBS, FAR, squash=True).to_env(outcome), 256 + 256 * np.tanh(outcome), rtol=1e-6)
    beta = A2C(OBS, FAR, action_distribution="beta")
    assert beta.to_env(np.array([[0.0], [0.25], [1.0]], np.float32)).tolist() == [[0], [128], [512]]
    assert type(beta.to_env(outcome[:1])[0, 0]) is np.float32


@pytest.mark.parametrize(("kind", "settings"), [(A2C, {}), (LAX, {}), (LAX, {"action_distribution": "beta"})])
def test_a_far_box_is_learned(kind: type[ActorCritic], settings: dict[str, Any]) -> None:
    with VectorEnvs(SyncVectorEnv([Dial] * 8)) as envs:
        agent = kind(
            OBS, FAR, seed=1, num_steps=16, hidden=(8,), policy_lr=0.03, value_lr=0.03, log_std_init=-0.5, **settings
        )
        agent.learn(envs, 3_000)
        action, _ = agent.predict(np.zeros(1, np.float32), deterministic=True)
    assert 350 < action[0] < 450


def test_an_agent_saved_without_the_flag_acts_as_before(tmp_path: Path) -> None:
    agent = A2C(OBS, FAR, rescale_actions=False, hidden=(8,))
    agent.save(tmp_path / "agent.safetensors")
    tensors, saved = load_state(tmp_path / "agent.safetensors")
    for name in ("rescale_actions", "action_distribution"):
        del saved["agent"]["config"][name]
    save_state(tmp_path / "old.safetensors", tensors, saved)
    old = ActorCritic.load(tmp_path / "old.safetensors")
    assert not old.config.rescale_actions and old.config.action_distribution == "gaussian"
    obs = np.linspace(0, 1, 50, dtype=np.float32)[:, None]
    for deterministic in (True, False):
        found, expected = (each.predict(obs, deterministic=deterministic)[0] for each in (old, agent))
        assert np.array_equal(found, expected) and found.max() < 10
    assert A2C(OBS, FAR, hidden=(8,)).predict(obs)[0].max() > 100
    old.save(tmp_path / "again.safetensors")
    assert not ActorCritic.load(tmp_path / "again.safetensors").config.rescale_actions


def test_settings_saved_without_the_flag_are_those_of_before() -> None:
    saved = to_json(AgentConfig())
    assert saved.pop("rescale_actions") is True
    assert from_json(AgentConfig, saved) == replace(AgentConfig(), rescale_actions=False)


def test_numbers_that_mean_something_else_are_not_loaded() -> None:
    new, old = A2C(OBS, FAR, hidden=(8,)), A2C(OBS, FAR, hidden=(8,), rescale_actions=False)
    with pytest.raises(CheckpointError, match="its rescale_actions is False, here it is True"):
        new.load_state_dict(*old.state_dict())
    near = spaces.Box(-2, 2, (1,))
    A2C(OBS, near, hidden=(8,)).load_state_dict(*A2C(OBS, near, hidden=(8,), rescale_actions=False).state_dict())
    beta = A2C(OBS, FAR, hidden=(8,), action_distribution="beta")
    with pytest.raises(CheckpointError, match="its action_distribution is gaussian, here it is beta"):
        beta.load_state_dict(*new.state_dict())


@pytest.mark.parametrize(
    ("space", "settings", "message"),
    [
        (spaces.Discrete(3), {"action_distribution": "beta"}, "'beta' needs a Box action space, not Discrete"),
        (spaces.Box(-np.inf, np.inf, (1,)), {"action_distribution": "beta"}, "'beta' needs finite action bounds"),
        (
            FAR,
            {"action_distribution": "beta", "squash": True},
            "squash is True, but it is for action_distribution 'gaussian'",
        ),
        (FAR, {"action_distribution": "beta", "state_dependent_std": True}, "state_dependent_std is True, but"),
        (FAR, {"action_distribution": "bta"}, "action_distribution is 'bta', expected gaussian or beta"),
    ],
)
def test_a_beta_policy_that_cannot_be_is_refused_in_one_line(space: Any, settings: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        A2C(OBS, space, **settings)
    assert "\n" not in str(caught.value)


def test_a_range_with_one_bound_and_without_zero_is_met_at_its_bound() -> None:
    scale = unit_scale(
        action_encoder(spaces.Box(np.array([100.0, -np.inf]), np.array([np.inf, -3.0]), dtype=np.float64))
    )
    assert scale is not None and scale(np.array([[0.0, 0.0], [-1.0, 1.0]])).tolist() == [[101.0, -4.0], [100.0, -3.0]]
    agent = A2C(OBS, spaces.Box(100.0, np.inf, (1,), np.float32))
    assert agent.to_env(np.array([[-2.0], [0.5], [7.0]], np.float32)).ravel().tolist() == [100.0, 101.5, 108.0]
