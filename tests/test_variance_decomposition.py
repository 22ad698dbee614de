"""The parts of a policy gradient's variance, against a process whose parts are known."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from relax_rl.agents import A2C, RELAX, ActorCritic, Experience
from relax_rl.backends.snapshots import ForkableEnv
from relax_rl.errors import SettingsError
from relax_rl.estimators.diagnostics import Interval, VarianceParts, variance_parts
from relax_rl.variance.contenders import Contender, contenders
from relax_rl.variance.decomposition import EXACT_VALUE, decompose, follow

NOISE = 0.4
STATES = (-1.0, 2.0)


class Bandit(gym.Env):
    """One step, from one of two states x: the reward is x a plus noise."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-3, 3, (1,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = float(self.np_random.choice(STATES))
        return np.array([self.x], np.float32), {}

    def step(self, action):
        reward = self.x * float(action) + NOISE * self.np_random.normal()
        return np.array([self.x], np.float32), reward, True, False, {}


class Count(gym.Env):
    """Rewards 1, 2, 3, ... without end, and no noise at all."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, np.inf, (1,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.array([0.0], np.float32), {}

    def step(self, action):
        self.t += 1
        return np.array([0.01 * self.t], np.float32), float(self.t), False, self.t == 40, {}


gym.register("Bandit-v0", entry_point=Bandit, disable_env_checker=True)
gym.register("Count-v0", entry_point=Count, disable_env_checker=True)


def agent_for(kind: type[ActorCritic], env: gym.Env, **settings) -> ActorCritic:
    agent = kind(env.observation_space, env.action_space, seed=0, hidden=(8,), surrogate_hidden=(8,), **settings)
    with torch.no_grad():
        agent.policy.head.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
    return agent


def at_state(agent: ActorCritic, x: float) -> tuple[Tensor, float, Tensor]:
    """pi(. | x), V(x) and the Jacobian of the logits with respect to theta."""
    obs = torch.tensor([[x]])
    params = agent.policy(obs)
    theta = list(agent.policy.parameters())
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(p, theta, retain_graph=True)]) for p in params[0]]
    return params[0].softmax(-1).detach().double(), float(agent.value(obs).detach()), torch.stack(rows).double()


def test_parts_of_draws_whose_law_is_known() -> None:
    generator = torch.Generator().manual_seed(0)
    states, actions, continuations = 400, 3, 2
    scale = torch.tensor([1.0, 0.5])

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, 2, generator=generator) * scale

    held = {"trajectory": 0, "action": 0, "state": 0, "total": 0}
    truth = {"trajectory": 9 * 1.25, "action": 4 * 1.25, "state": 1.25, "total": 14 * 1.25}
    for _ in range(60):
        draws = 1.0 + noise(states, 1, 1) + 2 * noise(states, actions, 1) + 3 * noise(states, actions, continuations)
        parts = variance_parts(draws, generator=generator)
        for name, value in truth.items():
            interval = getattr(parts, name)
            held[name] += interval.low <= value <= interval.high
    assert all(count >= 50 for count in held.values()), held


def test_too_few_draws_are_refused() -> None:
    for shape in ((1, 2, 2, 3), (2, 1, 2, 3), (2, 2, 1, 3)):
        with pytest.raises(ValueError, match="expected at least 2 states, actions and continuations"):
            variance_parts(torch.zeros(shape))


def assert_within(found: Interval, truth: float) -> None:
    half = (found.high - found.low) / 2
    assert abs(found.value - truth) < 2.2 * half, (found, truth)  # more than four standard errors
    assert half < 0.35 * abs(truth) + 0.02, (found, truth)


def test_the_parts_of_a_process_in_closed_form() -> None:
    agent = agent_for(RELAX, Bandit(), num_steps=1)
    assert isinstance(agent, RELAX)
    with torch.no_grad():
        agent.surrogate.head.weight.normal_(0, 0.6, generator=torch.Generator().manual_seed(1))
    entrants = contenders(agent, fit_batches=0)
    parts = decompose(agent, ForkableEnv("Bandit-v0"), entrants, num_states=540, num_actions=4, seed=1)
    assert list(parts) == ["reinforce", "a2c", "relax", "relax, state part", EXACT_VALUE]
    baselines = {"a2c": lambda x, p, v: v, "reinforce": lambda x, p, v: 0.0, EXACT_VALUE: lambda x, p, v: x * p[1]}
    for name, baseline in baselines.items():
        trajectory, action, means = 0.0, 0.0, []
        for x in STATES:
            p, v, jacobian = at_state(agent, x)
            scores = (torch.eye(2).double() - p) @ jacobian
            norms = scores.square().sum(-1)
            trajectory += 0.5 * NOISE**2 * float(p @ norms)
            q = torch.tensor([0.0, x]).double() - baseline(x, p, v)
            means.append((p * q) @ scores)
            action += 0.5 * float(p @ (q.square() * norms) - means[-1].square().sum())
        state = float(torch.stack(means).var(0, correction=0).sum())
        assert_within(parts[name].trajectory, trajectory)
        assert_within(parts[name].action, action)
        assert_within(parts[name].state, state)
    assert parts["relax"].trajectory.value == pytest.approx(parts["a2c"].trajectory.value, rel=1e-4)
    assert_within(parts["relax"].action, relaxed_action_part(agent, entrants[2]))


def relaxed_action_part(agent: RELAX, relax: Contender) -> float:
    """E[Var(E[g | s, a, noise] | s)] from many draws."""
    part = 0.0
    for x in STATES:
        _, v, jacobian = at_state(agent, x)
        rows = 40_000
        noise = agent.sample_noise(rows)
        obs = torch.full((rows, 1), x)
        action = agent.sample(obs, noise).clone()
        experience = Experience(obs, action, noise, x * action.float() - v, torch.zeros(rows), torch.ones(rows))
        estimate = relax.estimate(experience, agent.policy.distribution(agent.policy(obs).detach())).detach()
        part += 0.5 * float((estimate.double() @ jacobian).var(0).sum())
    return part


@pytest.mark.parametrize("gae_lambda", [0.0, 0.8, 1.0])
def test_advantages_are_those_of_a_rollout(gae_lambda: float) -> None:
    env = Count()
    agent = agent_for(A2C, env, num_steps=5, gae_lambda=gae_lambda, gamma=0.9, normalize_reward=True)
    agent.reward_scaler.moments.var, agent.reward_scaler.moments.count = np.array(4.0), 10.0
    tails = follow(agent, ForkableEnv("Count-v0"), num_states=30, num_actions=3, seed=0)
    values = [float(agent.value(torch.tensor([[0.01 * t]])).detach()) for t in range(42)]
    possible = {}
    for t in range(40):
        for horizon in range(1, 6):
            advantage = 0.0
            for k in range(min(horizon, 40 - t)):
                delta = (t + k + 1) / math.sqrt(4 + 1e-8) + 0.9 * values[t + k + 1] - values[t + k]
                advantage += (0.9 * gae_lambda) ** k * delta
            possible[t, horizon] = advantage
    horizons = set()
    for row, features in zip(tails.advantage, tails.experience.features.unflatten(0, (30, 3)), strict=True):
        t = round(float(features[0, 0]) * 100)
        assert float(row.max() - row.min()) < 1e-6  # nothing here is random
        matches = [h for h in range(1, 6) if abs(possible[t, h] - float(row[0, 0])) < 1e-4]
        assert matches, (t, row)
        horizons.add(matches[0])
    assert gae_lambda == 0.0 or horizons == {1, 2, 3, 4, 5}


def test_it_repeats_itself_and_needs_enough() -> None:
    def run() -> dict[str, VarianceParts]:
        agent = agent_for(A2C, Bandit(), num_steps=1)
        return decompose(agent, ForkableEnv("Bandit-v0"), contenders(agent, fit_batches=0), num_states=5, seed=2)

    assert run() == run()
    agent = agent_for(A2C, Bandit())
    for wrong in ({"num_states": 1}, {"num_states": 5, "num_actions": 2}):
        with pytest.raises(SettingsError, match="expected at least 2 and 3"):
            decompose(agent, ForkableEnv("Bandit-v0"), contenders(agent, fit_batches=0), **wrong)


def test_the_basis_keeps_all_products() -> None:
    agent = agent_for(A2C, Bandit(), num_steps=1)
    tails = follow(agent, ForkableEnv("Bandit-v0"), num_states=6, num_actions=3, seed=0)
    jacobians = [at_state(agent, float(x))[2] for x in tails.experience.features[::3, 0]]
    exact = torch.cat(jacobians) @ torch.cat(jacobians).T
    coordinates = tails.coordinates.flatten(0, 1).double()
    torch.testing.assert_close(coordinates @ coordinates.T, exact, rtol=1e-4, atol=1e-5)
