"""Agents on disk: all of them comes back, or one line says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from relax_rl.agents import A2C, AGENTS, LAX, RELAX, ActorCritic
from relax_rl.compute.serialization import load_state, save_state
from relax_rl.errors import CheckpointError, TrainingDiverged
from tests.steps import BOX, DISCRETE, OBS, PASSES, rollout_for

EVERYTHING: dict[str, Any] = {
    "normalize_obs": True,
    "normalize_reward": True,
    "lr_schedule": "linear",
    "hidden": (16,),
}


def trained(kind: type[ActorCritic], space: Any, **settings: Any) -> ActorCritic:
    agent = kind(OBS, space, seed=4, **settings)
    for seed in range(3):
        agent.update(rollout_for(agent, seed=seed))
    return agent


def assert_equal_states(left: ActorCritic, right: ActorCritic) -> None:
    (tensors, state), (others, other) = left.state_dict(), right.state_dict()
    assert state == other
    assert tensors.keys() == others.keys()
    for name, x in tensors.items():
        assert torch.equal(x, others[name]) and x.dtype == others[name].dtype, name


@pytest.mark.parametrize(
    ("estimator", "space", "settings"),
    [
        ("relax", DISCRETE, {}),
        ("relax", spaces.MultiBinary(3), EVERYTHING),
        ("lax", BOX, {"state_dependent_std": True, "squash": True}),
        ("a2c", spaces.MultiDiscrete([2, 3]), {"optimizer": "rmsprop"}),
        ("reinforce", spaces.Discrete(3, start=-1), EVERYTHING),
        ("relax", DISCRETE, {"surrogate_scale": "fitted"}),
        ("relax", DISCRETE, {"value_replay": 2, "normalize_reward": True, **PASSES}),
        ("relax", DISCRETE, {"kl_bound": 0.001, "entropy_target": 0.5, "kl_schedule": "linear", **PASSES}),
        ("lax", BOX, {"kl_bound": 0.001, "kl_form": "penalty", "epochs": 3, "policy_lr": 0.01}),
        ("lax", BOX, {"surrogate_loss": "critic", "residual_weight": "adaptive", **PASSES}),
    ],
)
def test_a_loaded_agent_goes_on_as_if_nothing_had_happened(
    estimator: str, space: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    agent = trained(AGENTS[estimator], space, **settings)
    agent.schedule_start, agent.schedule_end = 0, 1000
    agent.save(tmp_path / "agent.safetensors")
    loaded = ActorCritic.load(tmp_path / "agent.safetensors")
    assert type(loaded) is AGENTS[estimator]
    assert loaded.observation_space == agent.observation_space and loaded.action_space == agent.action_space
    assert_equal_states(agent, loaded)
    if agent.reward_scaler is not None:
        agent.reward_scaler.returns = np.zeros(0)  # after a load the environments begin new episodes
    for one in (agent, loaded):
        one.update(rollout_for(one, seed=9))
    assert_equal_states(agent, loaded)
    obs = np.zeros((2, 3), np.float32)
    assert np.array_equal(agent.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])


def test_an_untrained_agent_survives_too(tmp_path: Path) -> None:
    agent = RELAX(OBS, DISCRETE, **EVERYTHING)
    agent.save(tmp_path / "agent.safetensors")
    assert_equal_states(agent, RELAX.load(tmp_path / "agent.safetensors"))


def test_only_its_own_class_loads_it(tmp_path: Path) -> None:
    RELAX(OBS, DISCRETE).save(tmp_path / "agent.safetensors")
    for kind in (A2C, LAX):
        with pytest.raises(CheckpointError, match=r"holds a 'relax' agent, expected .*; ActorCritic.load takes every"):
            kind.load(tmp_path / "agent.safetensors")


def test_a_state_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    agent = RELAX(OBS, DISCRETE)
    agent.save(tmp_path / "agent.safetensors")
    before = (tmp_path / "agent.safetensors").read_bytes()
    with torch.no_grad():
        agent.policy.head.bias[0] = torch.nan
    with pytest.raises(TrainingDiverged, match=r"policy\.head\.bias is not finite"):
        agent.save(tmp_path / "agent.safetensors")
    assert (tmp_path / "agent.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("tamper", "expected"),
    [
        (lambda tensors, agent: tensors.pop("policy.head.bias"), "does not fit"),
        (lambda tensors, agent: tensors.update({"value.head.weight": torch.zeros(3, 3)}), "does not fit"),
        (lambda tensors, agent: tensors.pop("generator"), "does not fit"),
        (lambda tensors, agent: agent.pop("steps"), "does not fit"),
        (lambda tensors, agent: agent.update(estimator="magic"), "holds a 'magic' agent"),
        (lambda tensors, agent: agent["config"].update(hidden=[0]), "does not describe an agent"),
        (lambda tensors, agent: agent["config"].update(surprise=1), "does not describe an agent"),
        (lambda tensors, agent: agent["config"].update(hidden=[16, 16]), "does not fit"),
        (lambda tensors, agent: agent.pop("action_space"), "does not describe an agent"),
        (lambda tensors, agent: agent["action_space"].update(n=-1), "description of a space"),
    ],
)
def test_a_file_that_was_tampered_with(tamper: Any, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.safetensors"
    trained(RELAX, DISCRETE).save(path)
    tensors, state = load_state(path)
    state = json.loads(json.dumps(state))
    tamper(tensors, state["agent"])
    save_state(path, tensors, state)
    with pytest.raises(CheckpointError, match=expected) as error:
        RELAX.load(path)
    assert "\n" not in str(error.value)


def test_flat_optimizer_state_of_another_network_is_refused(tmp_path: Path) -> None:
    agent, other = trained(RELAX, DISCRETE), trained(RELAX, DISCRETE, hidden=(8,))
    tensors, state = agent.state_dict()
    wrong = {**tensors, **{k: v for k, v in other.state_dict()[0].items() if k.startswith("policy_optimizer.")}}
    fresh = RELAX(OBS, DISCRETE)
    with pytest.raises(CheckpointError, match="does not fit"):
        fresh.load_state_dict(wrong, state)


@pytest.mark.parametrize("size", [16, 5_056])
def test_an_agent_of_another_kind_of_device_goes_on_with_noise_of_its_own(size: int) -> None:
    """CUDA's generator has 16 bytes, the CPU's 5,056."""
    agent = trained(RELAX, DISCRETE)
    tensors, state = agent.state_dict()
    draws = []
    for _ in range(2):
        loaded = RELAX(OBS, DISCRETE, seed=4)
        kept = tensors["generator"] if size == 5_056 else torch.arange(16, dtype=torch.uint8)
        loaded.load_state_dict({**tensors, "generator": kept}, state)
        draws.append(loaded.sample_noise(2, 3))
    assert torch.equal(*draws) and torch.equal(draws[0], agent.sample_noise(2, 3)) == (size == 5_056)
    other = RELAX(OBS, DISCRETE, seed=4)
    other.load_state_dict({**tensors, "generator": torch.zeros(16, dtype=torch.uint8)}, state)
    assert not torch.equal(other.sample_noise(2, 3), draws[0])


@pytest.mark.parametrize(
    "wrong", [torch.zeros(0, dtype=torch.uint8), torch.zeros(16), torch.zeros(777, dtype=torch.uint8)]
)
def test_what_is_no_state_of_a_generator_is_refused(wrong: torch.Tensor) -> None:
    agent = trained(RELAX, DISCRETE)
    tensors, state = agent.state_dict()
    with pytest.raises(CheckpointError, match="does not fit this agent"):
        agent.load_state_dict({**tensors, "generator": wrong}, state)
