"""What the headroom benchmark computes by itself: products with a policy's Jacobian, targets, times, a normed surrogate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.func import functional_call, jacrev, vmap

from benchmarks.headroom_controls import Clock, Seen, observations
from benchmarks.headroom_surrogates import LayerNormedSurrogate, Regressed, SampledMarginal
from benchmarks.policy_jacobian import gradient_of_groups, policy_metric
from relax_rl import make_envs
from relax_rl.agents import A2C, ActorCritic
from relax_rl.agents.batch import make_batch
from relax_rl.critics import ActionSurrogate
from relax_rl.rollouts import Rollout
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
def test_metric_is_the_jacobian_times_itself(action_space: spaces.Space[Any]) -> None:
    agent, generator = an_agent(action_space)
    obs = torch.randn(6, 5, generator=generator)
    jacobian = jacobians(agent, obs)
    torch.testing.assert_close(policy_metric(agent.policy, obs), jacobian @ jacobian.mT)


@pytest.mark.parametrize("action_space", [DISCRETE, GAUSSIAN], ids=str)
def test_gradient_of_groups_sums_within_groups(action_space: spaces.Space[Any]) -> None:
    agent, generator = an_agent(action_space)
    obs = torch.randn(2, 3, 5, generator=generator)
    pull = torch.randn(2, 3, agent.policy.num_params, generator=generator)
    jacobian = jacobians(agent, obs.flatten(0, 1)).unflatten(0, (2, 3))
    summed = torch.einsum("gtpw,gtp->gw", jacobian, pull)
    expected = torch.einsum("gtpw,gw->gtp", jacobian, summed)
    torch.testing.assert_close(gradient_of_groups(agent.policy, obs, pull), expected, rtol=1e-4, atol=1e-4)


def test_normed_surrogate_without_norms_is_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(1)
    own, normed = ActionSurrogate(4, 2, (8, 7)), LayerNormedSurrogate(4, 2, (8, 7), "tanh")
    shake_module(own, generator)
    normed.load_state_dict(own.state_dict(), strict=False)
    normed.norms = torch.nn.ModuleList(torch.nn.Identity() for _ in normed.norms)
    features, action = torch.randn(6, 4, generator=generator), torch.randn(6, 2, generator=generator)
    weight, direction = torch.randn(6, generator=generator), torch.randn(6, 2, generator=generator)
    found = []
    for surrogate in (own, normed):
        for parameter in surrogate.parameters():
            parameter.grad = torch.zeros_like(parameter)
        at = surrogate.evaluate(features, action)
        back = surrogate.add_gradient(at, weight, direction)
        gradients = {name: x.grad for name, x in surrogate.named_parameters()}
        found.append({"value": at.value, "slope": at.slope, "back": back[0], "along": back[1], **gradients})
    assert found[0].keys() == found[1].keys()
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
def test_clock_counts_the_steps_of_each_episode(mode: str) -> None:
    told, true = [], []
    with make_envs("CartPole-v1", num_envs=2, seed=0, vectorization="sync", autoreset_mode=mode) as envs:
        agent = A2C(envs.single_observation_space, envs.single_action_space, seed=0, num_steps=64)
        collector, clock = agent.collector(envs), Clock(envs)
        for _ in range(3):
            rollout = agent.collect(collector)
            elapsed = clock(rollout)[: 65 * 2].view(65, 2)
            told += [int(elapsed[t, n]) + 1 for t, n in rollout.terminated.nonzero()]
            true += [episode.length for episode in rollout.episodes]
    assert len(true) > 4
    assert sorted(told) == sorted(true)


def test_clock_tells_the_time_of_final_observations() -> None:
    with make_envs("CartPole-v1", num_envs=1, seed=0, vectorization="sync", autoreset_mode="SAME_STEP") as envs:
        clock = Clock(envs)
    truncated, never, blank = torch.tensor([[False], [True], [False]]), torch.zeros(3, 1).bool(), torch.zeros(3, 1)
    final = {"final_obs": torch.zeros(1, 2), "final_index": torch.tensor([[1, 0]])}
    rollout = Rollout(torch.zeros(4, 1, 2), blank, blank, blank, never, truncated, ~never, **final)
    assert clock(rollout).tolist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize("gae_lambda", [0.0, 0.8])
def test_retrace_of_a_baseline_is_gae_under_it(gae_lambda: float) -> None:
    """Where c^(s, a) = b(s), what V + c^ shall become is the return V + b + A under the value function V + b."""
    settings: dict[str, Any] = {"num_steps": 32, "gae_lambda": gae_lambda, "normalize_reward": True}
    with make_envs("CartPole-v1", num_envs=4, seed=0) as envs:
        agent = A2C(envs.single_observation_space, envs.single_action_space, seed=0, **settings)
        agent.learn(envs, 2_000)
        agent.compiled = None  # its batches hold what a compiled step needs
        rollout = agent.collect(agent.collector(envs))
    seen = Seen(rollout, agent.batch(rollout)[0], torch.empty(0))
    regressed = Regressed(agent, 0, 1, name="", gae_lambda=gae_lambda)
    torch.testing.assert_close(regressed._targets(seen), seen.batch.advantage)

    surrogate = regressed.twin.surrogate
    shake_module(surrogate, torch.Generator().manual_seed(0))
    with torch.no_grad():
        surrogate.layers.layers[0].weight[:, surrogate.num_features :] = 0.0
        obs = observations(agent, seen)
        baseline, values = surrogate(obs, torch.zeros(len(obs), 2)), agent.value(obs)
    under = make_batch(
        rollout, seen.batch.dist, values + baseline, obs, config=agent.config, reward_scale=agent.reward_unit
    )
    expected = baseline[: len(under.advantage)] + under.advantage
    assert seen.batch.scale == 1.0
    assert float((expected - seen.batch.advantage).abs().max()) > 0.1
    torch.testing.assert_close(regressed._targets(seen), expected, rtol=1e-4, atol=1e-4)


def test_sampled_marginal_of_a_linear_surrogate_is_exact() -> None:
    """E_a w.a has the gradient w in the mean and none in the standard deviation, whatever is drawn."""
    with make_envs("Pendulum-v1", num_envs=4, seed=0) as envs:
        agent = A2C(envs.single_observation_space, envs.single_action_space, seed=0, num_steps=8, surrogate_hidden=())
        batch = agent.batch(agent.collect(agent.collector(envs)))[0]
    marginal = SampledMarginal(agent, 0, 1)
    surrogate = marginal.twin.surrogate
    shake_module(surrogate, torch.Generator().manual_seed(0))
    with torch.no_grad():
        control = surrogate(batch.features, batch.action)
        slope = torch.cat([surrogate.gain * surrogate.head.weight[0, -1:], torch.zeros(1)])
        expected = (batch.advantage - control).unsqueeze(-1) * batch.score + slope
    torch.testing.assert_close(marginal.estimate(batch).grad, expected, rtol=1e-4, atol=1e-4)


def test_sampled_marginal_learns_by_its_own_gradient() -> None:
    with make_envs("Pendulum-v1", num_envs=4, seed=0) as envs:
        agent = A2C(envs.single_observation_space, envs.single_action_space, seed=0, num_steps=8)
        batch = agent.batch(agent.collect(agent.collector(envs)))[0]
    marginal = SampledMarginal(agent, 0, 1)
    surrogate, generator = marginal.twin.surrogate, marginal.twin.generator
    shake_module(surrogate, torch.Generator().manual_seed(0))
    pull = torch.randn(batch.score.shape, generator=torch.Generator().manual_seed(1))
    before = generator.get_state()

    def along_pull() -> float:
        generator.set_state(before)
        return float((marginal.estimate(batch).grad.double() * pull).sum())

    for parameter in surrogate.parameters():
        parameter.grad = torch.zeros_like(parameter)
    generator.set_state(before)
    to_surrogate = marginal.estimate(batch).to_surrogate
    assert to_surrogate is not None
    to_surrogate(pull, None)
    weight = surrogate.layers.layers[0].weight
    assert weight.grad is not None
    direction = weight.grad / weight.grad.norm()
    ends = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            weight += sign * 1e-2 * direction
            ends.append(along_pull())
            weight -= sign * 1e-2 * direction
    assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(float(weight.grad.norm()), rel=2e-2)
