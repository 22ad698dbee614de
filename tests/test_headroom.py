"""What the headroom benchmark computes by itself: policy gradients of groups of rows, later steps, other surrogates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.func import functional_call, jacrev, vmap

from benchmarks.headroom import Frozen, measure
from benchmarks.headroom_controls import of_later_steps
from benchmarks.headroom_surrogates import LayerNormedSurrogate, SampledMarginal, ThroughRollouts, policy_gradients
from relax_rl import make_envs
from relax_rl.agents import A2C, ActorCritic
from relax_rl.critics import ActionSurrogate, surrogate_at
from relax_rl.variance.contenders import experience_of
from tests.steps import shake_module

DISCRETE, GAUSSIAN = spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32)


def an_agent(action_space: spaces.Space[Any]) -> tuple[ActorCritic, torch.Generator]:
    agent = A2C(spaces.Box(-1, 1, (5,), np.float32), action_space, seed=0, hidden=(8, 7))
    generator = torch.Generator().manual_seed(0)
    shake_module(agent.policy, generator)
    return agent, generator


def jacobians(agent: ActorCritic, obs: torch.Tensor) -> torch.Tensor:
    """`[B, P, |theta|]` by automatic differentiation."""
    weights = {name: x.detach() for name, x in agent.policy.named_parameters()}
    found = vmap(jacrev(lambda theta, o: functional_call(agent.policy, theta, (o[None],))[0]), in_dims=(None, 0))(
        weights, obs
    )
    return torch.cat([x.flatten(2) for x in found.values()], -1)


@pytest.mark.parametrize("action_space", [DISCRETE, GAUSSIAN], ids=str)
@pytest.mark.parametrize("steps", [1, 3])
def test_policy_gradients_sum_within_groups(action_space: spaces.Space[Any], steps: int) -> None:
    agent, generator = an_agent(action_space)
    obs = torch.randn(6, 5, generator=generator)
    pull = torch.randn(6, agent.policy.num_params, generator=generator).requires_grad_()
    expected = torch.einsum("gtpw,gtp->gw", *(x.unflatten(0, (-1, steps)) for x in (jacobians(agent, obs), pull)))
    found = policy_gradients(agent.policy, obs, pull, steps)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    (back,) = torch.autograd.grad(found.square().sum(), pull)
    (expected_back,) = torch.autograd.grad(expected.square().sum(), pull)
    torch.testing.assert_close(back, expected_back, rtol=1e-4, atol=1e-3)


def test_a_group_of_rows_is_the_rollout_of_one_environment() -> None:
    through = ThroughRollouts("", an_agent(DISCRETE)[0], 0, 1)
    through.steps, through.num_envs = 4, 3
    rollouts = torch.arange(5 * 4 * 3).view(5, 4, 3).transpose(1, 2).flatten(0, 1)  # rows of each, one after the other
    groups = through.draw(rollouts.numel(), torch.Generator().manual_seed(0)).view(-1, 4)
    assert len(groups) == 512 // 4 and len(groups.unique(dim=0)) > 10
    assert all((group == rollouts).all(1).any() for group in groups)


def test_normed_surrogate_without_norms_is_the_package_own() -> None:
    generator = torch.Generator().manual_seed(1)
    own, normed = ActionSurrogate(4, 2, (8, 7)), LayerNormedSurrogate(6, (8, 7), "tanh")
    assert not normed.head.weight.any()
    shake_module(own, generator)
    normed.load_state_dict(own.state_dict(), strict=False)
    features, action = torch.randn(6, 4, generator=generator), torch.randn(6, 2, generator=generator)
    assert not torch.allclose(normed(features, action), own(features, action), atol=1e-2)
    normed.norms = torch.nn.ModuleList(torch.nn.Identity() for _ in normed.norms)
    torch.testing.assert_close(normed(features, action), own(features, action))


def test_later_steps_count_within_episodes_alone() -> None:
    with make_envs("CartPole-v1", num_envs=2, seed=0) as envs:
        agent = A2C(envs.single_observation_space, envs.single_action_space, seed=0, num_steps=60, gamma=0.9)
        rollout = agent.collect(agent.collector(envs))
    each = type("Seen", (), {"rollout": rollout})
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros_like(x)
    for n in range(2):
        for t in range(60):
            for later in range(t, 60):
                if later > t and rollout.valid[t, n]:
                    expected[t, n] += (0.9 * 0.95) ** (later - t) * x[later, n] * rollout.valid[later, n]
                if rollout.terminated[later, n] or rollout.truncated[later, n]:
                    break
    assert rollout.terminated.any()
    found = of_later_steps(agent, each, x.flatten())
    torch.testing.assert_close(found.view(60, 2), expected, rtol=1e-4, atol=1e-5)


def test_sampled_marginal_of_a_linear_surrogate_is_exact() -> None:
    """E_a w.a has the gradient w in the mean and none in the standard deviation, whatever is drawn."""
    with make_envs("Pendulum-v1", num_envs=4, seed=0) as envs:
        agent = A2C(envs.single_observation_space, envs.single_action_space, seed=0, num_steps=8, surrogate_hidden=())
        x, dist = experience_of(agent, *agent.batch(agent.collect(agent.collector(envs))))
    marginal = SampledMarginal("", agent, 0, 1)
    shake_module(marginal.net, torch.Generator().manual_seed(0))
    with torch.no_grad():
        control = surrogate_at(marginal.net, x.features)(x.action)
        slope = torch.cat([marginal.net.gain * marginal.net.head.weight[0, -1:], torch.zeros(1)])
        expected = (x.advantage - control).unsqueeze(-1) * dist.score(x.action) + slope
    torch.testing.assert_close(marginal.estimate(x, dist).detach(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_everything_is_tried_and_repeats_itself(env: str) -> None:
    task = Frozen(env, 400, {"num_steps": 16, "hidden": (8,), "surrogate_hidden": (8,), "normalize_reward": True})
    found = measure(task, rows=512, rollouts=4, states=3, num_envs=4)
    names = ["a2c", "surrogate", "surrogate, later steps too", "surrogate, by the policy's gradient"]
    names += ["surrogate, by rollouts' gradients", "regression on the advantage", "two surrogates"]
    names += ["LAX, marginal over samples"] if env == "Pendulum-v1" else []
    names += ["surrogate with LayerNorm", "V refitted", "dynamics", "dynamics, state part", "dynamics, later steps too"]
    assert list(found["ratio"]) == names
    values = {name: ratio["value"] for name, ratio in found["ratio"].items()}
    assert values["a2c"] == pytest.approx(1.0) and all(0.0 < x < 100.0 for x in values.values())
    assert len(set(values.values())) == len(names)
    assert found == measure(task, rows=512, rollouts=4, states=3, num_envs=4)
