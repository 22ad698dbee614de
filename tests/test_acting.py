"""Networks on the host give what the modules give, read their weights in place, and stand aside where they cannot."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from relax_rl.agents import A2C, LAX, RELAX, ActorCritic
from relax_rl.agents.acting import ImageSampler, host_network, host_sampler
from relax_rl.agents.compiled import CompiledGradients
from relax_rl.agents.normalization import ObservationNormalizer
from relax_rl.envs import make_envs
from relax_rl.networks.torsos import MLP
from tests.steps import BOX, OBS


def sampler_of(agent: ActorCritic) -> Any:
    return host_sampler(agent.policy, agent.networks.on_host("policy"), agent.obs_normalizer)


def with_statistics(agent: ActorCritic) -> ActorCritic:
    if agent.obs_normalizer is not None:
        generator = torch.Generator().manual_seed(1)
        seen = 3.0 + 2.0 * torch.randn((20, 4, *agent.observations.shape), generator=generator)
        agent.obs_normalizer.update(seen, torch.ones((20, 4), dtype=torch.bool))
    return agent


@pytest.mark.parametrize("settings", [{}, {"normalize_obs": True}, {"activation": "relu"}, {"hidden": ()}])
@pytest.mark.parametrize(("kind", "space"), [(RELAX, spaces.Discrete(4)), (LAX, BOX)])
@pytest.mark.parametrize("rows", [1, 8, 700])
def test_outcomes_are_those_of_torch(kind: type[ActorCritic], space: Any, settings: dict[str, Any], rows: int) -> None:
    agent = with_statistics(kind(OBS, space, seed=3, **{"hidden": (64, 64), **settings}))
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.mul_(3.0)
    obs, noise = torch.randn((rows, 3), generator=torch.Generator().manual_seed(0)), agent.sample_noise(rows)
    outcome = torch.from_numpy(sampler_of(agent)(obs.numpy(), noise.numpy()))
    expected = agent.sample(obs, noise)
    assert outcome.dtype == expected.dtype
    torch.testing.assert_close(outcome, expected, rtol=1e-5, atol=1e-5)


def test_a_far_observation_is_clipped_as_by_torch() -> None:
    agent = with_statistics(LAX(OBS, BOX, normalize_obs=True))
    assert agent.obs_normalizer is not None
    far = np.array([[1e6, -1e6, 0.0]], np.float32)
    on_host = agent.obs_normalizer.on_host(far)
    np.testing.assert_allclose(on_host, agent.obs_normalizer(torch.from_numpy(far)).numpy(), rtol=1e-6)
    assert np.abs(on_host).max() == agent.obs_normalizer.clip
    assert far[0, 0] == 1e6


def test_weights_are_read_where_they_stand() -> None:
    agent = RELAX(OBS, spaces.Discrete(3))
    network = agent.networks.on_host("value")
    assert network is not None
    x = torch.randn((5, 3), generator=torch.Generator().manual_seed(0))
    before = network.on_tensor(x)
    agent.learner.flat["value"].data.mul_(2.0)
    after = network.on_tensor(x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after.squeeze(-1), agent.value(x).detach(), rtol=1e-5, atol=1e-5)
    assert agent.networks.on_host("value") is network


def test_a_copy_of_an_agent_reads_its_own_weights() -> None:
    agent = RELAX(OBS, spaces.Discrete(3))
    agent.networks.on_host("value")
    twin = copy.deepcopy(agent)
    with torch.no_grad():
        for parameter in twin.value.parameters():
            parameter.add_(1.0)
    network = twin.networks.on_host("value")
    assert network is not None
    x = torch.ones((2, 3))
    torch.testing.assert_close(network.on_tensor(x).squeeze(-1), twin.value(x).detach(), rtol=1e-5, atol=1e-5)


def test_what_comes_back_as_a_tensor_is_not_overwritten() -> None:
    network = host_network(MLP(3, (4,), "tanh"), torch.nn.Linear(4, 1))
    assert network is not None
    first = network.on_tensor(torch.ones((2, 3)))
    kept = first.clone()
    network.on_tensor(torch.zeros((2, 3)))
    assert torch.equal(first, kept)


@pytest.mark.parametrize(
    ("space", "settings"),
    [
        (spaces.Discrete(2), {"activation": "silu"}),
        (spaces.MultiBinary(2), {}),
        (spaces.MultiDiscrete([2, 3]), {}),
        (BOX, {"state_dependent_std": True}),
    ],
)
def test_the_rest_is_left_to_torch(space: Any, settings: dict[str, Any]) -> None:
    assert sampler_of(A2C(OBS, space, **settings)) is None


def test_passing_without_a_graph_gives_the_same_numbers() -> None:
    for settings in ({}, {"activation": "elu"}):
        agent = LAX(OBS, BOX, hidden=(8,), **settings)
        obs = torch.randn((7, 3), generator=torch.Generator().manual_seed(0))
        found, expected = agent.networks.without_graph(obs, 5), agent.networks(obs, 5)
        for name in ("params", "value", "features"):
            ours, theirs = getattr(found, name), getattr(expected, name)
            torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
            assert not ours.requires_grad


@pytest.mark.parametrize("estimator", [A2C, LAX])
def test_the_update_takes_what_the_policy_said_while_it_acted(estimator: type[ActorCritic]) -> None:
    with make_envs("Pendulum-v1", num_envs=3, seed=0) as envs:
        agent = estimator(envs.single_observation_space, envs.single_action_space, hidden=(8,), num_steps=4, seed=0)
        agent.learner.compiled = CompiledGradients(agent.networks, agent.learner.flat)
        collector = agent.collector(envs)
        first = agent.collect(collector)
        agent.obs_normalizer = ObservationNormalizer(agent.observations.shape)
        agent.obs_normalizer.update(first.obs, torch.ones((5, 3), dtype=torch.bool))
        rollout = agent.collect(collector)
        (_, recalled), (_, computed) = agent.batch(rollout), agent.batch(replace(rollout))
        torch.testing.assert_close(recalled.params, computed.params, rtol=1e-5, atol=1e-6)
        agent.learner.flat["policy"].data.mul_(2.0)
        (_, same), (_, moved) = agent.batch(rollout), agent.batch(replace(rollout))
        assert torch.equal(same.params, recalled.params) and not torch.allclose(moved.params, same.params, rtol=0.1)


def test_an_agent_is_copied_between_acting_and_learning() -> None:
    agent = A2C(spaces.Box(0, 255, (3, 84, 84), np.uint8), spaces.Discrete(3), seed=0)
    images = ImageSampler(agent.policy)
    images(torch.zeros(2, 3, 84, 84), agent.sample_noise(1, 2)[0])
    agent._acted = (None, images)  # type: ignore[assignment]
    assert copy.deepcopy(agent)._acted is None and agent._acted is not None
